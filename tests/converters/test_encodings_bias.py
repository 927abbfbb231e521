"""Convolutions without a bias, from whose bodies the empty operand must be gone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper

from dns_onnx.converters.encodings import to_dense
from dns_onnx.converters.exporter import convert

from .exporter_models import DECODING, build, operators, run, sparse


def normed(first: bool, second: bool) -> ModelProto:
    """Two convolutions with a batch norm behind each; whether they have a bias."""
    rng = np.random.default_rng(0)
    weights: dict[str, Any] = {name: sparse(rng, (32, 32, 3, 3)) for name in ("w0", "w1")}
    for name in ("b0", "b1", "scale", "shift", "mean"):
        weights[name] = rng.standard_normal(32).astype(np.float32)
    weights["var"] = rng.random(32, np.float32) + 0.5
    nodes, x = [], "X"
    for i, bias in enumerate((first, second)):
        operands = [x, f"w{i}", f"b{i}"] if bias else [x, f"w{i}"]
        norm = [f"c{i}", "scale", "shift", "mean", "var"]
        nodes.append(helper.make_node("Conv", operands, [f"c{i}"], pads=[1] * 4))
        nodes.append(helper.make_node("BatchNormalization", norm, [f"n{i}"]))
        nodes.append(helper.make_node("Relu", [f"n{i}"], [x := "Y" if i else "r0"]))
    used = {name for node in nodes for name in node.input}
    weights = {name: array for name, array in weights.items() if name in used}
    return build(nodes, {"X": (1, 32, 8, 8)}, weights)


@pytest.mark.parametrize("values", ["float32", "int8"])
@pytest.mark.parametrize(
    ("biases", "sparse_operators"), [((False, False), 2), ((True, True), 2), ((False, True), 1)]
)
def test_batch_norm_is_fused_as_in_the_dense_file(
    biases: tuple[bool, bool], sparse_operators: int, values: str, tmp_path: Path
) -> None:
    model = normed(*biases)
    made = convert(model, "csr", values=values).model
    assert [n.op_type for n in made.graph.node].count("CsrConv") == sparse_operators
    x = np.random.default_rng(1).standard_normal((1, 32, 8, 8)).astype(np.float32)
    back = to_dense(made)
    (want,) = run(back, tmp_path / "dense.onnx", X=x)
    (got,) = run(made, tmp_path / "csr.onnx", X=x)
    assert np.allclose(got, want, rtol=1e-5, atol=1e-5)
    left = operators(onnx.load(tmp_path / "csr.onnx"))
    assert left == operators(onnx.load(tmp_path / "dense.onnx"))
    assert not left & (DECODING | {"BatchNormalization"})
    if values == "float32":
        assert back.SerializeToString() == model.SerializeToString()
