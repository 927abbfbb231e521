"""What training minimises and what it is judged by, attached to a value of the graph."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dns_onnx.converters.encodings.sites import FLOAT_TYPES
from dns_onnx.data import Batch
from dns_onnx.errors import ConfigError, DataError, TrainingError


class Classifier(nn.Module):
    """The imported graph, cut off at its class scores.

    Called with a batch of any size: a graph that fixes its batch axis is run in pieces of that
    size, the last one filled up with repeated rows.
    """

    def __init__(self, graph: fx.GraphModule, output: str, fixed_batch: int | None) -> None:
        super().__init__()
        self.graph = ending_at(graph, output)
        self.output = output
        self.fixed_batch = fixed_batch

    def forward(self, *inputs: Tensor) -> Tensor:
        """Scores [N, classes]."""
        rows, piece = len(inputs[0]), self.fixed_batch
        if piece is None or piece == rows:
            return self._scores(inputs)
        missing = -rows % piece
        if missing:
            inputs = tuple(torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]) for x in inputs)
        parts = [
            self._scores([x[i : i + piece] for x in inputs])
            for i in range(0, rows + missing, piece)
        ]
        return torch.cat(parts)[:rows]

    def _scores(self, inputs: Sequence[Tensor]) -> Tensor:
        """Scores [N, C], from [N, C, 1, 1] and the like too."""
        try:
            y: Tensor = self.graph(*inputs)
        except torch.OutOfMemoryError as error:
            raise TrainingError(f"out of memory: {error}; lower data.batch") from error
        except RuntimeError as error:
            shapes = [list(x.shape) for x in inputs]
            raise DataError(
                f"the model does not run on inputs of shape {shapes}: {str(error).splitlines()[0]}"
            ) from error
        if y.ndim < 2:
            raise ConfigError(
                f"train.output: expected class scores [N, C] in '{self.output}', "
                f"got {list(y.shape)}; name another value of the graph"
            )
        return y.flatten(1)


def loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of class scores (logits) [N, C] with class numbers [N]."""
    return F.cross_entropy(scores.float(), labels)


def errors(scores: Tensor, labels: Tensor) -> Tensor:
    """Number of rows whose highest score is not at their label, as a device scalar."""
    return (scores.argmax(1) != labels).sum()


@torch.no_grad()
def error_rate(model: nn.Module, data: Iterable[Batch], device: torch.device) -> float:
    """Fraction of rows that the model gets wrong."""
    wrong, rows = torch.zeros((), dtype=torch.long, device=device), 0
    for batch in data:
        inputs, labels = to_device(batch, device)
        wrong += errors(model(*inputs), labels)
        rows += len(labels)
    return int(wrong) / max(rows, 1)


def to_device(batch: Batch, device: torch.device) -> tuple[list[Tensor], Tensor]:
    """Inputs in graph order, and labels, as tensors on the device."""
    if batch.labels is None:
        raise TrainingError("data: expected labels, got none; add an array `labels` [N]")
    inputs = [torch.from_numpy(x).to(device, non_blocking=True) for x in batch.inputs.values()]
    labels = torch.from_numpy(batch.labels.astype(np.int64, copy=False))
    return inputs, labels.to(device, non_blocking=True)


def score_value(model: onnx.ModelProto, wanted: str | None = None) -> str:
    """Name of the ONNX value that holds the class scores before any Softmax.

    wanted: the value to take (config: train.output); otherwise the first float output, and where
        the model has none (labels and maps only), the last value of the graph that a Softmax reads.
    """
    producers = {o: node for node in model.graph.node for o in node.output}
    if wanted is not None:
        if wanted not in producers:
            raise ConfigError(
                f"train.output: expected a value of the graph, got '{wanted}'; "
                f"its outputs are {[o.name for o in model.graph.output]}"
            )
        return wanted
    for output in model.graph.output:
        if output.type.tensor_type.elem_type in FLOAT_TYPES:
            return _before_softmax(output.name, producers)
    softmax = [n for n in model.graph.node if n.op_type in ("Softmax", "LogSoftmax")]
    if softmax:
        return str(softmax[-1].input[0])
    raise ConfigError(
        "train.output: the model has no float output to learn on; name a value of the graph, "
        f"such as {[n.output[0] for n in model.graph.node[-3:]]}"
    )


def _before_softmax(value: str, producers: dict[str, onnx.NodeProto]) -> str:
    """The value that the final Softmax reads, where one stands at the end of the graph."""
    name = value
    while (node := producers.get(name)) is not None:
        if node.op_type in ("Softmax", "LogSoftmax"):
            return str(node.input[0])
        if node.op_type not in ("Identity", "Cast", "Squeeze", "Reshape", "Flatten"):
            break
        name = node.input[0]
    return value


def ending_at(graph: fx.GraphModule, value: str) -> fx.GraphModule:
    """The same modules in a graph that ends at an ONNX value and holds nothing after it.

    Raises ConfigError where the graph has no such value.
    """
    cut = fx.Graph()
    ends = [n for n in graph.graph.nodes if n.meta.get("onnx") == value]
    if not ends:
        raise ConfigError(f"train.output: '{value}' is not computed in the training graph")
    copied: dict[fx.Node, fx.Node] = {}
    for node in graph.graph.nodes:
        if node.op == "output":
            break
        copied[node] = cut.node_copy(node, lambda n: copied[n])
    cut.output(copied[ends[-1]])
    ended = fx.GraphModule(graph, cut)
    # placeholders stay, used or not: the caller passes every input of the model
    ended.graph.eliminate_dead_code()
    ended.delete_all_unused_submodules()
    ended.recompile()
    return ended
