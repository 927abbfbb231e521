"""What a format needs of the model around the weights: IR version, graph inputs, functions."""

from __future__ import annotations

import json
from collections.abc import Iterable

from onnx import ModelProto

from dns_onnx.converters.encodings.bodies import Form
from dns_onnx.converters.encodings.dense import GRAPH_INPUTS_KEY, IR_KEY
from dns_onnx.converters.encodings.functions import MIN_IR_VERSION, add_functions

# Before this IR version every initializer had to be a graph input as well.
FREE_INITIALIZERS = 4

_IR_VERSIONS = {"csr": MIN_IR_VERSION, "portable": FREE_INITIALIZERS, "coo": 6}


def prepare(
    model: ModelProto, format: str, functions: Iterable[str], form: Form, weights: set[str]
) -> None:
    """Make room for weights stored in `format`, noting in metadata_props what to_dense undoes.

    functions: the operators used, their bodies written for `form`.  weights: names of the tensors
    that change their form; where they are graph inputs too (a caller could then override them) they
    cease to be.
    """
    all_given = _raise_ir(model, format)
    names = {tensor.name for tensor in model.graph.initializer} if all_given else weights
    hidden = hide_inputs(model, names)
    if hidden:
        note = json.dumps(hidden, separators=(",", ":"))
        model.metadata_props.add(key=GRAPH_INPUTS_KEY, value=note)
    if format == "csr":
        add_functions(model, functions, form)


def hide_inputs(model: ModelProto, names: set[str]) -> list[tuple[int, str]]:
    """Remove graph inputs that only give initializers; returns their positions and names."""
    given = {tensor.name for tensor in model.graph.initializer} & names
    hidden = [(i, v.name) for i, v in enumerate(model.graph.input) if v.name in given]
    for index, _ in reversed(hidden):
        del model.graph.input[index]
    return hidden


def _raise_ir(model: ModelProto, format: str) -> bool:
    """Raise the IR version if need be; whether initializers were graph inputs until then.

    ONNX Runtime takes an initializer that is a graph input for a constant only in files of the
    old kind; left in place, such inputs would keep it from folding.
    """
    old, needed = model.ir_version, _IR_VERSIONS[format]
    if old >= needed:
        return False
    model.ir_version = needed
    model.metadata_props.add(key=IR_KEY, value=str(old))
    return bool(old < FREE_INITIALIZERS)
