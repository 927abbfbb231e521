"""Narrow values: as close as their type allows, the same in every runtime, refused where unsafe."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from dns_onnx.converters.encodings import to_dense
from dns_onnx.converters.exporter import convert, export_model
from dns_onnx.errors import ExportError

from .exporter_models import DECODING, build, operators, run, sparse, tensors
from .test_encodings_formats import MODELS, feeds

NAMES = [
    "Gemm transA=0 transB=1 bias=True", "Gemm opset 11", "Gemm opset 21", "Conv 1-D group=3",
    "Conv 2-D group=1", "MatMul rank 3", "If", "tied", "LSTM",
]  # fmt: skip


@pytest.mark.parametrize("values", ["float16", "int8"])
@pytest.mark.parametrize("format", ["csr", "portable"])
@pytest.mark.parametrize("name", NAMES)
def test_smaller_and_close(name: str, format: str, values: str, tmp_path: Any) -> None:
    model = MODELS[name]
    made = convert(model, format, values=values)
    onnx.checker.check_model(made.model, full_check=True)
    assert made.model.ByteSize() <= convert(model, format).model.ByteSize()
    assert (
        any(row.encoding.endswith(f", {values} values") for row in made.tensors) or values == "int8"
    )
    back = to_dense(made.model)
    onnx.checker.check_model(back, full_check=True)
    old, new = tensors(model), tensors(back)
    for row in made.tensors:
        if row.encoding == "dense":
            continue
        bound = np.abs(old[row.name]).max() / (254 if values == "int8" else 2048)
        assert np.abs(old[row.name] - new[row.name]).max() <= bound * 1.001
        assert ((new[row.name] == 0) | (old[row.name] != 0)).all()
    x = feeds(model)
    wanted, got = run(back, **x), run(made.model, tmp_path / "optimized.onnx", **x)
    np.testing.assert_allclose(got[0], wanted[0], rtol=1e-5, atol=1e-5)
    left = operators(onnx.load(tmp_path / "optimized.onnx"))
    assert not left & (DECODING | {"DequantizeLinear"})
    if name != "LSTM":
        reference = ReferenceEvaluator(made.model).run(None, x)[0]
        np.testing.assert_allclose(reference, wanted[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("values", ["float16", "int8"])
@pytest.mark.parametrize("format", ["csr", "portable"])
def test_a_weight_without_zeros_is_narrowed_too(format: str, values: str) -> None:
    weight = np.random.default_rng(0).standard_normal((100, 90)).astype(np.float32)
    model = build([helper.make_node("MatMul", ["X", "W"], ["Y"])], {"X": (2, 100)}, {"W": weight})
    made = convert(model, format, values=values)
    assert made.tensors[0].encoding == f"dense, {values} values"
    back = tensors(to_dense(made.model))["W"]
    np.testing.assert_allclose(back, weight, rtol=0, atol=4 / (127 if values == "int8" else 2048))
    x = np.eye(2, 100, dtype=np.float32)
    assert np.array_equal(run(made.model, X=x)[0], back[:2])


def test_int8_scales_go_by_row() -> None:
    weight = sparse(np.random.default_rng(1), (60, 200)) * np.logspace(-6, 6, 60)[:, None]
    weight = weight.astype(np.float32)
    node = helper.make_node("Gemm", ["X", "W"], ["Y"], transB=1)
    model = build([node], {"X": (2, 200)}, {"W": weight})
    for format in ("csr", "portable"):
        back = tensors(to_dense(convert(model, format, values="int8").model))["W"]
        bound = np.abs(weight).max(axis=1, keepdims=True) / 254
        assert (np.abs(back - weight) <= bound * 1.001).all()


@pytest.mark.parametrize(
    ("value", "values", "reason"),
    [
        (1e6, "float16", "1e+06 is beyond float16"),
        (np.inf, "int8", "some are not finite"),
        (1e-44, "int8", "some rows are too small"),
    ],
)
def test_values_that_do_not_fit_stay_as_they_are(value: float, values: str, reason: str) -> None:
    weight = sparse(np.random.default_rng(2), (60, 60))
    weight[3] = 0
    weight[3, 5] = value
    model = build([helper.make_node("MatMul", ["X", "W"], ["Y"])], {"X": (2, 60)}, {"W": weight})
    made = convert(model, "csr", values=values)
    (row,) = made.tensors
    assert f"its values stay as they are: {reason}" in row.reason
    assert tensors(to_dense(made.model))["W"].tobytes() == weight.tobytes()


def test_biases_keep_their_precision() -> None:
    model = MODELS["Gemm transA=0 transB=1 bias=True"]
    made = convert(model, "csr", values="int8")
    assert np.array_equal(tensors(to_dense(made.model))["b"], tensors(model)["b"])


@pytest.mark.parametrize("format", ["coo", "dense"])
def test_other_formats_have_no_narrow_values(format: str) -> None:
    with pytest.raises(ExportError, match="values: expected one of float32, got 'int8'"):
        export_model(MODELS["tied"], {}, format=format, values="int8")


def test_weights_that_do_not_fit_stand_beside_those_that_do() -> None:
    """A body reads values of one type, so the other weight is decoded in front of its node."""
    rng = np.random.default_rng(3)
    weights = {name: sparse(rng, (300, 300)) for name in ("V", "W")}
    weights["W"][0, 0] = 1e6
    nodes = [
        helper.make_node("MatMul", ["X", "V"], ["H"]),
        helper.make_node("MatMul", ["H", "W"], ["Y"]),
    ]
    made = convert(build(nodes, {"X": (2, 300)}, weights), "csr", values="float16")
    assert [row.operator for row in made.tensors] == ["CsrMatMul", "CsrToDense"]
    back = to_dense(made.model)
    assert tensors(back)["W"].tobytes() == weights["W"].tobytes()
    x = rng.standard_normal((2, 300)).astype(np.float32)
    np.testing.assert_allclose(run(made.model, X=x)[0], run(back, X=x)[0], rtol=1e-5, atol=1e-2)
