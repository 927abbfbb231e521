"""Layers that become sparse operators: Gemm, MatMul and Conv, there and back."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onnx import NodeProto, TensorProto, helper

from dns_onnx.converters.encodings.functions import DOMAIN
from dns_onnx.converters.encodings.sites import Site, Use

ATTRIBUTES_KEY = "dns_onnx.attributes"
INPUTS_KEY = "dns_onnx.inputs"

# A sum v becomes min(max(v < 0 ? slope * v : v, low), high).
_NO_ACTIVATION = {"low": -math.inf, "high": math.inf, "slope": 1.0}

# The kernels refuse more (runtime/csrc/csr.cc).
_MOST_ROWS = 2**26

ShapeOf = Callable[[str], Sequence[int | None] | None]

_PLAIN = ("", "ai.onnx")
_GEMM_DEFAULTS: dict[str, Any] = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}


def sparse_use(site: Site) -> tuple[Use | None, str]:
    """The one reader of the weight that has a sparse operator, or None and why there is none."""
    if site.tensor.data_type != TensorProto.FLOAT:
        return None, "sparse operators compute in float32"
    if len(site.uses) != 1:
        return None, f"{len(site.uses)} nodes read it"
    use = site.uses[0]
    node = use.node
    if node is None:
        return None, "it is an output of the graph"
    if node.op_type not in ("Gemm", "MatMul", "Conv") or node.domain not in _PLAIN:
        return None, f"{node.op_type} has no sparse operator"
    rows = site.tensor.dims[0] if site.tensor.dims else 1
    if max(rows, math.prod(site.tensor.dims) // max(rows, 1)) > _MOST_ROWS:
        return None, f"sparse operators take at most {_MOST_ROWS} rows and columns"
    rank = len(site.tensor.dims)
    if use.index != 1 or (rank < 3 if node.op_type == "Conv" else rank != 2):
        return None, f"{node.op_type} has no sparse operator for input {use.index} of rank {rank}"
    return use, ""


def to_sparse(
    node: NodeProto, operands: Sequence[str], dims: Sequence[int], shape_of: ShapeOf
) -> NodeProto | None:
    """The sparse operator in place of Gemm, MatMul or Conv, every attribute and input written.

    operands: values, col_indices, row_ptr, shape and scale, empty for what is absent.
    dims: of the dense weight.
    None where its padding depends on an input shape that the file does not fix.
    """
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    full = _conv_attributes(given, node, dims, shape_of) if node.op_type == "Conv" else _plain(node)
    if full is None:
        return None
    *matrix, scale = operands
    inputs = [node.input[0], *matrix]
    if node.op_type != "MatMul" or scale:
        inputs.append(node.input[2] if len(node.input) > 2 else "")
    if scale:
        inputs.append(scale)
    sparse = helper.make_node(
        f"Csr{node.op_type}",
        inputs,
        list(node.output),
        name=node.name or None,
        domain=DOMAIN,
        **full,
    )
    if node.doc_string:
        sparse.doc_string = node.doc_string
    sparse.metadata_props.extend(node.metadata_props)
    restored = to_plain(sparse, node.input[1])
    _note_difference(sparse, node, given, restored)
    return sparse


def has_bias(node: NodeProto) -> bool | None:
    """Whether a sparse or plain convolution has a bias; None for other nodes."""
    at = {"Conv": 2, "CsrConv": 5}.get(node.op_type)
    return None if at is None else len(node.input) > at and bool(node.input[at])


def to_plain(sparse: NodeProto, weight: str) -> NodeProto:
    """The standard node that `to_sparse` made the sparse one from, reading the dense weight.

    Without its activation, which export does not write: see take_activation.
    """
    op_type = sparse.op_type.removeprefix("Csr")
    notes = {entry.key: entry.value for entry in sparse.metadata_props}
    inputs = [sparse.input[0], weight, *sparse.input[5:6]]
    wanted = int(notes.get(INPUTS_KEY, 0))
    while len(inputs) > max(wanted, 2) and not inputs[-1]:
        inputs.pop()
    plain = NodeProto(op_type=op_type, input=inputs, output=sparse.output)
    if sparse.name:
        plain.name = sparse.name
    if sparse.doc_string:
        plain.doc_string = sparse.doc_string
    written = {
        a.name: helper.get_attribute_value(a)
        for a in sparse.attribute
        if a.name not in _NO_ACTIVATION
    }
    for name, value in _original_attributes(op_type, written, notes.get(ATTRIBUTES_KEY)):
        plain.attribute.append(helper.make_attribute(name, value))
    plain.metadata_props.extend(
        entry for entry in sparse.metadata_props if entry.key not in (ATTRIBUTES_KEY, INPUTS_KEY)
    )
    return plain


def take_activation(sparse: NodeProto, plain: NodeProto) -> list[NodeProto]:
    """The nodes that compute the sparse node's activation; the plain one is led into them.

    Source: docs/operators-csr.md.
    """
    given = {a.name: a.f for a in sparse.attribute if a.name in _NO_ACTIVATION}
    low, high, slope = ({**_NO_ACTIVATION, **given}[name] for name in _NO_ACTIVATION)
    result, stem = sparse.output[0], f"{sparse.output[0]}.sums"
    nodes: list[NodeProto] = []
    if slope != 1:
        nodes.append(helper.make_node("LeakyRelu", [stem], [result], alpha=slope))
    if (low, high) == (0, math.inf):
        nodes.append(helper.make_node("Relu", [stem], [result]))
    elif (low, high) != (-math.inf, math.inf):
        bounds = [f"{stem}.low", f"{stem}.high"]
        for name, bound in zip(bounds, (low, high), strict=True):
            value = helper.make_tensor("", TensorProto.FLOAT, [], [bound])
            nodes.append(helper.make_node("Constant", [], [name], value=value))
        nodes.append(helper.make_node("Clip", [stem, *bounds], [result]))
    if len(nodes) > 1 and slope != 1:
        nodes[0].output[0] = nodes[-1].input[0] = f"{stem}.sloped"
    if nodes:
        plain.output[0] = stem
    return nodes


def _plain(node: NodeProto) -> dict[str, Any]:
    """Every attribute of Gemm (MatMul has none), as written or by default."""
    if node.op_type == "MatMul":
        return {}
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {name: given.get(name, default) for name, default in _GEMM_DEFAULTS.items()}


def _conv_attributes(
    given: Mapping[str, Any], node: NodeProto, dims: Sequence[int], shape_of: ShapeOf
) -> dict[str, Any] | None:
    """Every attribute of Conv, padding made explicit: a body cannot hold both it and auto_pad."""
    kernel = list(given.get("kernel_shape", dims[2:]))
    ones = [1] * len(kernel)
    strides = list(given.get("strides", ones))
    dilations = list(given.get("dilations", ones))
    auto_pad = given.get("auto_pad", b"NOTSET").decode()
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        shape = shape_of(node.input[0])
        spatial = list(shape[2:]) if shape else [None] * len(kernel)
        pads = _same_pads(auto_pad, kernel, strides, dilations, spatial)
    elif auto_pad == "VALID":
        pads = [0] * (2 * len(kernel))
    else:
        pads = list(given.get("pads", [0] * (2 * len(kernel))))
    if pads is None:
        return None
    return {
        "auto_pad": "NOTSET", "dilations": dilations, "group": given.get("group", 1),
        "kernel_shape": kernel, "pads": pads, "strides": strides,
    }  # fmt: skip


def _same_pads(
    auto_pad: str,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    spatial: Sequence[int | None],
) -> list[int] | None:
    """Pads that keep ceil(size / stride); with a stride of 1 they do not depend on the size."""
    begins, ends = [], []
    for k, stride, dilation, size in zip(kernel, strides, dilations, spatial, strict=True):
        if stride != 1 and not isinstance(size, int):
            return None
        extent = (k - 1) * dilation + 1
        rest = 0 if stride == 1 else ((size or 0) - 1) % stride
        total = max(extent - 1 - rest, 0)
        small, large = total // 2, total - total // 2
        begins.append(small if auto_pad == "SAME_UPPER" else large)
        ends.append(large if auto_pad == "SAME_UPPER" else small)
    return begins + ends


def _original_attributes(
    op_type: str, written: Mapping[str, Any], note: str | None
) -> list[tuple[str, Any]]:
    """Names and values of the plain node's attributes: as noted, or all that are not defaults.

    note: JSON list whose items are a name, or [name, value] where the sparse node holds another.
    """
    if note is not None:
        items = json.loads(note)
        return [(i, written[i]) if isinstance(i, str) else (i[0], i[1]) for i in items]
    return [(name, value) for name, value in written.items() if not _is_default(name, value)]


def _is_default(name: str, value: Any) -> bool:
    if name in _GEMM_DEFAULTS:
        return bool(value == _GEMM_DEFAULTS[name])
    if name == "kernel_shape":
        return False
    if name == "auto_pad":
        return bool(value == b"NOTSET")
    default = 0 if name == "pads" else 1
    return all(item == default for item in (value if isinstance(value, list) else [value]))


def _note_difference(
    sparse: NodeProto, node: NodeProto, given: Mapping[str, Any], restored: NodeProto
) -> None:
    """Note on the sparse node what `to_plain` could not otherwise know of the original."""
    if list(restored.attribute) != list(node.attribute):
        written = {a.name: helper.get_attribute_value(a) for a in sparse.attribute}
        items = [
            name if written.get(name) == value else [name, _plain_value(value)]
            for name, value in given.items()
        ]
        note = json.dumps(items, separators=(",", ":"))
        sparse.metadata_props.add(key=ATTRIBUTES_KEY, value=note)
    if len(restored.input) != len(node.input):
        sparse.metadata_props.add(key=INPUTS_KEY, value=str(len(node.input)))


def _plain_value(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
