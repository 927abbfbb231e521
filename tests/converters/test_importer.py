"""The imported graph: holders, constants, control flow, copies, and what is refused."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from dns_onnx.converters.importer import import_model
from dns_onnx.converters.layers import layers
from dns_onnx.errors import DnsOnnxError, ModelError, UnsupportedOperatorError
from dns_onnx.masks import holders

from .importer_models import assert_same, floats, graph_model, node_model


def node(op_type: str, inputs: list[str], outputs: list[str], **attributes: object):
    return helper.make_node(op_type, inputs, outputs, f"{op_type}_{outputs[0]}", **attributes)


def constant(name: str, array: np.ndarray) -> onnx.NodeProto:
    return node("Constant", [], [name], value=numpy_helper.from_array(array))


def lenet() -> tuple[onnx.ModelProto, list[np.ndarray]]:
    nodes = [
        node("Conv", ["x", "cw", "cb"], ["c"], kernel_shape=[3, 3]),
        node("BatchNormalization", ["c", "bs", "bb", "bm", "bv"], ["n"]),
        node("Relu", ["n"], ["r"]),
        node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "gw", "gb"], ["g"], transB=1),
        node("MatMul", ["g", "mw"], ["m"]),
        node("Add", ["m", "mb"], ["y"]),
    ]
    weights = {
        "cw": floats(4, 1, 3, 3), "cb": floats(4, seed=1), "bs": floats(4, seed=2),
        "bb": floats(4, seed=3), "bm": floats(4, seed=4), "bv": floats(4, seed=5, low=0.5),
        "gw": floats(6, 36, seed=6), "gb": floats(6, seed=7), "mw": floats(6, 3, seed=8),
        "mb": floats(3, seed=9),
    }  # fmt: skip
    return graph_model(nodes, {"x": floats(2, 1, 8, 8)}, weights, ["y"], opset=13)


def test_a_network_equals_onnx_runtime() -> None:
    assert_same(*lenet())


def test_weights_are_held_once_and_statistics_are_not_trained() -> None:
    held = holders(import_model(lenet()[0]))
    assert set(held) == {"cw", "cb", "bs", "bb", "bm", "bv", "gw", "gb", "mw", "mb"}
    frozen = {name for name, holder in held.items() if not holder.weight.requires_grad}
    assert frozen == {"bm", "bv"}


def test_nodes_bear_their_onnx_names() -> None:
    module = import_model(lenet()[0])
    named = [n.meta["onnx"] for n in module.graph.nodes if "onnx" in n.meta]
    assert [n for n in named if len(n) == 1] == ["x", "c", "n", "r", "p", "f", "g", "m", "y"]


def test_layers_name_weight_bias_and_shape() -> None:
    rows = [
        (r.op_type, r.weight, r.bias, r.shape, r.prunable) for r in layers(import_model(lenet()[0]))
    ]
    assert rows == [
        ("Conv", "cw", "cb", (4, 1, 3, 3), True),
        ("Gemm", "gw", "gb", (6, 36), True),
        ("MatMul", "mw", "mb", (6, 3), True),
    ]


def test_a_quantised_weight_is_no_prunable_layer() -> None:
    nodes = [
        node("DequantizeLinear", ["q", "s"], ["w"]),
        node("MatMul", ["x", "w"], ["y"]),
    ]
    weights = {"q": np.arange(-6, 6, dtype=np.int8).reshape(4, 3), "s": np.float32(0.1)}
    model, feeds = graph_model(nodes, {"x": floats(2, 4)}, weights, ["y"], opset=13)
    assert_same(model, feeds)
    (row,) = layers(import_model(model))
    assert (row.weight, row.prunable, row.reason) == ("q", False, "not a float weight")


def test_every_copy_computes_the_same_and_keeps_its_names() -> None:
    model, feeds = lenet()
    module = import_model(model).eval()
    x = torch.from_numpy(feeds[0])
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    copies = [
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(buffer, weights_only=False),
    ]
    for other in copies:
        torch.testing.assert_close(other(x), module(x), rtol=0, atol=0)
        assert layers(other) == layers(module)
        assert list(holders(other)) == list(holders(module))
        metas = [[n.meta.get("onnx") for n in m.graph.nodes] for m in (other, module)]
        assert metas[0] == metas[1]


def test_the_code_is_plain_torch() -> None:
    code = import_model(lenet()[0]).code
    for call in (
        "torch.conv2d(",
        "torch.batch_norm(",
        "torch.max_pool2d(",
        "linear(",
        "torch.add(",
    ):
        assert call in code
    assert "dns_onnx" not in code


def test_it_compiles() -> None:
    model, feeds = lenet()
    module = import_model(model).eval()
    x = torch.from_numpy(feeds[0])
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), module(x))


def test_a_weight_used_twice_is_one_holder() -> None:
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("MatMul", ["a", "w"], ["y"])]
    model, feeds = graph_model(nodes, {"x": floats(2, 3)}, {"w": floats(3, 3)}, ["y"], opset=13)
    module = import_model(model)
    module(torch.from_numpy(feeds[0])).sum().backward()
    assert [p.shape for p in module.parameters()] == [(3, 3)]
    assert len(layers(module)) == 1


CARRIERS = {
    "Identity": [node("Identity", ["w"], ["v"])],
    "Transpose": [node("Transpose", ["t"], ["v"], perm=[1, 0])],
    "Reshape": [constant("s", np.array([4, 3])), node("Reshape", ["f", "s"], ["v"])],
    "Cast": [node("Cast", ["h"], ["v"], to=1)],
    "Squeeze": [constant("s", np.array([0])), node("Squeeze", ["u", "s"], ["v"])],
}
CARRIED = {
    "Identity": ("w", floats(4, 3)),
    "Transpose": ("t", floats(3, 4)),
    "Reshape": ("f", floats(12)),
    "Cast": ("h", floats(4, 3).astype(np.float16)),
    "Squeeze": ("u", floats(1, 4, 3)),
}


@pytest.mark.parametrize("how", CARRIERS)
@pytest.mark.parametrize("source", ["initializer", "constant"])
def test_a_weight_trains_through_layout_operators(how: str, source: str) -> None:
    name, array = CARRIED[how]
    nodes = [*CARRIERS[how], node("MatMul", ["x", "v"], ["y"])]
    weights = {name: array} if source == "initializer" else {}
    if source == "constant":
        nodes.insert(0, constant(name, array))
    model, feeds = graph_model(nodes, {"x": floats(2, 4)}, weights, ["y"], opset=13)
    assert_same(model, feeds)
    module = import_model(model)
    module(torch.from_numpy(feeds[0])).sum().backward()
    (holder,) = holders(module).values()
    assert holder.name == name
    assert holder.weight.grad is not None
    assert bool((holder.weight.grad != 0).all())
    (row,) = layers(module)
    assert (row.weight, row.shape, row.prunable) == (name, array.shape, True)


def test_a_statistic_that_is_a_weight_elsewhere_is_trained_there() -> None:
    nodes = [
        node("BatchNormalization", ["x", "s", "b", "b", "v"], ["n"]),
        node("Mul", ["n", "k"], ["y"]),
    ]
    weights = {"s": floats(3), "b": floats(3, seed=1), "v": floats(3, low=0.5), "k": floats(3, 1)}
    model, feeds = graph_model(nodes, {"x": floats(2, 3, 4)}, weights, ["y"], opset=13)
    assert_same(model, feeds)
    module = import_model(model)
    module(torch.from_numpy(feeds[0])).sum().backward()
    assert holders(module)["b"].weight.grad is not None


def test_shape_arithmetic_becomes_python_integers() -> None:
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["n"], axis=0),
        node("Unsqueeze", ["n", "axes"], ["n1"]),
        node("Concat", ["n1", "rest"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["y"]),
    ]
    weights = {"zero": np.array(0), "axes": np.array([0]), "rest": np.array([-1])}
    model, feeds = graph_model(
        nodes, {"x": floats(2, 3, 4)}, weights, ["y"], opset=13, dynamic=True
    )
    assert_same(model, feeds)
    module = import_model(model)
    targets = [str(n.target) for n in module.graph.nodes if n.op != "placeholder"]
    assert targets[0] == "size"
    assert len(targets) == 3
    torch.compile(module, backend="eager", fullgraph=True)(torch.zeros(5, 3, 4))


def test_static_shapes_are_folded_away() -> None:
    nodes = [node("Shape", ["x"], ["s"]), node("Expand", ["k", "s"], ["e"]),
             node("Mul", ["x", "e"], ["y"])]  # fmt: skip
    model, feeds = graph_model(nodes, {"x": floats(2, 3)}, {"k": np.int64([1])}, ["e"], opset=13)
    del model.graph.node[2]
    module = import_model(model)
    assert [n.op for n in module.graph.nodes] == ["placeholder", "get_attr", "output"]
    assert module(torch.from_numpy(feeds[0])).tolist() == [[1, 1, 1], [1, 1, 1]]


def test_weights_of_image_convolutions_lie_channels_last() -> None:
    nodes = [
        node("Conv", ["x", "image"], ["a"]),
        node("MatMul", ["a", "other"], ["y"]),
    ]
    weights = {"image": floats(4, 3, 3, 3), "other": floats(1, 4, 6, 5, seed=1)}
    model, feeds = graph_model(nodes, {"x": floats(1, 3, 8, 8)}, weights, ["y"], opset=13)
    assert_same(model, feeds)
    held = holders(import_model(model))
    last = {n: h.weight.is_contiguous(memory_format=torch.channels_last) for n, h in held.items()}
    assert last == {"image": True, "other": False}


def test_the_weight_of_a_convolution_over_one_channel_says_that_it_lies_channels_last() -> None:
    nodes = [node("Conv", ["x", "image"], ["y"])]
    model, feeds = graph_model(
        nodes, {"x": floats(2, 1, 8, 8)}, {"image": floats(4, 1, 3, 3)}, ["y"], opset=13
    )
    assert_same(model, feeds)
    found = import_model(model)(torch.from_numpy(feeds[0]))
    assert found.stride(1) == 1


def test_nodes_may_stand_in_any_order() -> None:
    model, feeds = lenet()
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert_same(model, feeds, _runtime_of_sorted())


def _runtime_of_sorted() -> list[np.ndarray]:
    from .importer_models import runtime

    return runtime(*lenet())


def test_a_cycle_is_refused() -> None:
    nodes = [node("Add", ["x", "b"], ["a"]), node("Add", ["a", "x"], ["b"])]
    model, _ = graph_model(nodes, {"x": floats(2)}, {}, ["b"], opset=13)
    with pytest.raises(ModelError, match="without cycles"):
        import_model(model)


def test_a_value_from_nowhere_is_refused() -> None:
    model, _ = graph_model(
        [node("Add", ["x", "lost"], ["y"])], {"x": floats(2)}, {}, ["y"], opset=13
    )
    with pytest.raises(ModelError, match="'lost'"):
        import_model(model)


def test_every_unsupported_node_is_named_at_once() -> None:
    nodes = [
        helper.make_node("Alien", ["x"], ["a"], "first", domain="com.other"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Weird", ["b"], ["y"], "second", domain="com.other"),
    ]
    model, _ = graph_model(nodes, {"x": floats(2)}, {}, ["y"], opset=13, domain="com.other")
    with pytest.raises(UnsupportedOperatorError) as caught:
        import_model(model)
    assert [line.split("'")[1] for line in caught.value.nodes] == ["first", "second"]


def branches(weight_inside: bool) -> tuple[onnx.ModelProto, list[np.ndarray]]:
    def branch(name: str, op_type: str, array: np.ndarray) -> onnx.GraphProto:
        inside = [numpy_helper.from_array(array, f"w_{name}")] if weight_inside else []
        other = f"w_{name}" if weight_inside else "w"
        return helper.make_graph(
            [node(op_type, ["x", other], [f"out_{name}"])], name, [],
            [onnx.ValueInfoProto(name=f"out_{name}")], inside,
        )  # fmt: skip

    chosen = node(
        "If", ["c"], ["y"],
        then_branch=branch("then", "Mul", floats(3, seed=1)),
        else_branch=branch("else", "Add", floats(3, seed=2)),
    )  # fmt: skip
    return graph_model(
        [chosen],
        {"x": floats(2, 3), "c": np.array(True)},
        {} if weight_inside else {"w": floats(3)},
        ["y"],
        opset=16,
    )


@pytest.mark.parametrize("weight_inside", [True, False])
@pytest.mark.parametrize("condition", [True, False])
def test_if_with_weights(weight_inside: bool, condition: bool) -> None:
    model, feeds = branches(weight_inside)
    feeds = [feeds[0], np.array(condition)]
    assert_same(model, feeds)
    module = import_model(model)
    module(torch.from_numpy(feeds[0]), torch.tensor(condition)).sum().backward()
    trained = {n for n, h in holders(module).items() if h.weight.grad is not None}
    inside = "w_then" if condition else "w_else"
    assert trained == {inside if weight_inside else "w"}
    again = pickle.loads(pickle.dumps(module))
    assert list(holders(again)) == list(holders(module))


def test_loop_with_a_weight_inside() -> None:
    body = helper.make_graph(
        [
            node("MatMul", ["h", "w"], ["hw"]),
            node("Tanh", ["hw"], ["h_out"]),
            node("ReduceSum", ["h_out"], ["total"], keepdims=0),
            node("Identity", ["go"], ["go_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", 7, []),
            helper.make_tensor_value_info("go", 9, []),
            helper.make_tensor_value_info("h", 1, [2, 3]),
        ],
        [onnx.ValueInfoProto(name=n) for n in ("go_out", "h_out", "total")],
        [numpy_helper.from_array(floats(3, 3), "w")],
    )
    loop = node("Loop", ["trips", "", "x"], ["last", "totals"], body=body)
    model, feeds = graph_model(
        [loop], {"x": floats(2, 3)}, {"trips": np.array(4)}, ["last", "totals"], opset=16
    )
    assert_same(model, feeds)
    module = import_model(model)
    module(torch.from_numpy(feeds[0]))[0].sum().backward()
    assert holders(module)["w"].weight.grad is not None


def test_strings_pass_through_an_opaque_step() -> None:
    words = np.array(["a", "b"], dtype=object)
    model, feeds = node_model("StringConcat", [words, words[::-1]], opset=20)
    module = import_model(model)
    assert module(*feeds).tolist() == ["ab", "ba"]
    assert module.meta["opaque"] == ["ai.onnx::StringConcat 'node'"]
    assert pickle.loads(pickle.dumps(module))(*feeds).tolist() == ["ab", "ba"]


def test_a_sequence_output_is_a_tuple_of_one() -> None:
    model, feeds = node_model("SequenceConstruct", [floats(2), floats(3)], opset=13)
    model.graph.output[0].CopyFrom(helper.make_tensor_sequence_value_info("y0", 1, None))
    ((first, second),) = import_model(model)(*(torch.from_numpy(f) for f in feeds))
    assert (first.shape, second.shape) == ((2,), (3,))


def test_random_weights_of_an_unreleased_operator_set() -> None:
    model, feeds = node_model("Relu", [floats(3)], opset=13)
    model.opset_import[0].version = 999
    result = import_model(model)(torch.from_numpy(feeds[0]))
    torch.testing.assert_close(result, torch.relu(torch.from_numpy(feeds[0])))


def test_external_weights_are_mapped_and_trained(tmp_path: Path) -> None:
    model, feeds = lenet()
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="data.bin", size_threshold=0)
    module = import_model(path)
    x = torch.from_numpy(feeds[0])
    module(x).sum().backward()
    torch.optim.SGD(module.parameters(), 0.1).step()
    torch.testing.assert_close(import_model(path)(x), import_model(lenet()[0])(x))


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_a_damaged_model_is_refused_cleanly(data: st.DataObject) -> None:
    whole = bytearray(lenet()[0].SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(whole) - 1))
        whole[place] = data.draw(st.integers(0, 255))
    model = onnx.ModelProto()
    try:
        model.ParseFromString(bytes(whole))
    except DecodeError:
        return
    try:
        import_model(model)
    except DnsOnnxError:
        pass


@pytest.mark.gpu
def test_it_moves_to_the_device_and_never_waits_for_it() -> None:
    model, feeds = lenet()
    module = import_model(model).to("cuda")
    x = torch.from_numpy(feeds[0]).cuda()
    expected = import_model(model)(torch.from_numpy(feeds[0]))
    try:
        torch.cuda.set_sync_debug_mode("error")
        result = module(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(result.cpu(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("op", "indices", "attributes"),
    [("ScatterElements", [[0, 1, 1]], {"axis": 0}), ("ScatterND", [[1]], {}),
     ("ScatterElements", [[0, 1, 1]], {"reduction": "add"}),
     ("ScatterND", [[1]], {"reduction": "add"})],
)  # fmt: skip
def test_what_mixed_precision_narrowed_is_scattered_into_what_it_did_not(
    op: str, indices: list, attributes: dict
) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["u"]),
        helper.make_node(op, ["data", "at", "u"], ["y"], **attributes),
    ]
    constants = {"w": floats(4, 3), "at": np.array(indices), "data": floats(2, 3, seed=1)}
    model, feeds = graph_model(nodes, {"x": floats(1, 4)}, constants, ["y"], opset=18)
    module, x = import_model(model), torch.from_numpy(feeds[0])
    with torch.autocast("cpu", torch.bfloat16):
        narrow = module(x)
    torch.testing.assert_close(narrow.float(), module(x), rtol=2e-2, atol=2e-2)
