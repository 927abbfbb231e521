"""What stays of a pruned recurrent layer is fitted to what its gates gave before."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from dns_onnx.attach import TrainingGraph
from dns_onnx.converters.heads import Head
from dns_onnx.converters.importer import import_model
from dns_onnx.fit import recurrences
from dns_onnx.fit.reconstruct import Reconstruction
from dns_onnx.masks import Masked, holders
from dns_onnx.runtime.batching import Feeding

pytestmark = pytest.mark.usefixtures("one_thread")

HIDDEN, INPUTS = 8, 10
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def values(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.uniform(-0.8, 0.8, shape).astype(np.float32)


def net(
    op: str, *, bias: bool = True, swapped: bool = False, lens: bool = False, **attributes: Any
) -> onnx.ModelProto:
    """One recurrent layer.

    swapped: its gates are put in order in the graph, as exporters do that fold nothing.
    lens: the sequences' lengths are an input.
    """
    rng = np.random.default_rng(len(op) + len(attributes))
    ways = 2 if attributes.get("direction") == "bidirectional" else 1
    rows = GATES[op] * HIDDEN
    weights = {"w": values(rng, ways, rows, INPUTS), "r": values(rng, ways, rows, HIDDEN)}
    nodes, operands = [], ["x", "w", "r"]
    if swapped:
        constants = {f"at{i}": np.array([i * HIDDEN]) for i in range(GATES[op] + 1)} | {
            "zero": np.array([0]), "rows": np.array([0]),
        }  # fmt: skip
        for name in ("w", "r"):
            weights[f"{name}0"] = weights.pop(name)[0]
            slices = [f"{name}.{i}" for i in range(GATES[op])]
            nodes += [
                helper.make_node("Slice", [f"{name}0", f"at{i}", f"at{i + 1}", "rows"], [s])
                for i, s in enumerate(slices)
            ]
            nodes += [helper.make_node("Concat", slices[::-1], [f"{name}1"], axis=0),
                      helper.make_node("Unsqueeze", [f"{name}1", "zero"], [name])]  # fmt: skip
        weights |= constants
    if bias:
        weights["b"] = values(rng, ways, 2 * rows)
    operands += ["b" if bias else "", "lens" if lens else ""]
    nodes.append(helper.make_node(op, operands, ["y"], hidden_size=HIDDEN, **attributes))
    batch = ["b", "t"] if attributes.get("layout") else ["t", "b"]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [*batch, INPUTS])]
    if lens:
        inputs.append(helper.make_tensor_value_info("lens", TensorProto.INT32, ["b"]))
    graph = helper.make_graph(
        nodes, "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, n) for n, v in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def attached(
    made: onnx.ModelProto, axis: int = 1, piece: int | None = None
) -> tuple[TrainingGraph, dict[str, Masked]]:
    """The net, with masks on what can be cut.  axis: of the input, along which its rows lie."""
    graph = import_model(made)
    held = holders(graph)
    for holder in held.values():
        if holder.weight.ndim > 1 and holder.name != "b":
            holder.attach_mask()
    axes = (axis,) if len(made.graph.input) == 1 else (axis, 0)
    return TrainingGraph(graph, [Head("y", "y", "values")], Feeding(axes, piece)), held


def sequences(rows: int, steps: int, seed: int = 0) -> Tensor:
    """[rows, steps, inputs] that go on for a while, of few things, never below zero."""
    rng, mixing = np.random.default_rng(seed), np.random.default_rng(9)
    things = [rng.standard_normal((rows, 3))]
    for _ in range(steps - 1):
        things.append(0.8 * things[-1] + 0.6 * rng.standard_normal((rows, 3)))
    mixed = np.stack(things, 1) @ mixing.standard_normal((3, INPUTS))
    mixed += 0.05 * rng.standard_normal(mixed.shape)
    return torch.tensor(np.maximum(mixed, 0), dtype=torch.float32)


def cut(held: dict[str, Masked], share: float = 0.3) -> None:
    """Cut this share of each weight: the smallest."""
    for holder in held.values():
        if holder.mask is not None:
            size = holder.weight.detach().abs()
            holder.mask.copy_(size > size.flatten().quantile(share))


@torch.no_grad()
def error(model: TrainingGraph, inputs: list[Tensor], want: Tensor) -> float:
    return float((model(*inputs)[0] - want).norm() / want.norm())


LAYERS = [
    pytest.param("RNN", {}, id="RNN"),
    pytest.param("LSTM", {}, id="LSTM"),
    pytest.param("LSTM", {"bias": False}, id="LSTM without bias"),
    pytest.param("LSTM", {"direction": "bidirectional"}, id="LSTM both ways"),
    pytest.param("LSTM", {"swapped": True}, id="LSTM, gates swapped in the graph"),
    pytest.param("GRU", {}, id="GRU"),
    pytest.param("GRU", {"linear_before_reset": 1}, id="GRU, linear before reset"),
    pytest.param("GRU", {"direction": "reverse"}, id="GRU backward"),
    pytest.param("GRU", {"layout": 1, "linear_before_reset": 1, "direction": "bidirectional"},
                 id="GRU both ways, batch first"),
    pytest.param("RNN", {"lens": True, "direction": "reverse"}, id="RNN of several lengths"),
]  # fmt: skip


@pytest.mark.parametrize(("op", "how"), LAYERS)
@pytest.mark.parametrize(
    ("rows", "steps", "piece"), [(40, 12, None), (400, 1, None), (20, 12, 1)],
    ids=["sequences", "single steps", "sequence by sequence"],
)  # fmt: skip
def test_a_pruned_layer_comes_back_to_what_the_original_gave(
    op: str, how: dict[str, Any], rows: int, steps: int, piece: int | None
) -> None:
    model, held = attached(net(op, **how), 0 if how.get("layout") else 1, piece)

    def inputs(seed: int) -> list[Tensor]:
        lens = 1 + torch.arange(rows, dtype=torch.int32) % steps
        return [sequences(rows, steps, seed), *([lens] if how.get("lens") else [])]

    with torch.no_grad():
        want = model(*inputs(1))[0].clone()
    fit = Reconstruction(model, held, inputs(0))
    cut(held)
    weights = {n: h.weight.detach().clone() for n, h in held.items()}
    before = error(model, inputs(1), want)
    fit()
    assert error(model, inputs(1), want) < 0.75 * before
    for name, holder in held.items():
        if holder.mask is not None:
            assert torch.equal(holder.weight[~holder.mask], weights[name][~holder.mask])
    kept = {n for n, h in held.items() if not torch.equal(h.weight, weights[n])}
    met = {"w", "r"} if steps > 1 else {"w"}  # a first state is zero
    assert {n[0] for n in kept} >= met | ({"b"} if how.get("bias", True) else set())


@pytest.mark.parametrize("op", GATES)
def test_sequences_together_or_one_by_one_give_the_same_weights(op: str) -> None:
    found = []
    for piece in (None, 1):
        model, held = attached(net(op), piece=piece)
        fit = Reconstruction(model, held, [sequences(20, 8)])
        cut(held)
        fit()
        found.append({n: h.effective() for n, h in held.items()})
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("op", GATES)
def test_what_nothing_was_cut_from_stays(op: str) -> None:
    model, held = attached(net(op))
    before = {n: h.effective() for n, h in held.items()}
    Reconstruction(model, held, [sequences(30, 8)])()
    for name, holder in held.items():
        torch.testing.assert_close(holder.effective(), before[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("op", GATES)
def test_a_fit_that_brings_the_states_no_nearer_is_undone(
    op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, held = attached(net(op))
    fit = Reconstruction(model, held, [sequences(30, 8)])
    cut(held)
    before = {n: h.weight.detach().clone() for n, h in held.items()}

    def astray(terms: Any, inputs: Any, wanted: Any) -> None:
        for term in terms:
            term.put(-term.matrix(term.now()))

    monkeypatch.setattr(recurrences, "fit_sum", astray)
    fit()
    for name, holder in held.items():
        kept = (
            torch.ones_like(holder.weight, dtype=torch.bool) if holder.mask is None else holder.mask
        )
        assert torch.equal(holder.weight[kept], before[name][kept])


def test_fitting_again_gives_the_same_bits() -> None:
    found = []
    for _ in range(2):
        model, held = attached(net("GRU", linear_before_reset=1, direction="bidirectional"))
        fit = Reconstruction(model, held, [sequences(30, 8)])
        cut(held)
        fit()
        found.append({n: h.weight.detach() for n, h in held.items()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_weight_that_is_joined_with_itself_is_not_fitted_twice() -> None:
    weight = numpy_helper.from_array(values(np.random.default_rng(0), INPUTS, 4), "w")
    graph = helper.make_graph(
        [helper.make_node("Concat", ["w", "w"], ["ww"], axis=1),
         helper.make_node("MatMul", ["x", "ww"], ["y"])],
        "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["t", "b", INPUTS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], [weight],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17)]
    model, held = attached(helper.make_model(graph, opset_imports=opsets, ir_version=8))
    fit = Reconstruction(model, held, [sequences(40, 8)])
    cut(held)
    before = held["w"].weight.detach().clone()
    fit()
    assert torch.equal(held["w"].weight, before)
