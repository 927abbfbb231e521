"""The operators of the `dns_onnx` domain as model-local functions.

Every runtime without the native library runs these.  Source: docs/operators-csr.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from string import ascii_lowercase

from onnx import FunctionProto, ModelProto, parser

from dns_onnx.converters.encodings.bodies import PLAIN, Form, body

DOMAIN = "dns_onnx"
VERSION = 1

# A body is written in the operator set that its model imports: the checker and ONNX Runtime
# refuse a mix.  The operators used read the same from 11 (CumSum, ScatterElements) upward.
MIN_OPSET = 11

# Model-local functions are part of the format since this IR version.
MIN_IR_VERSION = 8


@lru_cache(maxsize=64)
def function(name: str, opset: int, form: Form = PLAIN) -> FunctionProto:
    """The model-local function `name` for a model that imports operator set `opset`.

    Its inner values are renamed to single letters: every model carries the body, and a small net
    would notice.
    """
    lines = body(name, form).splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    made: FunctionProto = parser.parse_function(
        f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]>{text}'
    )
    short = _short_names(made)
    for node in made.node:
        if not node.domain:
            node.ClearField("domain")  # the parser writes the default out: two bytes a node
        for attribute in node.attribute:
            if attribute.HasField("t"):
                attribute.t.ClearField("name")
        node.input[:] = [short.get(value, value) for value in node.input]
        node.output[:] = [short.get(value, value) for value in node.output]
    return made


def _short_names(made: FunctionProto) -> dict[str, str]:
    """A letter, or a letter and a digit, for each value that is not an input or output."""
    fixed = {*made.input, *made.output}
    inner = [name for node in made.node for name in node.output if name not in fixed]
    free = (letter + digit for digit in ("", *"0123456789") for letter in ascii_lowercase)
    return dict(zip(inner, free, strict=False))


def functions_bytes(names: Iterable[str], opset: int, form: Form) -> int:
    """Bytes that the functions named add to a model."""
    return sum(4 + function(name, opset, form).ByteSize() for name in sorted(set(names)))


def add_functions(model: ModelProto, names: Iterable[str], form: Form) -> None:
    """Put the functions named into the model with the import of the domain."""
    opset = default_opset(model)
    present = {(f.domain, f.name) for f in model.functions}
    for name in sorted(set(names)):
        if (DOMAIN, name) not in present:
            model.functions.append(function(name, opset, form))
    if all(entry.domain != DOMAIN for entry in model.opset_import):
        model.opset_import.add(domain=DOMAIN, version=VERSION)


def default_opset(model: ModelProto) -> int:
    """The version of the standard operators that the model imports; 0 if it imports none."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
