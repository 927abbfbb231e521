"""What the ends of a model are: class scores, probabilities, or other numbers.

Training attaches its loss before a final Softmax or Sigmoid, where gradients are well behaved;
metrics read what comes out of the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from onnx import ModelProto, NodeProto

from dns_onnx.converters.encodings.sites import FLOAT_TYPES
from dns_onnx.errors import ConfigError

Kind = Literal["classes", "probabilities", "values"]
_SOFT = ("Softmax", "LogSoftmax")
_PASSING = ("Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Dropout")
_SAYS_CLASSES = re.compile(
    r"(?i)(?<![a-z])(logits?|probs?|probabilit\w+|class\w*|cls|scores?)(?![a-z])"
)


@dataclass(frozen=True)
class Head:
    """One end of a model.

    value: the ONNX value that a loss attaches to.  output: the value that users read; the same
    where no activation lies between.  kind: what `value` holds: class scores along `axis`, one
    score for yes or no each (before a Sigmoid), or plain numbers.
    """

    value: str
    output: str
    kind: Kind
    axis: int = 1


def heads(model: ModelProto, names: Sequence[str] = (), *, every: bool = False) -> list[Head]:
    """The ends of a model that matter.

    names: these values of the graph, whatever they are.  Otherwise the first float output, or with
    `every` all of them; and where a model has none (labels and maps only), the last value that a
    Softmax reads, or an ArgMax that makes the output.
    Raises ConfigError.
    """
    producers = {o: node for node in model.graph.node for o in node.output}
    outputs = [o.name for o in model.graph.output]
    unknown = [n for n in names if n not in producers]
    if unknown:
        raise ConfigError(
            f"train.output: expected values of the graph, got {unknown}; its outputs are {outputs}"
        )
    floats = [o.name for o in model.graph.output if o.type.tensor_type.elem_type in FLOAT_TYPES]
    chosen = list(names) or (floats if every else floats[:1])
    if chosen:
        return [_head(model, name, producers) for name in chosen]
    softmax = [n for n in model.graph.node if n.op_type in _SOFT]
    if softmax:
        return [Head(softmax[-1].input[0], outputs[0], "classes", _axis(softmax[-1], model))]
    numbers = [n for n in model.graph.node if n.op_type == "ArgMax" and n.output[0] in outputs]
    if numbers:
        return [_head(model, numbers[0].input[0], producers)]
    raise ConfigError(
        "train.output: the model has no float output to learn on; name a value of the graph, "
        f"such as {[n.output[0] for n in model.graph.node[-3:]]}"
    )


def _head(model: ModelProto, name: str, producers: dict[str, NodeProto]) -> Head:
    """The end that a value is, followed back to a final activation and on to what reads it."""
    back = name
    while (node := producers.get(back)) is not None:
        if node.op_type in _SOFT:
            return Head(node.input[0], name, "classes", _axis(node, model))
        if node.op_type == "Sigmoid":
            return Head(node.input[0], name, "probabilities")
        if node.op_type not in _PASSING:
            break
        back = node.input[0]
    for node in _readers(model, name):
        if node.op_type in (*_SOFT, "ArgMax"):
            return Head(name, name, "classes", _axis(node, model))
        if node.op_type == "Sigmoid":
            return Head(name, name, "probabilities")
    return Head(name, name, "classes" if _says_classes(model, name) else "values")


def _readers(model: ModelProto, name: str) -> Iterable[NodeProto]:
    return (node for node in model.graph.node if name in node.input)


def _says_classes(model: ModelProto, name: str) -> bool:
    """Whether an only output [N, C] bears a name that speaks of classes."""
    if [o.name for o in model.graph.output] != [name] or not _SAYS_CLASSES.search(name):
        return False
    dims = model.graph.output[0].type.tensor_type.shape.dim
    return len(dims) == 2 and dims[1].dim_value > 1


def _axis(node: NodeProto, model: ModelProto) -> int:
    """The axis that scores lie along."""
    given = next((a.i for a in node.attribute if a.name == "axis"), None)
    if given is not None:
        return int(given)
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 13)
    if node.op_type == "ArgMax":
        return 0
    return -1 if opset >= 13 else 1
