"""Damage to ONNX models: to their bytes, and to their structure."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import numpy as np
from google.protobuf import message
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    defs,
    helper,
    numpy_helper,
)

NUMBERS = (0, 1, -1, 2, -2, 7, 127, 255, 65536, 2**31 - 1, -(2**31), 2**40, 2**63 - 1, -(2**63))
OPERATORS = sorted({schema.name for schema in defs.get_all_schemas()})
DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "ai.onnx.preview", "nobody", "dns_onnx")
LOCATIONS = (
    "../secret.bin", "/etc/passwd", "sub/../../secret.bin", "link.bin", "w.bin", "", ".", "..",
    "w.bin\0", "C:\\secret.bin", "~/secret", "file:///etc/passwd", "folder", "a" * 5000,
    "/dev/zero",
)  # fmt: skip


def damage(model: ModelProto, seed: int) -> bytes:
    """The bytes of the model with one to four faults, drawn from the seed."""
    rng = random.Random(seed)
    broken = ModelProto()
    broken.CopyFrom(model)
    try:
        for _ in range(rng.randint(1, 4)):
            _FAULTS[rng.randrange(len(_FAULTS))](broken, rng)
        return broken.SerializeToString()
    except message.Error:  # nested too deep for protobuf to write
        return damage_bytes(model.SerializeToString(), seed)


def damage_bytes(data: bytes, seed: int) -> bytes:
    """The bytes with some flipped, cut off, dropped, repeated or put in, drawn from the seed."""
    rng = random.Random(seed)
    broken = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(broken) + 1)
        size = rng.choice((1, 1, 2, 8, 64))
        kind = rng.randrange(6)
        if kind == 0:
            del broken[at:]
        elif kind == 1:
            del broken[at : at + size]
        elif kind == 2:
            broken[at:at] = broken[at : at + size]
        elif kind == 3:
            broken[at:at] = rng.randbytes(size)
        elif kind == 4:
            broken[at : at + size] = bytes([rng.choice((0, 1, 127, 128, 255))]) * size
        elif at < len(broken):
            broken[at] ^= 1 << rng.randrange(8)
    return bytes(broken)


def _graphs(model: ModelProto) -> list[GraphProto]:
    found, pending = [], [model.graph]
    while pending:
        graph = pending.pop()
        found.append(graph)
        for attribute in (a for node in graph.node for a in node.attribute):
            if attribute.HasField("g"):
                pending.append(attribute.g)
    return found


def _graph(model: ModelProto, rng: random.Random) -> GraphProto:
    return rng.choice(_graphs(model))


def _node(model: ModelProto, rng: random.Random) -> NodeProto:
    graph = _graph(model, rng)
    return rng.choice(graph.node) if graph.node else graph.node.add()


def _names(graph: GraphProto) -> list[str]:
    made = [name for node in graph.node for name in node.output]
    return [*made, *(i.name for i in graph.input), *(t.name for t in graph.initializer), "", "none"]


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    for graph in _graphs(model):
        yield from graph.initializer
        for attribute in (a for node in graph.node for a in node.attribute):
            if attribute.HasField("t"):
                yield attribute.t


def _tensor(model: ModelProto, rng: random.Random) -> TensorProto:
    found = list(_tensors(model))
    return rng.choice(found) if found else model.graph.initializer.add(name="new")


def _drop_node(model: ModelProto, rng: random.Random) -> None:
    nodes = _graph(model, rng).node
    if nodes:
        del nodes[rng.randrange(len(nodes))]


def _repeat_node(model: ModelProto, rng: random.Random) -> None:
    graph = _graph(model, rng)
    if graph.node:
        graph.node.append(rng.choice(graph.node))


def _shuffle_nodes(model: ModelProto, rng: random.Random) -> None:
    nodes = _graph(model, rng).node
    kept = list(nodes)
    rng.shuffle(kept)
    copies = [NodeProto.FromString(node.SerializeToString()) for node in kept]
    del nodes[:]
    nodes.extend(copies)


def _other_input(model: ModelProto, rng: random.Random) -> None:
    graph = _graph(model, rng)
    if graph.node:
        node = rng.choice(graph.node)
        name = rng.choice(_names(graph))
        if node.input and rng.random() < 0.7:
            node.input[rng.randrange(len(node.input))] = name
        else:
            node.input.append(name)


def _fewer_inputs(model: ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    if node.input:
        del node.input[rng.randrange(len(node.input)) :]


def _other_output(model: ModelProto, rng: random.Random) -> None:
    graph = _graph(model, rng)
    if graph.node:
        node = rng.choice(graph.node)
        name = rng.choice(_names(graph))
        kind = rng.randrange(3)
        if kind == 0 or not node.output:
            node.output.append(name)
        elif kind == 1:
            node.output[rng.randrange(len(node.output))] = name
        else:
            del node.output[:]


def _other_operator(model: ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    node.op_type = rng.choice((*OPERATORS, "", "Nothing", "x" * 1000))


def _other_domain(model: ModelProto, rng: random.Random) -> None:
    _node(model, rng).domain = rng.choice(DOMAINS)


def _other_name(model: ModelProto, rng: random.Random) -> None:
    _node(model, rng).name = rng.choice(("", "class", "\n", "a.b", "forward", "π", "__class__"))


def _attribute_number(model: ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    if not node.attribute:
        return
    attribute = rng.choice(node.attribute)
    number = rng.choice(NUMBERS)
    if attribute.ints and rng.random() < 0.8:
        if rng.random() < 0.5:
            attribute.ints[rng.randrange(len(attribute.ints))] = number
        elif rng.random() < 0.5:
            attribute.ints.append(number)
        else:
            del attribute.ints[rng.randrange(len(attribute.ints)) :]
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = rng.choice((0.0, -1.0, 1e38, float("nan"), float("inf")))
    elif attribute.type == AttributeProto.STRING:
        attribute.s = rng.choice((b"", b"\xff\xfe", b"nonsense", b"SAME_UPPER", b"x" * 1000))
    else:
        attribute.i = number


def _attribute_kind(model: ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    if node.attribute:
        rng.choice(node.attribute).type = rng.choice(AttributeProto.AttributeType.values())


def _attribute_set(model: ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    known = [a for s in defs.get_all_schemas() if s.name == node.op_type for a in s.attributes]
    name = rng.choice([*known, "axis", "nothing"])
    if rng.random() < 0.3 and node.attribute:
        del node.attribute[rng.randrange(len(node.attribute))]
    else:
        values = (rng.choice(NUMBERS), [rng.choice(NUMBERS)] * rng.randint(1, 4), "text", 0.5)
        node.attribute.append(helper.make_attribute(name, rng.choice(values)))


def _tensor_dims(model: ModelProto, rng: random.Random) -> None:
    tensor = _tensor(model, rng)
    if tensor.dims and rng.random() < 0.7:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(NUMBERS)
    elif rng.random() < 0.5:
        tensor.dims.append(rng.choice(NUMBERS))
    else:
        del tensor.dims[:]


def _tensor_type(model: ModelProto, rng: random.Random) -> None:
    _tensor(model, rng).data_type = rng.choice((*range(30), 99, -1))


def _tensor_data(model: ModelProto, rng: random.Random) -> None:
    tensor = _tensor(model, rng)
    data = tensor.raw_data
    kind = rng.randrange(4)
    if kind == 0:
        tensor.raw_data = data[: len(data) // 2]
    elif kind == 1:
        tensor.raw_data = data + b"\x01" * 8
    elif kind == 2:
        tensor.ClearField("raw_data")
        tensor.float_data.extend([1.0, 2.0])
        tensor.int64_data.append(rng.choice(NUMBERS))
    else:
        tensor.string_data.append(b"\xff")


def _tensor_values(model: ModelProto, rng: random.Random) -> None:
    """Other numbers of the same type and shape: sizes and axes among them."""
    tensor = _tensor(model, rng)
    if tensor.data_location == TensorProto.EXTERNAL:  # in a file that is not here
        return
    try:
        array = numpy_helper.to_array(tensor).copy()
        if array.dtype.kind in "iuf" and array.size:
            with np.errstate(all="ignore"):
                array.reshape(-1)[rng.randrange(array.size)] = np.array(rng.choice(NUMBERS)).astype(
                    array.dtype
                )
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    except (ValueError, TypeError, OverflowError, MemoryError):
        tensor.ClearField("raw_data")


def _tensor_outside(model: ModelProto, rng: random.Random) -> None:
    tensor = _tensor(model, rng)
    tensor.data_location = TensorProto.EXTERNAL
    if rng.random() < 0.7:
        tensor.ClearField("raw_data")
    if rng.random() < 0.9:
        tensor.external_data.add(key="location", value=rng.choice(LOCATIONS))
    for key in ("offset", "length"):
        if rng.random() < 0.5:
            number = rng.choice((*NUMBERS, "x", "", 10**30))
            tensor.external_data.add(key=key, value=str(number))


def _tensor_gone(model: ModelProto, rng: random.Random) -> None:
    graph = _graph(model, rng)
    if graph.initializer:
        del graph.initializer[rng.randrange(len(graph.initializer))]


def _tensor_name(model: ModelProto, rng: random.Random) -> None:
    _tensor(model, rng).name = rng.choice(_names(_graph(model, rng)))


def _sparse(model: ModelProto, rng: random.Random) -> None:
    tensor = _tensor(model, rng)
    sparse = model.graph.sparse_initializer.add(dims=[rng.choice(NUMBERS), rng.choice(NUMBERS)])
    values = np.ones(2, np.float32)
    sparse.values.CopyFrom(numpy_helper.from_array(values, tensor.name or "s"))
    places = np.array([rng.choice(NUMBERS), rng.choice(NUMBERS)])
    sparse.indices.CopyFrom(numpy_helper.from_array(places, "places"))


def _port(model: ModelProto, rng: random.Random) -> None:
    graph = _graph(model, rng)
    infos = rng.choice((graph.input, graph.output, graph.value_info))
    kind = rng.randrange(6)
    if not infos or kind == 0:
        infos.add(name=rng.choice(_names(graph)))
        return
    info = rng.choice(infos)
    if kind == 1:
        infos.remove(info)
    elif kind == 2:
        info.name = rng.choice(_names(graph))
    elif kind == 3:
        info.type.tensor_type.elem_type = rng.choice((*range(30), 99))
    elif kind == 4:
        info.type.tensor_type.shape.dim.add(dim_value=rng.choice(NUMBERS))
    else:
        dims = info.type.tensor_type.shape.dim
        if dims:
            dims[rng.randrange(len(dims))].dim_value = rng.choice(NUMBERS)
        else:
            info.type.sequence_type.elem_type.tensor_type.elem_type = 1


def _opset(model: ModelProto, rng: random.Random) -> None:
    kind = rng.randrange(4)
    if kind == 0:
        del model.opset_import[:]
    elif kind == 1:
        version = rng.choice((*range(30), *NUMBERS))
        model.opset_import.add(domain=rng.choice(DOMAINS), version=version)
    elif kind == 2 and model.opset_import:
        rng.choice(model.opset_import).version = rng.choice((*range(30), *NUMBERS))
    else:
        model.ir_version = rng.choice(NUMBERS)


def _function(model: ModelProto, rng: random.Random) -> None:
    """A local function that calls itself, another, or a node of the graph's kind."""
    node = _node(model, rng)
    called = rng.choice(("F", "G", node.op_type or "F"))
    domain = rng.choice(("local", node.domain))
    inputs, outputs = list(node.input) or ["a"], list(node.output) or ["b"]
    body = helper.make_node(called, inputs, outputs, domain=domain)
    function = helper.make_function(
        "local", rng.choice(("F", "G")), inputs, outputs, [body], list(model.opset_import)
    )
    model.functions.append(function)
    node.op_type, node.domain = function.name, "local"
    if rng.random() < 0.8:
        model.opset_import.add(domain="local", version=1)


def _nested(model: ModelProto, rng: random.Random) -> None:
    """If in If in If, deep enough to end a recursion."""
    outputs = [output.name for output in model.graph.output][:1] or ["y"]
    body = GraphProto(name="inner")
    body.node.add(op_type="Constant", output=["c"]).attribute.append(
        helper.make_attribute("value_float", 1.0)
    )
    body.output.add(name="c")
    for level in range(rng.choice((2, 30, 120))):
        outer = GraphProto(name=f"level{level}")
        node = outer.node.add(op_type="If", input=["cond"], output=["c"])
        for branch in ("then_branch", "else_branch"):
            kept = body if branch == "then_branch" else GraphProto(name="none")
            attribute = node.attribute.add(name=branch, type=AttributeProto.GRAPH)
            attribute.g.CopyFrom(kept)
        outer.output.add(name="c")
        body = outer
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "cond"))
    inner = model.graph.node.add()
    inner.CopyFrom(body.node[0])
    inner.output[0] = outputs[0]


def _body_in_body(model: ModelProto, rng: random.Random) -> None:
    copy = GraphProto()
    copy.CopyFrom(model.graph)
    if copy.ByteSize() < 100_000:
        node = _node(model, rng)
        name = rng.choice(("body", "then_branch", "else_branch"))
        attribute = node.attribute.add(name=name, type=AttributeProto.GRAPH)
        attribute.g.CopyFrom(copy)
        if rng.random() < 0.7:
            node.op_type = rng.choice(("Loop", "Scan", "If", "SequenceMap"))


_FAULTS: list[Callable[[ModelProto, random.Random], None]] = [
    _drop_node, _repeat_node, _shuffle_nodes, _other_input, _fewer_inputs, _other_output,
    _other_operator, _other_domain, _other_name, _attribute_number, _attribute_number,
    _attribute_kind, _attribute_set, _attribute_set, _tensor_dims, _tensor_dims, _tensor_type,
    _tensor_data, _tensor_values, _tensor_values, _tensor_outside, _tensor_gone, _tensor_name,
    _sparse, _port, _port, _opset, _function, _nested, _body_in_body,
]  # fmt: skip
