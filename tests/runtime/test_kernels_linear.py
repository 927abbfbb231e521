"""CsrGemm and CsrMatMul against NumPy twins and ONNX Runtime's dense operators."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

Array = npt.NDArray[Any]
Make = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("kernels")

# m, k, n, density
SHAPES = {
    "one_by_one": (1, 1, 1, 1.0),
    "vector": (1, 300, 100, 0.05),
    "vector_dense": (1, 64, 33, 1.0),
    "two_rows": (2, 129, 65, 0.3),
    "three_rows": (3, 40, 17, 0.5),
    "seven_rows": (7, 100, 31, 0.1),
    "eight_rows": (8, 100, 31, 0.1),
    "batch_33": (33, 257, 19, 0.2),
    "batch_64": (64, 128, 50, 0.07),
    "batch_100": (100, 70, 40, 0.4),
    "wide": (1, 70000, 9, 0.01),
    "vector_of_a_window": (1, 64, 40, 0.2),
    "vector_of_many_windows": (1, 1003, 37, 0.2),
    "two_vectors": (2, 1003, 33, 0.2),
    "no_nonzeros": (5, 20, 10, 0.0),
    "batch_zero": (0, 20, 10, 0.5),
}
# The same weights as float16 and as float32 that no float16 equals, in a matrix of several MB.
FAR = (1100, 2000)
INDEX_TYPES = (np.uint8, np.uint16, np.int32, np.int64)


def csr_gemm(a: Array, rows: list[list[tuple[int, float]]], alpha: float) -> Array:
    """The NumPy twin: y[:, n] = alpha * sum of v * a[:, k] over row n's entries (k, v)."""
    y = np.zeros((a.shape[0], len(rows)), np.float64)
    for n, row in enumerate(rows):
        for k, v in row:
            y[:, n] += alpha * v * a[:, k].astype(np.float64)
    return y.astype(np.float32)


def entries(dense: Array) -> list[list[tuple[int, float]]]:
    return [[(int(k), float(row[k])) for k in np.flatnonzero(row)] for row in dense]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("trans_a", [0, 1])
def test_gemm_equals_twin_and_dense(
    shape: tuple[int, int, int, float],
    trans_a: int,
    trans_b: int,
    make_layer: Make,
    make_pruned: Make,
    close: Make,
) -> None:
    m, k, n, density = shape
    rng = np.random.default_rng(1)
    weight = make_pruned(rng, (n, k), density)
    bias = rng.standard_normal(n).astype(np.float32)
    a = rng.standard_normal((m, k)).astype(np.float32)
    layer = make_layer(
        "CsrGemm",
        weight if trans_b else np.ascontiguousarray(weight.T),
        bias=bias,
        alpha=0.5,
        beta=2.0,
        transA=trans_a,
        transB=trans_b,
    )
    x = np.ascontiguousarray(a.T) if trans_a else a
    got = layer.run(x)
    close(got, csr_gemm(a, entries(weight), 0.5) + np.float32(2.0) * bias)
    close(got, layer.run(x, sparse=False))
    close(layer.run(x, threads=2), got)


@pytest.mark.parametrize("m", [16, 40])
@pytest.mark.parametrize("n", [33, 192, 1500])
def test_more_outputs_than_a_tile_has_columns(
    n: int, m: int, make_layer: Make, make_pruned: Make, close: Make
) -> None:
    rng = np.random.default_rng(4)
    layer = make_layer("CsrGemm", make_pruned(rng, (n, 64), 0.1), transB=1)
    x = rng.standard_normal((m, 64)).astype(np.float32)
    # after a few runs one task works on all outputs
    close(layer.run(x, times=5), layer.run(x, sparse=False))


@pytest.mark.parametrize(("columns", "pointers"), list(itertools.product(INDEX_TYPES, INDEX_TYPES)))
def test_gemm_takes_every_index_type(
    columns: Any, pointers: Any, make_layer: Make, make_pruned: Make, close: Make
) -> None:
    rng = np.random.default_rng(2)
    weight = make_pruned(rng, (12, 100), 0.1)
    x = rng.standard_normal((2, 100)).astype(np.float32)
    layer = make_layer(
        "CsrGemm",
        weight,
        columns=columns,
        pointers=pointers,
        alpha=1.0,
        beta=1.0,
        transA=0,
        transB=1,
    )
    close(layer.run(x), layer.run(x, sparse=False))


@pytest.mark.parametrize("kind", INDEX_TYPES)
@pytest.mark.parametrize("density", [0.3, 1.0, 0.0], ids=["some", "all", "none"])
def test_gemm_reads_gaps(
    kind: Any, density: float, make_layer: Make, make_pruned: Make, close: Make
) -> None:
    rng = np.random.default_rng(3)
    weight = make_pruned(rng, (12, 19), density)
    weight[[0, 4, 5, 11]] = 0
    x = rng.standard_normal((2, 19)).astype(np.float32)
    layer = make_layer("CsrGemm", weight, columns=kind, pointers=None, transB=1)
    close(layer.run(x), layer.run(x, sparse=False))


HALVES = [0.0, -0.0, 1.0, -2.5, 65504.0, 6.1e-5, 5.96e-8, -3.1e-7, np.inf, -np.inf, np.nan]


def test_float16_values_are_widened_exactly(make_layer: Make) -> None:
    values = np.concatenate([np.array(HALVES), np.random.default_rng(0).standard_normal(53)])
    layer = make_layer("CsrGemm", np.ones((64, 1), np.float32), transB=1)
    layer.operands["values"] = values.astype(np.float16)
    got = layer.run(np.ones((1, 1), np.float32))
    np.testing.assert_array_equal(got[0], values.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("dropped_bits", [13, 12], ids=["float16", "float32"])
def test_large_matrix_times_a_vector(
    dropped_bits: int, make_layer: Make, make_pruned: Make, close: Make
) -> None:
    rng = np.random.default_rng(10)
    weight = make_pruned(rng, FAR, 0.2)
    weight = (weight.view(np.int32) >> dropped_bits << dropped_bits).view(np.float32)
    weight[3, 4:7] = 2.0**-24 * np.array([1, -5, 1023])  # float16 subnormals
    weight[::7] *= rng.random(FAR[1]) < 0.3  # rows of unequal length
    layer = make_layer("CsrGemm", weight, transB=1)
    x = rng.standard_normal((1, FAR[1])).astype(np.float32)
    x[0, 4:7] *= 2.0**20
    got = layer.run(x)
    close(got, x @ weight.T)
    np.testing.assert_array_equal(layer.run(x, threads=2), got)


def test_zero_weights_that_are_stored_meet_infinite_inputs(make_layer: Make) -> None:
    weight = np.ones((32, 256), np.float32)
    layer = make_layer("CsrGemm", weight, transB=1)
    layer.operands["values"] = layer.operands["values"].copy()
    layer.operands["values"][5] = 0.0
    x = np.ones((1, 256), np.float32)
    x[0, 5] = np.inf
    got = layer.run(x)[0]
    assert np.isnan(got[0])
    assert (got[1:] == np.inf).all()


@pytest.mark.parametrize("kind", [np.float16, np.int8, np.float32])
@pytest.mark.parametrize("op", ["CsrGemm", "CsrMatMul"])
def test_rows_are_scaled(
    op: str, kind: Any, make_layer: Make, make_pruned: Make, close: Make
) -> None:
    rng = np.random.default_rng(4)
    narrow = np.rint(20 * make_pruned(rng, (60, 40), 0.2))
    scale = rng.random((60, 1)).astype(np.float32)
    layer = make_layer(op, narrow, pointers=None)
    layer.operands["values"] = layer.operands["values"].astype(kind)
    layer.operands["scale"] = scale
    layer.dense = (narrow * scale).astype(np.float32)
    x = rng.standard_normal((3, 60)).astype(np.float32)
    close(layer.run(x), layer.run(x, sparse=False))


@pytest.mark.parametrize(
    "shape", [(), (1,), (9,), (1, 9), (4, 1), (4, 9), (1, 1)], ids=lambda s: "x".join(map(str, s))
)
@pytest.mark.parametrize("m", [4])
def test_gemm_broadcasts_c(
    shape: tuple[int, ...], m: int, make_layer: Make, make_pruned: Make, close: Make
) -> None:
    rng = np.random.default_rng(3)
    weight = make_pruned(rng, (9, 30), 0.3)
    bias = np.asarray(rng.standard_normal(shape), np.float32)
    x = rng.standard_normal((m, 30)).astype(np.float32)
    layer = make_layer("CsrGemm", weight, bias=bias, alpha=1.0, beta=-1.5, transA=0, transB=1)
    close(layer.run(x), layer.run(x, sparse=False))


def test_gemm_row_without_entries_gives_the_bias(make_layer: Make, make_pruned: Make) -> None:
    rng = np.random.default_rng(4)
    weight = make_pruned(rng, (40, 50), 0.2)
    weight[[0, 7, 39]] = 0
    bias = rng.standard_normal(40).astype(np.float32)
    layer = make_layer("CsrGemm", weight, bias=bias, alpha=1.0, beta=1.0, transA=0, transB=1)
    for m in (1, 3, 16):
        got = layer.run(rng.standard_normal((m, 50)).astype(np.float32))
        np.testing.assert_array_equal(got[:, [0, 7, 39]], np.tile(bias[[0, 7, 39]], (m, 1)))


@pytest.mark.parametrize(
    "lead",
    [(), (1,), (5,), (2, 3), (2, 1, 4), (0, 3), (16, 2)],
    ids=lambda s: "x".join(map(str, s)),
)
def test_matmul_equals_dense(
    lead: tuple[int, ...], make_layer: Make, make_pruned: Make, close: Make
) -> None:
    rng = np.random.default_rng(5)
    weight = make_pruned(rng, (60, 23), 0.15)
    layer = make_layer("CsrMatMul", weight, columns=np.uint8, pointers=np.uint16)
    x = rng.standard_normal((*lead, 60)).astype(np.float32)
    got = layer.run(x)
    close(got, layer.run(x, sparse=False))
    twin = csr_gemm(x.reshape(-1, 60), entries(weight.T), 1.0).reshape(*lead, 23)
    close(got, twin)


@pytest.mark.parametrize("m", [1, 2, 4, 9, 40])
@pytest.mark.parametrize("k", [70, 700])
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_reach_the_rows_that_store_them(
    m: int, k: int, special: float, make_layer: Make, make_pruned: Make
) -> None:
    rng = np.random.default_rng(6)
    weight = make_pruned(rng, (21, k), 0.2)
    x = rng.standard_normal((m, k)).astype(np.float32)
    x[0, [0, 33]] = special
    layer = make_layer("CsrGemm", weight, alpha=1.0, beta=1.0, transA=0, transB=1)
    hit = (weight[:, [0, 33]] != 0).any(axis=1)
    assert hit.any()
    got = layer.run(x)
    assert not np.isfinite(got[0, hit]).any()
    assert np.isfinite(got[0, ~hit]).all()
    assert np.isfinite(got[1:]).all()


@pytest.mark.parametrize("m", [1, 3, 40])
@pytest.mark.parametrize("beta", [1.0, 0.5], ids=["bias", "scaled"])
def test_gemm_activates_its_sums(
    m: int, beta: float, make_layer: Make, make_pruned: Make, run_model: Make, close: Make
) -> None:
    rng = np.random.default_rng(7)
    weight = make_pruned(rng, (21, 70), 0.2)
    bias = rng.standard_normal(21).astype(np.float32)
    x = rng.standard_normal((m, 70)).astype(np.float32)
    layer = make_layer("CsrGemm", weight, bias=bias, alpha=1.0, beta=beta, transA=0, transB=1)
    model = onnx.load_from_string(layer.model(sparse=True, rank=2))
    node = model.graph.node[0]
    node.attribute.extend(onnx.helper.make_attribute(k, 0.25) for k in ("low", "slope"))
    close(run_model(model, {"X": x}), np.maximum(layer.run(x, sparse=False), np.float32(0.25)))


@pytest.mark.parametrize("lead", [(), (4,), (3, 2)], ids=["vector", "matrix", "batch"])
def test_matmul_adds_a_bias(
    lead: tuple[int, ...], make_layer: Make, make_pruned: Make, run_model: Make, close: Make
) -> None:
    rng = np.random.default_rng(8)
    layer = make_layer("CsrMatMul", make_pruned(rng, (60, 23), 0.15))
    x = rng.standard_normal((*lead, 60)).astype(np.float32)
    model = onnx.load_from_string(layer.model(sparse=True, rank=x.ndim))
    bias = rng.standard_normal(23).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(bias, "bias"))
    model.graph.node[0].input.append("bias")
    close(run_model(model, {"X": x}), layer.run(x, sparse=False) + bias)


@pytest.mark.parametrize(
    "tail",
    [(60,), (60, 1), (60, 5), (60, 200), (2, 60, 64), (2, 3, 60, 7), (4, 60, 1), (0, 60, 3)],
    ids=lambda s: "x".join(map(str, s)),
)
def test_left_matmul_equals_dense(
    tail: tuple[int, ...], make_layer: Make, make_pruned: Make, run_model: Make, close: Make
) -> None:
    rng = np.random.default_rng(9)
    weight = make_pruned(rng, (23, 60), 0.15)
    layer = make_layer("CsrMatMul", weight)
    model = onnx.load_from_string(layer.model(sparse=True, rank=len(tail)))
    model.graph.node[0].op_type = "CsrLeftMatMul"
    b = rng.standard_normal(tail).astype(np.float32)
    for threads in (1, 2):
        close(run_model(model, {"X": b}, threads), np.matmul(weight, b))


def test_left_matmul_names_a_wrong_input(
    make_layer: Make, make_pruned: Make, run_model: Make
) -> None:
    layer = make_layer("CsrMatMul", make_pruned(np.random.default_rng(0), (5, 6), 0.5))
    model = onnx.load_from_string(layer.model(sparse=True, rank=2))
    model.graph.node[0].op_type = "CsrLeftMatMul"
    with pytest.raises(Exception, match="CsrLeftMatMul 'layer': B: expected 6 rows"):
        run_model(model, {"X": np.ones((5, 6), np.float32)})
