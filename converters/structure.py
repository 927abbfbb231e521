"""What the parts of a model must be before anything reads them, ONNX's own C++ code included.

That code takes the sizes that a file states for true: it walks past the end of short data, fills
memory for dimensions that nothing backs, and follows a function that calls itself without end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import chain
from math import prod

from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    defs,
    helper,
)

from dns_onnx.errors import ModelError

# Bodies in bodies: real files nest three or four deep.
_DEEPEST = 32
# Bits of one entry where several share a byte.
_PACKED = {21: 4, 22: 4, 23: 4, 25: 2, 26: 2, 27: 6, 28: 6}
_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
_LARGEST = 2**62
_NEED_TYPES = frozenset({"EyeLike", "RegexFullMatch"})
_LARGE = 1 << 16
_RANK = 8  # more axes than an operator that trusts its axis is ever given


def check_structure(model: ModelProto, where: str, *, large: bool = True) -> list[TensorProto]:
    """Check that a model has a graph, and that its tensors, bodies and functions are sound.

    large: count the bytes of large raw data too, which copies them; else whoever reads them must.
    Returns its tensors with external data, which are looked at where they are read.
    Raises ModelError, naming the part.
    """
    if not model.HasField("graph") or not model.opset_import:
        raise ModelError(
            f"{where}: expected an ONNX model, got no graph or no operator set; "
            "the file is truncated or of another kind"
        )
    if not model.graph.output:
        raise ModelError(f"{where}: expected at least one graph output, got none")
    _check_depth(model, where)
    _check_functions(model, where)
    external = []
    for tensor in chain(tensors(model.graph), *(node_tensors(f.node) for f in model.functions)):
        _check_tensor(tensor, where, large)
        if tensor.data_location == TensorProto.EXTERNAL:
            external.append(tensor)
    return external


def tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Every TensorProto of a graph: initializers and attributes, bodies of control flow too."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    yield from node_tensors(graph.node)


def node_tensors(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    """Every TensorProto in the attributes of nodes."""
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in _sparse_tensors(attribute):
                yield sparse.values
                yield sparse.indices
            for graph in _bodies(attribute):
                yield from tensors(graph)


def all_sound(nodes: Iterable[NodeProto], opsets: Mapping[str, int]) -> bool:
    """Whether nodes, and those in their bodies, have all operands that their schemas count on.

    ONNX's shape inference reads them without a look.
    """
    return all(is_sound(node, opsets) for node in nodes)


def is_sound(node: NodeProto, opsets: Mapping[str, int]) -> bool:
    """Whether a node, and those in its bodies, have all operands that shape inference counts on."""
    if not _has_operands(node, opsets):
        return False
    for attribute in node.attribute:
        if attribute.name in ("axis", "batch_dims") and not -_RANK <= attribute.i <= _RANK:
            return False
        if not all(all_sound(body.node, opsets) for body in _bodies(attribute)):
            return False
    return True


def _has_operands(node: NodeProto, opsets: Mapping[str, int]) -> bool:
    """Whether a node fits its schema, if it has one.

    Resize is exempt: files of opset 11 leave out an operand that only became optional later.
    Those of ai.onnx.ml never fit, and some others: their inference ends the process where an
    operand has no type.
    """
    op_type, domain = node.op_type, node.domain
    if domain == "ai.onnx.ml" or op_type in _NEED_TYPES:
        return False
    if op_type == "Split" and _parts(node) != len(node.output):
        return False
    form = _form(op_type, opsets.get(domain, 1), domain)
    if form is None:
        return True
    inputs, outputs, needed = form
    if len(node.input) not in inputs or len(node.output) not in outputs:
        return False
    return op_type == "Resize" or all(node.input[i] for i in needed)


def _parts(node: NodeProto) -> int:
    """How many results a Split names."""
    return next((a.i for a in node.attribute if a.name == "num_outputs"), len(node.output))


@cache
def _form(op_type: str, opset: int, domain: str) -> tuple[range, range, list[int]] | None:
    """How many operands and results a schema allows, and which operands it must have."""
    try:
        schema = defs.get_schema(op_type, opset, domain)
    except defs.SchemaError:
        return None
    single = defs.OpSchema.FormalParameterOption.Single
    needed = [i for i, formal in enumerate(schema.inputs) if formal.option == single]
    inputs = range(schema.min_input, schema.max_input + 1)
    return inputs, range(schema.min_output, schema.max_output + 1), needed


def byte_length(tensor: TensorProto) -> int:
    """Bytes that a tensor of this type and shape takes; entries of 2, 4 and 6 bits are packed.

    Raises KeyError for a type that has no size of its own.
    """
    count: int = prod(tensor.dims)
    if tensor.data_type in _PACKED:
        return (count * _PACKED[tensor.data_type] + 7) // 8
    return count * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _sparse_tensors(attribute: AttributeProto) -> Iterator[SparseTensorProto]:
    if attribute.HasField("sparse_tensor"):
        yield attribute.sparse_tensor
    yield from attribute.sparse_tensors


def _bodies(attribute: AttributeProto) -> list[GraphProto]:
    own = [attribute.g] if attribute.HasField("g") else []
    return [*own, *attribute.graphs] if attribute.graphs else own


def _check_tensor(tensor: TensorProto, where: str, large: bool) -> None:
    at = f"{where}: tensor '{tensor.name}'"
    dims = list(tensor.dims)
    if min(dims, default=0) < 0:
        raise ModelError(f"{at}: expected dimensions of at least 0, got {dims}")
    if prod(dims) > _LARGEST:
        raise ModelError(f"{at}: expected a size that memory can hold, got dimensions {dims}")
    try:
        wanted = byte_length(tensor)
    except KeyError:
        raise ModelError(
            f"{at}: expected an element type of ONNX, got number {tensor.data_type}"
        ) from None
    if tensor.data_location == TensorProto.EXTERNAL:
        return
    if tensor.HasField("raw_data") and tensor.data_type != TensorProto.STRING:
        if wanted > _LARGE and not large:
            return
        got, unit = len(tensor.raw_data), "bytes"
    else:
        field = helper.tensor_dtype_to_field(tensor.data_type)
        got, unit, wanted = len(getattr(tensor, field)), "numbers", _numbers(tensor)
    if got != wanted:
        raise ModelError(
            f"{at}: expected {wanted} {unit} for dimensions {dims}, got {got}; the file is damaged"
        )


def _numbers(tensor: TensorProto) -> int:
    """How many numbers of its typed field a tensor takes."""
    count: int = prod(tensor.dims)
    bits = _PACKED.get(tensor.data_type, 8)
    if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        return 2 * count
    return -(-count * bits // 8) if bits in (2, 4) else count


def _check_depth(model: ModelProto, where: str) -> None:
    nodes: list[Sequence[NodeProto]] = [model.graph.node, *(f.node for f in model.functions)]
    for _ in range(_DEEPEST):
        nodes = [g.node for group in nodes for n in group for a in n.attribute for g in _bodies(a)]
        if not nodes:
            return
    raise ModelError(f"{where}: expected bodies at most {_DEEPEST} deep in one another, got more")


def _check_functions(model: ModelProto, where: str) -> None:
    """Refuse functions that call themselves, by way of others or not, and two of one name."""
    functions = {_key(f): f for f in model.functions}
    if len(functions) != len(model.functions):
        raise ModelError(f"{where}: expected one local function a name, got two of one")
    calls = {key: {k for k in _called(f) if k in functions} for key, f in functions.items()}
    while calls:
        leaves = {key for key, called in calls.items() if not called & calls.keys()}
        if not leaves:
            raise ModelError(
                f"{where}: expected local functions that end, "
                f"got some that call themselves: {sorted(name for _, name, _ in calls)}"
            )
        calls = {key: called for key, called in calls.items() if key not in leaves}


def _key(function: FunctionProto) -> tuple[str, str, str]:
    return function.domain, function.name, function.overload


def _called(function: FunctionProto) -> Iterator[tuple[str, str, str]]:
    groups: list[Sequence[NodeProto]] = [function.node]
    while groups:
        for node in groups.pop():
            yield node.domain, node.op_type, node.overload
            groups += [body.node for a in node.attribute for body in _bodies(a)]
