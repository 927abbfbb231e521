"""The imported graph, cut off where a loss attaches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from dns_onnx.converters.graph import ImportedGraph
from dns_onnx.converters.heads import Head
from dns_onnx.data import Batch
from dns_onnx.errors import ConfigError, DataError, DnsOnnxError, TrainingError
from dns_onnx.runtime.batching import Feeding

Compute = Callable[[list[Any]], list[Any]]

# what a graph raises on rows that it cannot take
DOES_NOT_RUN = (DnsOnnxError, RuntimeError, ValueError, TypeError, IndexError)


class TrainingGraph(nn.Module):
    """The imported graph, ending at the values that the loss attaches to.

    Called with rows of any number: a graph that fixes its batch is run in pieces of that size, the
    last one filled up with repeated rows.  One that takes single rows is mapped over all of them at
    once (`torch.func.vmap`), where two rows have proven that it gives the same.

    heads: the ends of the model.  feeding: how rows go in.
    """

    def __init__(self, graph: fx.GraphModule, heads: Sequence[Head], feeding: Feeding) -> None:
        super().__init__()
        self.heads, self.feeding = tuple(heads), feeding
        self.values = [h.value for h in heads]
        self.maps: bool | None = None  # whether rows can go in at once; not known yet
        self.graph = ending_at(graph, self.values)
        outputs = [h.output for h in heads]
        # what users read may lie behind an activation; where it does not, it is the same graph
        self.readout = self.graph if outputs == self.values else _readable(graph, heads)

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        """The values that the loss attaches to, in the order of the heads."""
        return self._run(self.graph, inputs)

    def read(self, *inputs: Tensor) -> list[Tensor]:
        """The outputs as users read them, behind any final Softmax or Sigmoid."""
        return self._run(self.readout, inputs)

    def _run(self, graph: fx.GraphModule, inputs: Sequence[Tensor]) -> list[Tensor]:
        def compute(arrays: list[Any]) -> list[Any]:
            try:
                return list(graph(*arrays))
            except torch.OutOfMemoryError as error:
                raise TrainingError(f"out of memory: {error}; lower data.batch") from error
            except IndexError as error:  # a token, class or time step that the model does not have
                raise DataError(
                    f"the model does not run on these rows: {str(error).splitlines()[0]}; "
                    "an entry of an integer input is beyond a table of the model "
                    f"({_ranges(arrays)})"
                ) from error
            except RuntimeError as error:
                if "device-side assert" in str(error):  # the device is lost for this process
                    raise DataError(
                        "the device refused an index: an entry of an integer input or of the "
                        "labels is beyond a table or the classes of the model; --device cpu says "
                        "which"
                    ) from error
                shapes = [list(x.shape) for x in arrays]
                raise DataError(
                    f"the model does not run on inputs of shape {shapes}: "
                    f"{str(error).splitlines()[0]}; if it takes one row at a time, set "
                    "data.batch = 1"
                ) from error

        if self.feeding.goes_by_row(inputs):
            if self.maps is None:
                self.maps = self._can_map(compute, inputs)
            if self.maps:
                return _mapped(compute, self.feeding, inputs)
        return self.feeding.run(compute, inputs, torch)

    @torch.no_grad()
    def _can_map(self, compute: Compute, inputs: Sequence[Tensor]) -> bool:
        """Whether mapping over two rows gives what they give one after the other."""
        two = [x[:2] for x in inputs]
        try:
            pairs = zip(
                _mapped(compute, self.feeding, two), self.feeding.run(compute, two, torch),
                strict=True,
            )  # fmt: skip
            return all(_close(a, b) for a, b in pairs)
        except DOES_NOT_RUN:
            return False  # control flow that the values of a row decide, operators that cannot


@torch.no_grad()
def proven_feeding(graph: fx.GraphModule, feeding: Feeding, rows: Sequence[Tensor]) -> Feeding:
    """How rows go in where a file may promise too much: one at a time if two together do not run.

    rows: two rows, as `TrainingGraph` takes them.
    """
    if feeding.piece is not None or feeding.goes_by_row(rows):
        return feeding

    def runs(inputs: Sequence[Tensor]) -> bool:
        try:
            feeding.run(lambda arrays: list(as_outputs(graph(*arrays))), inputs, torch)
        except DOES_NOT_RUN:
            return False
        return True

    if runs(rows) or not runs([x[:1] for x in rows]):
        return feeding  # what fails on a single row too is told where it is used
    return replace(feeding, piece=1)


def as_outputs(found: Any) -> Sequence[Any]:
    """All outputs of a graph, which gives an only one bare."""
    return found if isinstance(found, (tuple, list)) else [found]


def _mapped(compute: Compute, feeding: Feeding, inputs: Sequence[Tensor]) -> list[Tensor]:
    """What `feeding.run` gives for rows that go in one by one, computed for all of them at once."""
    shared = [a is None and len(x) == 1 for x, a in zip(inputs, feeding.axes, strict=True)]

    def one(*row: Tensor) -> tuple[Any, ...]:
        single = [x if s else x[None] for x, s in zip(row, shared, strict=True)]
        return tuple(compute(feeding.row(single, torch)))

    axes = tuple(None if s else 0 for s in shared)
    found = torch.func.vmap(one, in_dims=axes, randomness="different")(*inputs)
    return [y.flatten(0, 1) if y.ndim > 1 and y.shape[1] == 1 else y for y in found]


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or not a.is_floating_point():
        return a.shape == b.shape and bool((a == b).all())
    size = float(b.abs().nan_to_num(0, 0, 0).max()) if b.numel() else 0.0
    return torch.allclose(a, b, rtol=1e-3, atol=1e-4 * max(size, 1e-6), equal_nan=True)


def _ranges(arrays: Sequence[Tensor]) -> str:
    whole = [x for x in arrays if not x.is_floating_point() and x.numel()]
    return ", ".join(f"{int(x.min())} to {int(x.max())}" for x in whole)


def _readable(graph: fx.GraphModule, heads: Sequence[Head]) -> fx.GraphModule:
    """The graph ending at the outputs; at the value itself where an output is no tensor of it."""
    known = {n.meta.get("onnx") for n in graph.graph.nodes}
    return ending_at(graph, [h.output if h.output in known else h.value for h in heads])


def ending_at(graph: fx.GraphModule, values: Sequence[str]) -> fx.GraphModule:
    """The same modules in a graph that returns ONNX values and holds nothing after them.

    Raises ConfigError where the graph has no such value.
    """
    cut = fx.Graph()
    computed = {n.meta.get("onnx"): n for n in graph.graph.nodes if n.op != "output"}
    missing = [v for v in values if v not in computed]
    if missing:
        raise ConfigError(f"train.output: {missing} are not computed in the training graph")
    needed, pending = set[fx.Node](), [computed[v] for v in values]
    while pending:
        node = pending.pop()
        if node not in needed:
            needed.add(node)
            pending += node.all_input_nodes
    copied: dict[fx.Node, fx.Node] = {}
    for node in graph.graph.nodes:
        # placeholders stay, used or not: the caller passes every input of the model
        if node in needed or node.op == "placeholder":
            copied[node] = cut.node_copy(node, lambda n: copied[n])
    cut.output(tuple(copied[computed[v]] for v in values))
    return ImportedGraph(graph, cut)


def to_device(batch: Batch, device: torch.device) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Inputs in graph order, and targets by name, as tensors on the device."""
    inputs = [torch.from_numpy(x).to(device, non_blocking=True) for x in batch.inputs.values()]
    return [_channels_last(x) for x in inputs], {
        name: torch.from_numpy(np.ascontiguousarray(t)).to(device, non_blocking=True)
        for name, t in batch.targets.items()
    }


def _channels_last(x: Tensor) -> Tensor:
    """Images of one channel: the same memory, said to be channels last.

    What a convolution makes of it on a CPU then is, and the backward pass and pooling take half of
    the time; maps of more channels gain nothing.
    """
    if x.ndim != 4 or x.shape[1] != 1 or x.is_cuda or not x.is_contiguous():
        return x
    rows, _, height, width = x.shape
    return x.as_strided((rows, 1, height, width), (height * width, 1, width, 1))


def as_array(value: Tensor) -> NDArray[Any]:
    """A value as NumPy has it; narrow floats as float32."""
    value = value.detach()
    return (value.float() if value.is_floating_point() else value).cpu().numpy()
