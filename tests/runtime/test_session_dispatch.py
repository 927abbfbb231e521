"""The choice between sparse and dense kernels that a session makes for its machine."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dns_onnx.converters.exporter import convert
from dns_onnx.runtime import crossing, dispatch
from dns_onnx.runtime.session import session

Make = Callable[..., Any]
CPU = "CPUExecutionProvider"

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.fixture
def layer(make_layer: Make) -> Any:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((6, 20)).astype(np.float32)
    bias = rng.standard_normal(6).astype(np.float32)
    return make_layer("CsrGemm", weight, bias=bias, alpha=1.0, beta=1.0, transA=0, transB=1)


def stub(monkeypatch: pytest.MonkeyPatch, limit: float, ratios: list[float] | None = None) -> None:
    """Layers win up to the density `limit`; candidates take `ratios` of the dense net's time."""
    kinds = ("linear", "large linear", "conv", "pointwise")
    monkeypatch.setattr(dispatch, "SMALL", 1)
    monkeypatch.setattr(dispatch, "thresholds", lambda threads: dict.fromkeys(kinds, limit))
    monkeypatch.setattr(dispatch, "_compare", lambda *_: ratios)


def stored_dense(density: float) -> bytes:
    """X -> CsrToDense and Conv -> Y, as export writes a layer too dense for a kernel."""
    rng = np.random.default_rng(7)
    weight = (rng.standard_normal((16, 16, 3, 3)) * (rng.random((16, 16, 3, 3)) < density)).astype(
        np.float32
    )
    node = helper.make_node("Conv", ["X", "w"], ["Y"], name="layer", pads=[1] * 4)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [1, 16, 8, 8])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    written: bytes = convert(model, "csr", wants_kernel=lambda *_: False).model.SerializeToString()
    return written


@pytest.mark.parametrize(
    ("limit", "ratios", "folded"),
    [(0.9, [0.5], ("layer",)), (1.0, [0.5], ()), (1.0, None, ("layer",))],
    ids=["above", "below", "below_but_not_measured"],
)
def test_layer_above_the_threshold_runs_dense(
    limit: float,
    ratios: list[float] | None,
    folded: tuple[str, ...],
    layer: Any,
    monkeypatch: pytest.MonkeyPatch,
    close: Make,
) -> None:
    stub(monkeypatch, limit, ratios)
    made = session(layer.model(sparse=True, rank=2), [CPU], native="require")
    assert made.dns_onnx.native
    assert made.dns_onnx.folded == folded
    x = np.random.default_rng(1).standard_normal((3, 20)).astype(np.float32)
    close(made.run(None, {"X": x})[0], layer.run(x, sparse=False))


@pytest.mark.parametrize(
    ("ratio", "folded"), [(0.5, ()), (0.99, ("layer",))], ids=["gains", "does_not"]
)
def test_net_that_does_not_gain_runs_dense(
    ratio: float, folded: tuple[str, ...], layer: Any, monkeypatch: pytest.MonkeyPatch, close: Make
) -> None:
    data = layer.model(sparse=True, rank=2)
    stub(monkeypatch, 1.0, [ratio])
    x = np.random.default_rng(1).standard_normal((3, 20)).astype(np.float32)
    for _ in range(2):  # measured, then remembered
        made = session(data, [CPU], native="require")
        assert made.dns_onnx.folded == folded
        close(made.run(None, {"X": x})[0], layer.run(x, sparse=False))
        monkeypatch.setattr(dispatch, "_compare", lambda *_: pytest.fail("measured again"))


@pytest.mark.parametrize(
    ("density", "limit", "unfolded"),
    [(0.4, 0.5, ("layer",)), (0.4, 0.2, ()), (0.05, 0.0, ("layer",))],
    ids=["bitmask", "too_dense", "rows"],
)
def test_layer_stored_sparse_before_a_dense_node(
    density: float,
    limit: float,
    unfolded: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    close: Make,
) -> None:
    stub(monkeypatch, limit, [0.5])
    data = stored_dense(density)
    made = session(data, [CPU], native="require")
    assert made.dns_onnx.unfolded == unfolded
    x = np.random.default_rng(1).standard_normal((1, 16, 8, 8)).astype(np.float32)
    close(made.run(None, {"X": x})[0], session(data, [CPU], native=False).run(None, {"X": x})[0])


@pytest.mark.parametrize("density", [0.02, 0.1, 0.4], ids=["indices", "gaps", "bitmask"])
def test_sparse_left_side_of_a_matmul_runs_on_its_kernel(
    density: float, monkeypatch: pytest.MonkeyPatch, make_pruned: Make, close: Make
) -> None:
    weight = make_pruned(np.random.default_rng(7), (90, 300), density)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["w", "X"], ["Y"], name="layer")],
        "g",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [2, 300, 17])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    stub(monkeypatch, 0.5, [0.5])
    made = session(convert(model, "csr").model.SerializeToString(), [CPU], native="require")
    assert made.dns_onnx.unfolded == ("layer",)
    x = np.random.default_rng(1).standard_normal((2, 300, 17)).astype(np.float32)
    close(made.run(None, {"X": x})[0], np.matmul(weight, x))


class Timed:
    """A session that takes its time on a clock of its own: each run the next of `seconds`."""

    now = 0.0

    def __init__(self, *seconds: float) -> None:
        self.seconds = itertools.cycle(seconds)

    def run(self, outputs: None, feeds: dict[str, Any]) -> None:
        Timed.now += next(self.seconds)


@pytest.mark.parametrize(
    ("sparse", "ratio"),
    [((3.0,), 0.5), ((9.0,), 1.0), ((6.0,), 1.0), ((3.0, 3.0, 3.0, 12.0), 1.0)],
    ids=["faster", "slower", "equal", "now_and_then"],
)
def test_candidate_must_gain_in_most_pairs(
    sparse: tuple[float, ...], ratio: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_SECONDS", 0.0)
    # a turn is a run that does not count and one that does
    sessions: list[Any] = [Timed(6.0), Timed(*sparse)]
    assert dispatch._ratio(*sessions, {}, lambda: Timed.now, 0.0) == ratio


def test_net_with_free_axes_is_not_measured(layer: Any) -> None:
    made = session(layer.model(sparse=False, rank=2), [CPU], native=False)
    forms = dispatch.Forms(layer.model(sparse=True, rank=2), None, substitutes=False)
    assert dispatch._compare(forms, [[True]], 1, lambda data: made) is None


def test_other_layers_may_win_without_those_that_spoil_the_net() -> None:
    kinds = ("stem", "conv", "linear", "linear")
    layers = [
        dispatch.SparseLayer(onnx.GraphProto(), onnx.NodeProto(), None, kind, 0.1, 1)
        for kind in kinds
    ]
    found = dispatch._candidates(layers, [True, True, True, False])
    assert found == [
        [True, True, True, False],
        [False, True, True, False],
        [False, False, True, False],
    ]


def test_external_data_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, close: Make
) -> None:
    stub(monkeypatch, 0.5, [0.5])
    model = onnx.load_from_string(stored_dense(0.4))
    path = tmp_path / "net.onnx"
    onnx.save(model, path, save_as_external_data=True, location="net.data", size_threshold=100)
    made = session(path, [CPU], native="require")
    assert made.dns_onnx.unfolded == ("layer",)
    x = np.random.default_rng(1).standard_normal((1, 16, 8, 8)).astype(np.float32)
    close(made.run(None, {"X": x})[0], session(path, [CPU], native=False).run(None, {"X": x})[0])


def test_choice_can_be_switched_off(layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch, 0.0)
    data = layer.model(sparse=True, rank=2)
    assert session(data, [CPU], choose=False).dns_onnx.folded == ()


def test_sparse_layer_needs_no_measurement(
    make_layer: Make, make_pruned: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub(monkeypatch, 0.0)
    monkeypatch.setattr(dispatch, "thresholds", lambda threads: pytest.fail("measured"))
    weight = make_pruned(np.random.default_rng(0), (20, 50), 0.05)
    layer = make_layer("CsrGemm", weight, alpha=1.0, beta=1.0, transA=0, transB=1)
    data = layer.model(sparse=True, rank=2)
    assert dispatch.choose(data, None, 1, lambda form: pytest.fail("opened")).folded == ()


def test_depthwise_layer_always_runs_dense(make_layer: Make) -> None:
    layer = make_layer("CsrConv", np.ones((4, 1, 3, 3), np.float32), group=4)
    chosen = dispatch.choose(layer.model(sparse=True, rank=4), None, 1, None)
    assert chosen.folded == ("layer",)
    assert chosen.data is not None
    assert onnx.load_from_string(chosen.data).graph.node[0].op_type == "Conv"


def test_thresholds_are_measured_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    measured: list[str] = []

    def measure(kind: str, threads: int) -> float:
        measured.append(kind)
        return 0.4

    monkeypatch.setenv("DNS_ONNX_CACHE", str(tmp_path))
    monkeypatch.setattr(crossing, "_crossing", measure)
    first = crossing.thresholds(1)
    assert crossing.thresholds(1) == first
    assert sorted(measured) == sorted(first)
    crossing.thresholds(2)
    assert len(json.loads((tmp_path / "dispatch.json").read_text())) == 2


def test_damaged_cache_is_measured_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DNS_ONNX_CACHE", str(tmp_path))
    monkeypatch.setattr(crossing, "_crossing", lambda kind, threads: 0.4)
    (tmp_path / "dispatch.json").write_text("{")
    assert set(crossing.thresholds(1).values()) == {0.4}


def test_measured_crossing_is_a_density(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crossing, "_RUNS", 1)
    assert 0.0 <= crossing._crossing("conv", 1) <= 1.0
