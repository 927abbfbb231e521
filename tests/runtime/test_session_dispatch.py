"""The choice between sparse and dense kernels that a session makes for its machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from dns_onnx.runtime import dispatch
from dns_onnx.runtime.session import session

Make = Callable[..., Any]
CPU = "CPUExecutionProvider"

pytestmark = pytest.mark.usefixtures("kernels")


def with_function(data: bytes) -> bytes:
    """Adds a function body for CsrGemm that is right where every entry is stored."""
    model = onnx.load_from_string(data)
    nodes = [
        helper.make_node("Reshape", ["values", "shape"], ["W"]),
        helper.make_node("Gemm", ["A", "W", "C"], ["Y"], transB=1),
    ]
    inputs = ["A", "values", "col_indices", "row_ptr", "shape", "C"]
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(
        helper.make_function(
            "dns_onnx", "CsrGemm", inputs, ["Y"], nodes, opsets,
            attributes=["alpha", "beta", "transA", "transB"],
        )
    )  # fmt: skip
    done: bytes = model.SerializeToString()
    return done


@pytest.fixture
def layer(make_layer: Make) -> Any:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((6, 20)).astype(np.float32)
    bias = rng.standard_normal(6).astype(np.float32)
    return make_layer("CsrGemm", weight, bias=bias, alpha=1.0, beta=1.0, transA=0, transB=1)


def stub(monkeypatch: pytest.MonkeyPatch, limit: float) -> None:
    kinds = ("linear", "large linear", "conv", "pointwise")
    monkeypatch.setattr(dispatch, "SMALL", 1)
    monkeypatch.setattr(dispatch, "thresholds", lambda threads: dict.fromkeys(kinds, limit))


@pytest.mark.parametrize(("limit", "folded"), [(0.5, ("layer",)), (1.0, ())])
def test_layer_above_the_threshold_runs_dense(
    limit: float, folded: tuple[str, ...], layer: Any, monkeypatch: pytest.MonkeyPatch, close: Make
) -> None:
    stub(monkeypatch, limit)
    made = session(with_function(layer.model(sparse=True, rank=2)), [CPU], native="require")
    assert made.dns_onnx.native
    assert made.dns_onnx.folded == folded
    x = np.random.default_rng(1).standard_normal((3, 20)).astype(np.float32)
    close(made.run(None, {"X": x})[0], layer.run(x, sparse=False))


def test_choice_can_be_switched_off(layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch, 0.0)
    data = with_function(layer.model(sparse=True, rank=2))
    assert session(data, [CPU], choose=False).dns_onnx.folded == ()


def test_sparse_layer_needs_no_measurement(
    make_layer: Make, make_pruned: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(threads: int) -> dict[str, float]:
        raise AssertionError(threads)

    monkeypatch.setattr(dispatch, "thresholds", refuse)
    monkeypatch.setattr(dispatch, "SMALL", 1)
    weight = make_pruned(np.random.default_rng(0), (20, 50), 0.05)
    layer = make_layer("CsrGemm", weight, alpha=1.0, beta=1.0, transA=0, transB=1)
    data = layer.model(sparse=True, rank=2)
    assert dispatch.fold_slow_layers(data, 1) == (data, [])


def test_depthwise_layer_always_runs_dense(make_layer: Make) -> None:
    layer = make_layer("CsrConv", np.ones((4, 1, 3, 3), np.float32), group=4)
    model = onnx.load_from_string(layer.model(sparse=True, rank=4))
    model.functions.add(name="CsrConv", domain="dns_onnx")
    data, names = dispatch.fold_slow_layers(model.SerializeToString(), 1)
    assert names == ["layer"]
    assert onnx.load_from_string(data).graph.node[0].op_type == "CsrConvFolded"


def test_node_without_a_function_stays_sparse(layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch, 0.0)
    data = layer.model(sparse=True, rank=2)
    assert dispatch.fold_slow_layers(data, 1) == (data, [])


def test_thresholds_are_measured_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    measured: list[str] = []

    def crossing(kind: str, threads: int) -> float:
        measured.append(kind)
        return 0.4

    monkeypatch.setenv("DNS_ONNX_CACHE", str(tmp_path))
    monkeypatch.setattr(dispatch, "_crossing", crossing)
    first = dispatch.thresholds(1)
    assert dispatch.thresholds(1) == first
    assert sorted(measured) == sorted(first)
    dispatch.thresholds(2)
    assert len(json.loads((tmp_path / "dispatch.json").read_text())) == 2


def test_damaged_cache_is_measured_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DNS_ONNX_CACHE", str(tmp_path))
    monkeypatch.setattr(dispatch, "_crossing", lambda kind, threads: 0.4)
    (tmp_path / "dispatch.json").write_text("{")
    assert set(dispatch.thresholds(1).values()) == {0.4}


def test_measured_crossing_is_a_density(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_RUNS", 1)
    assert 0.0 <= dispatch._crossing("conv", 1) <= 1.0
