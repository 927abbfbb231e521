"""What stays of a pruned layer is fitted to what the layer gave before."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from dns_onnx.attach import TrainingGraph
from dns_onnx.converters.heads import Head
from dns_onnx.converters.importer import import_model
from dns_onnx.fit import reconstruct
from dns_onnx.fit.reconstruct import Reconstruction, enough_rows
from dns_onnx.fit.terms import Origin
from dns_onnx.fit.watch import Watch
from dns_onnx.masks import Masked, holders
from dns_onnx.runtime.batching import Feeding

pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tensor(name: str, *shape: int) -> onnx.TensorProto:
    rng = np.random.default_rng(len(name) + sum(shape))
    return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)


def model(
    nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto], *size: int
) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *size])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def perceptron() -> onnx.ModelProto:
    """Two Gemms with a Relu between; the second weight is used twice."""
    node = helper.make_node
    return model(
        [node("Gemm", ["x", "a", "ab"], ["h"], transB=1), node("Relu", ["h"], ["r"]),
         node("Gemm", ["r", "b", "bb"], ["s"], transB=1), node("Relu", ["s"], ["t"]),
         node("Gemm", ["t", "b", "bb"], ["y"], transB=1)],
        [tensor("a", 12, 6), tensor("ab", 12), tensor("b", 12, 12), tensor("bb", 12)], 6,
    )  # fmt: skip


def convolutional() -> onnx.ModelProto:
    """Conv, Relu, ConvTranspose, and a MatMul with the weight on the right."""
    node = helper.make_node
    return model(
        [node("Conv", ["x", "c", "cb"], ["h"], pads=[1, 1, 1, 1]), node("Relu", ["h"], ["r"]),
         node("ConvTranspose", ["r", "d"], ["s"], strides=[2, 2]), node("Relu", ["s"], ["t"]),
         node("MatMul", ["t", "m"], ["y"])],
        [tensor("c", 8, 3, 3, 3), tensor("cb", 8), tensor("d", 8, 4, 2, 2), tensor("m", 10, 6)],
        3, 5, 5,
    )  # fmt: skip


def attached(
    made: onnx.ModelProto, piece: int | None = None
) -> tuple[TrainingGraph, dict[str, Masked]]:
    """The net with masks on the weights, all kept."""
    graph = import_model(made)
    held = holders(graph)
    for holder in held.values():
        if holder.weight.ndim > 1:
            holder.attach_mask()
    return TrainingGraph(graph, [Head("y", "y", "values")], Feeding((0,), piece)), held


def cut(held: dict[str, Masked], share: float) -> None:
    """Cut this share of each weight, at random."""
    for i, holder in enumerate(held.values()):
        if holder.mask is not None:
            holder.mask.copy_(drawn(*holder.weight.shape, seed=i).sigmoid() > share)


def alike(rows: int, *size: int) -> Tensor:
    """Rows that lie in a plane: inputs with much in common, as those of trained nets have."""
    plane = drawn(2, math.prod(size), seed=8)
    return (drawn(rows, 2, seed=rows) @ plane).view(rows, *size)


@torch.no_grad()
def error(net: TrainingGraph, x: Tensor, want: Tensor) -> float:
    return float((net(x)[0] - want).norm() / want.norm())


@pytest.mark.parametrize(
    ("made", "size"), [(perceptron, (6,)), (convolutional, (3, 5, 5))],
    ids=["a weight used twice", "convolutions"],
)  # fmt: skip
@pytest.mark.parametrize("piece", [None, 1], ids=["all rows at once", "row by row"])
def test_a_pruned_net_comes_back_to_what_the_original_gave(
    made, size: tuple[int, ...], piece: int | None
) -> None:
    net, held = attached(made(), piece)
    rows, fresh = alike(200, *size), alike(100, *size)
    with torch.no_grad():
        want = net(fresh)[0].clone()
    fit = Reconstruction(net, held, [rows])
    cut(held, 0.3)
    weights = {n: h.weight.detach().clone() for n, h in held.items()}
    masks = {n: h.mask.clone() for n, h in held.items() if h.mask is not None}
    before = error(net, fresh, want)
    fit()
    assert error(net, fresh, want) < 0.75 * before
    for name, mask in masks.items():
        assert torch.equal(held[name].mask, mask)
        assert torch.equal(held[name].weight[~mask], weights[name][~mask])  # to splice back
        assert not torch.equal(held[name].weight[mask], weights[name][mask])


def test_rows_together_or_one_by_one_give_the_same_weights() -> None:
    found = []
    for piece in (None, 1):
        net, held = attached(convolutional(), piece)
        rows = drawn(20, 3, 5, 5)
        fit = Reconstruction(net, held, [rows])
        cut(held, 0.3)
        fit()
        found.append({n: h.effective() for n, h in held.items()})
    assert found[0].keys() == found[1].keys()
    # in stages, a layer sees what its own stage did not mend yet; one layer a stage is the same
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-2, atol=1e-3)


def test_a_graph_that_was_compiled_is_watched_all_the_same() -> None:
    net, held = attached(perceptron(), None)
    expected = Reconstruction(net, held, [drawn(40, 6)]).order
    net.graph.compile(backend="eager")
    assert Reconstruction(net, held, [drawn(40, 6)]).order == expected != []
    assert net.graph._compiled_call_impl is not None


def test_what_is_gone_is_not_known_any_more() -> None:
    """Each pass makes its weights anew on a device; none of them may be held for the next."""
    holder = Masked("w", drawn(4, 4))
    watch = Watch({"w": holder}, lambda call: None)
    value = drawn(4, 4)
    watch._know(value, Origin(holder))
    assert watch.owner(value.T) == Origin(holder)
    address = value.untyped_storage().data_ptr()
    del value
    assert watch.known[address][1].expired()


def test_what_nothing_was_cut_from_stays() -> None:
    net, held = attached(convolutional())
    before = {n: h.effective() for n, h in held.items()}
    Reconstruction(net, held, [drawn(50, 3, 5, 5)])()
    for name, holder in held.items():
        torch.testing.assert_close(holder.effective(), before[name], rtol=1e-3, atol=1e-3)


def test_a_column_that_another_can_stand_for_is_not_missed() -> None:
    """Two equal inputs: with one of their weights cut, the other takes over exactly."""
    net, held = attached(
        model([helper.make_node("MatMul", ["x", "w"], ["y"])], [tensor("w", 4, 3)], 4)
    )
    rows = drawn(300, 4)
    rows[:, 3] = rows[:, 2]
    with torch.no_grad():
        want = net(rows)[0].clone()
    fit = Reconstruction(net, held, [rows])
    held["w"].mask[3] = False
    fit()
    assert error(net, rows, want) < 0.02


def test_a_cut_bias_stays_cut_and_a_kept_one_is_fitted() -> None:
    net, held = attached(perceptron())
    bias = held["ab"]
    bias.attach_mask(torch.arange(12) < 6)
    fit = Reconstruction(net, held, [alike(200, 6)])
    cut({n: h for n, h in held.items() if h.weight.ndim > 1}, 0.3)
    before = bias.weight.detach().clone()
    fit()
    assert torch.equal(bias.weight[6:], before[6:])
    assert not torch.isclose(bias.weight[:6], before[:6]).all()


def test_weights_in_the_branch_that_was_taken_are_fitted() -> None:
    def body(name: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(f"{name}.y", TensorProto.FLOAT, ["n", 3])
        node = helper.make_node("MatMul", ["x", f"{name}.w"], [f"{name}.y"])
        return helper.make_graph([node], name, [], [out], [tensor(f"{name}.w", 8, 3)])

    made = model([], [], 8)
    made.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    made.graph.node.append(
        helper.make_node("If", ["flag"], ["y"], then_branch=body("a"), else_branch=body("bb"))
    )
    graph = import_model(made)
    held = holders(graph)
    for holder in held.values():
        holder.attach_mask()
    net = TrainingGraph(graph, [Head("y", "y", "values")], Feeding((0, None), None))
    x, flag = alike(60, 8), torch.tensor([True])
    fit = Reconstruction(net, held, [x, flag])
    cut(held, 0.3)
    before = {n: h.weight.detach().clone() for n, h in held.items()}
    fit()
    assert not torch.equal(held["a.w"].weight, before["a.w"])
    assert torch.equal(held["bb.w"].weight, before["bb.w"])


def test_a_weight_that_is_not_finite_is_never_written() -> None:
    net, held = attached(perceptron())
    rows = drawn(20, 6)
    rows[0] = torch.inf
    fit = Reconstruction(net, held, [rows])
    cut(held, 0.3)
    fit()
    assert all(h.weight.isfinite().all() for h in held.values())


def test_a_layer_that_the_rows_do_not_suffice_for_stays() -> None:
    """Forty inputs, and five rows that say nothing of each other."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    net, held = attached(model([node], [tensor("w", 40, 3)], 40))
    rows = torch.eye(40)[:5] * torch.tensor([1, 1, 1, 1, 50])[:, None]
    fit = Reconstruction(net, held, [rows])
    held["w"].mask[1] = False
    before = held["w"].weight.detach().clone()
    fit()
    assert torch.equal(held["w"].weight, before)


def test_large_nets_are_fitted_on_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    net, held = attached(perceptron())
    two = [drawn(2, 6)]
    assert enough_rows(net, held, two) == reconstruct.ROWS
    work = 12 * 6 + 2 * 12 * 12
    monkeypatch.setattr(reconstruct, "WORK", 10 * work)
    assert enough_rows(net, held, two) == 10
    monkeypatch.setattr(reconstruct, "MEMORY", 3 * 12)  # a hidden layer of three rows
    assert enough_rows(net, held, two) == 3
    monkeypatch.setattr(reconstruct, "MEMORY", 1)
    assert enough_rows(net, held, two) == 1
    single, held = attached(perceptron(), piece=1)
    monkeypatch.undo()
    assert enough_rows(single, held, two) == reconstruct.SINGLE_ROWS
