from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from dns_onnx.attach import TrainingGraph, ending_at, proven_feeding, to_device
from dns_onnx.converters.heads import Head
from dns_onnx.converters.importer import import_model
from dns_onnx.data import Batch
from dns_onnx.errors import ConfigError, DataError
from dns_onnx.masks import holders
from dns_onnx.runtime.batching import Feeding


def branching() -> onnx.ModelProto:
    """y = x @ a, or x @ b where the flag says so, in the body of an If; z = Softmax(x @ c)."""

    def weight(name: str) -> onnx.TensorProto:
        values = np.random.default_rng(len(name)).standard_normal((3, 3)).astype(np.float32)
        return numpy_helper.from_array(values, name)

    def body(name: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(f"{name}.y", TensorProto.FLOAT, ["n", 3])
        node = helper.make_node("MatMul", ["x", f"{name}.w"], [f"{name}.y"])
        return helper.make_graph([node], name, [], [out], [weight(f"{name}.w")])

    nodes = [
        helper.make_node("If", ["flag"], ["y"], then_branch=body("a"), else_branch=body("bb")),
        helper.make_node("MatMul", ["x", "ccc.w"], ["s"]),
        helper.make_node("Softmax", ["s"], ["z"], axis=1),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3]),
              helper.make_tensor_value_info("flag", TensorProto.BOOL, [])]  # fmt: skip
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 3]) for n in "yz"]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [weight("ccc.w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_graph_ends_where_it_is_told_and_leaves_the_whole_as_it_was() -> None:
    graph = import_model(branching())
    x, flag = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor(True)
    y, z = graph(x, flag)
    ended = ending_at(graph, ["s", "y"])
    assert set(holders(ending_at(graph, ["s"]))) == {"ccc.w"}
    s, again = ended(x, flag)
    assert torch.equal(s.softmax(1), z)
    assert torch.equal(again, y)
    copied = copy.deepcopy(graph)  # bodies of control flow are shared, and must stay whole
    assert torch.equal(copied(x, flag)[0], y)
    with pytest.raises(ConfigError, match=r"\['t'\] are not computed"):
        ending_at(graph, ["t"])


def test_images_of_one_channel_are_said_to_be_channels_last() -> None:
    """A convolution of torch on a CPU goes by that, and is faster so."""
    rng, cpu = np.random.default_rng(0), torch.device("cpu")
    for shape, last in [((2, 1, 5, 4), True), ((2, 3, 5, 4), False), ((2, 1, 5), False)]:
        given = rng.random(shape, np.float32)
        (x,), _ = to_device(Batch({"x": given}, {}), cpu)
        np.testing.assert_array_equal(x.numpy(), given)
        assert (x.stride(1) == 1) == last
    (image,), _ = to_device(Batch({"x": rng.random((2, 1, 5, 4), np.float32)}, {}), cpu)
    maps = torch.conv2d(image, torch.ones(3, 1, 2, 2))
    assert maps.is_contiguous(memory_format=torch.channels_last)


def test_rows_that_do_not_fit_are_told_once_and_without_code(
    capfd: pytest.CaptureFixture[str],
) -> None:
    graph = import_model(branching())
    training = TrainingGraph(graph, [Head("s", "s", "values")], Feeding((0, None), None))
    with pytest.raises(DataError, match=r"does not run on inputs of shape \[\[2, 5\], \[\]\]"):
        training(torch.zeros(2, 5), torch.tensor([True]))
    assert capfd.readouterr() == ("", "")


def test_a_token_beyond_the_table_is_told_as_a_fault_of_the_data() -> None:
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", 2])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2, 3])
    table = numpy_helper.from_array(np.ones((5, 3), np.float32), "table")
    node = helper.make_node("Gather", ["table", "ids"], ["y"])
    model = helper.make_model(helper.make_graph([node], "g", [ids], [made], [table]))
    head = Head("y", "y", "values")
    training = TrainingGraph(import_model(model), [head], Feeding((0,), None))
    assert training(torch.tensor([[0, 4]]))[0].shape == (1, 2, 3)
    with pytest.raises(DataError, match=r"beyond a table of the model \(1 to 5\)"):
        training(torch.tensor([[1, 5]]))


def test_the_loss_attaches_before_what_users_read() -> None:
    graph = import_model(branching())
    training = TrainingGraph(graph, [Head("s", "z", "classes")], Feeding((0, None), None))
    x, flag = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([True])
    assert torch.equal(training(x, flag)[0].softmax(1), training.read(x, flag)[0])
    names = {n.split(".")[-2] for n, _ in training.named_parameters()}
    assert len(names) == 1, "weights are shared, not doubled"


def test_pieces_of_a_fixed_batch_give_what_the_whole_would() -> None:
    graph = import_model(branching())
    head = [Head("s", "s", "values")]
    x, flag = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([True])
    whole = TrainingGraph(graph, head, Feeding((0, None), None))(x, flag)[0]
    pieces = TrainingGraph(graph, head, Feeding((0, None), 2))(x, flag)[0]
    torch.testing.assert_close(pieces, whole)
    message = r"does not run on inputs of shape \[\[5, 2\], \[\]\]: .*data\.batch = 1"
    with pytest.raises(DataError, match=message):
        TrainingGraph(graph, head, Feeding((0, None), None))(x[:, :2], flag)


def gru_step() -> onnx.ModelProto:
    """One step of a GRU for one row: a frame [1, 3], a state [2, 1, 4] of which it takes a half."""
    rng = np.random.default_rng(0)
    weights = {"w": (1, 12, 3), "r": (1, 12, 4), "b": (1, 24)}
    nodes = [
        helper.make_node("Split", ["state"], ["s0", "s1"], axis=0, num_outputs=2),
        helper.make_node("Unsqueeze", ["frame", "axis"], ["x"]),
        helper.make_node("GRU", ["x", "w", "r", "b", "", "s0"], ["", "h"], hidden_size=4),
        helper.make_node("Concat", ["h", "s1"], ["after"], axis=0),
        helper.make_node("Squeeze", ["h", "axis"], ["y"]),
    ]
    infos = {"frame": [1, 3], "state": [2, 1, 4], "after": [2, 1, 4], "y": [1, 4]}
    made = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in infos.items()}
    graph = helper.make_graph(
        nodes, "g", [made["frame"], made["state"]], [made["y"], made["after"]],
        [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n)
         for n, s in weights.items()] + [numpy_helper.from_array(np.array([0]), "axis")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_a_graph_that_takes_single_rows_is_mapped_over_all_of_them() -> None:
    torch.manual_seed(0)
    graph = import_model(gru_step())
    for name in "wr":
        held = holders(graph)[name]
        held.attach_mask(torch.rand(held.weight.shape) > 0.5)
    one_by_one = Feeding((0, None), 1)
    heads = [Head("y", "y", "values"), Head("after", "after", "values")]
    inputs = torch.randn(5, 3), torch.randn(5, 2, 1, 4)
    mapped, looped = (
        TrainingGraph(graph, heads, one_by_one),
        TrainingGraph(graph, heads, one_by_one),
    )
    looped.maps = False
    found: list[list[torch.Tensor]] = []
    for model in (mapped, looped):
        outputs = model(*inputs)
        torch.stack([y.square().sum() for y in outputs]).sum().backward()
        found.append([*outputs, holders(graph)["w"].weight.grad, holders(graph)["r"].weight.grad])
        holders(graph)["w"].weight.grad = holders(graph)["r"].weight.grad = None
    assert mapped.maps
    assert [list(y.shape) for y in found[0][:2]] == [[5, 4], [5, 2, 1, 4]]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_rows_that_decide_a_branch_go_in_one_by_one() -> None:
    graph = import_model(branching())
    model = TrainingGraph(graph, [Head("y", "y", "values")], Feeding((0, None), None))
    x, flags = torch.randn(4, 3), torch.tensor([True, False, True, False])
    found = model(x, flags)[0]
    assert model.maps is False
    single = [model(x[i : i + 1], flags[i : i + 1])[0] for i in range(4)]
    torch.testing.assert_close(found, torch.cat(single))


def test_a_file_that_promises_batches_and_cannot_take_them_is_fed_single_rows() -> None:
    rng = np.random.default_rng(0)
    nodes = [  # a reshape that an exporter froze at one row
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2, 3])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])]
    w = rng.standard_normal((6, 4)).astype(np.float32)
    weights = [numpy_helper.from_array(np.array([1, 6]), "shape"), numpy_helper.from_array(w, "w")]
    graph = import_model(
        helper.make_model(
            helper.make_graph(nodes, "g", inputs, outputs, weights),
            opset_imports=[helper.make_opsetid("", 17)],
            ir_version=8,
        )
    )
    x, promised = torch.randn(5, 2, 3), Feeding((0,), None)
    told = proven_feeding(graph, promised, [x[:2]])
    assert told == Feeding((0,), 1)
    found = TrainingGraph(graph, [Head("y", "y", "values")], told)(x)[0]
    torch.testing.assert_close(found, x.flatten(1) @ holders(graph)["w"].weight)
    assert proven_feeding(graph, promised, [x[:2, :1]]) == promised  # one row does not run either
    good = import_model(branching())
    pairs = Feeding((0, None), None)
    assert proven_feeding(good, pairs, [x[:2, 0], torch.tensor([True])]) == pairs
