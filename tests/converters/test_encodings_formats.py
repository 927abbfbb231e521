"""A model written in any format computes the same, and comes back as it was."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator

from dns_onnx.converters.encodings import FORMATS, choose, is_encoded, kernels, to_dense
from dns_onnx.converters.encodings.crossover import kernel_pays
from dns_onnx.converters.exporter import convert, export_model

from .exporter_models import DECODING, build, operators, run, sparse, tensors

ENCODED = [name for name in FORMATS if name != "dense"]


def gemm(trans_a: int, trans_b: int, bias: bool, opset: int = 13, **attributes: Any) -> ModelProto:
    rng = np.random.default_rng(1)
    weights = {"W": sparse(rng, (24, 200) if trans_b else (200, 24))}
    if bias:
        weights["b"] = rng.standard_normal(24).astype(np.float32)
    node = helper.make_node(
        "Gemm", ["X", *weights], ["Y"], name="fc", transA=trans_a, transB=trans_b, **attributes
    )
    return build([node], {"X": (200, "n") if trans_a else ("n", 200)}, weights, opset=opset)


def conv(
    spatial: int, group: int, opset: int = 13, density: float = 0.1, **attributes: Any
) -> ModelProto:
    rng = np.random.default_rng(2)
    weights = {
        "W": sparse(rng, (36, 36 // group, *[3] * spatial), density),
        "b": rng.standard_normal(36).astype(np.float32),
    }
    node = helper.make_node("Conv", ["X", *weights], ["Y"], group=group, **attributes)
    return build([node], {"X": (1, 36, *[9] * spatial)}, weights, opset=opset)


def matmul(rank: int, opset: int = 13) -> ModelProto:
    weights = {"W": sparse(np.random.default_rng(3), (120, 40))}
    shape = [2, 3, 4, 120][-rank:]
    return build(
        [helper.make_node("MatMul", ["X", "W"], ["Y"])], {"X": shape}, weights, opset=opset
    )


def tied() -> ModelProto:
    weights = {"W": sparse(np.random.default_rng(4), (60, 60))}
    nodes = [
        helper.make_node("Transpose", ["W"], ["T"], perm=[1, 0]),
        helper.make_node("MatMul", ["X", "T"], ["H"]),
        helper.make_node("MatMul", ["H", "W"], ["Y"]),
    ]
    return build(nodes, {"X": (2, 60)}, weights)


def in_branch(opset: int = 13) -> ModelProto:
    """W in a body's initializers, V in its Constant, U around it and read inside."""
    rng = np.random.default_rng(5)
    value = onnx.numpy_helper.from_array(sparse(rng, (50, 50)))
    body = helper.make_graph(
        [
            helper.make_node("Constant", [], ["V"], value=value),
            helper.make_node("MatMul", ["X", "W"], ["h1"]),
            helper.make_node("MatMul", ["h1", "V"], ["h2"]),
            helper.make_node("MatMul", ["h2", "U"], ["y1"]),
        ],
        "yes",
        [],
        [helper.make_tensor_value_info("y1", TensorProto.FLOAT, [2, 50])],
        [onnx.numpy_helper.from_array(sparse(rng, (50, 50)), "W")],
    )
    other = helper.make_graph(
        [helper.make_node("Relu", ["X"], ["y2"])],
        "no",
        [],
        [helper.make_tensor_value_info("y2", TensorProto.FLOAT, [2, 50])],
    )
    nodes = [
        helper.make_node("ReduceMax", ["X"], ["m"], keepdims=0),
        helper.make_node("Cast", ["m"], ["c"], to=TensorProto.BOOL),
        helper.make_node("If", ["c"], ["Y"], then_branch=body, else_branch=other),
    ]
    return build(nodes, {"X": (2, 50)}, {"U": sparse(rng, (50, 50))}, opset=opset)


def recurrent(op_type: str, gates: int) -> ModelProto:
    rng = np.random.default_rng(6)
    weights = {
        "W": sparse(rng, (1, gates * 16, 24)),
        "R": sparse(rng, (1, gates * 16, 16)),
    }
    node = helper.make_node(op_type, ["X", "W", "R"], ["Y"], hidden_size=16)
    return build([node], {"X": (3, 1, 24)}, weights)


def in_loop() -> ModelProto:
    """W in the body of a Loop that runs three times, U around it and read inside."""
    rng = np.random.default_rng(12)
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "W"], ["h1"]),
            helper.make_node("MatMul", ["h1", "U"], ["next"]),
            helper.make_node("Identity", ["go_on"], ["still"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [2, 50]),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [2, 50]),
        ],
        [onnx.numpy_helper.from_array(0.5 * sparse(rng, (50, 50)), "W")],
    )
    weights = {"three": np.int64(3), "always": np.bool_(True), "U": 0.5 * sparse(rng, (50, 50))}
    nodes = [
        helper.make_node("Loop", ["three", "always", "X"], ["state_3"], body=body),
        helper.make_node("Reshape", ["state_3", "shape"], ["Y"]),
    ]
    return build(nodes, {"X": (2, 50)}, {**weights, "shape": np.array([2, 50])})


def in_scan() -> ModelProto:
    """W in the body of a Scan over four steps."""
    rng = np.random.default_rng(13)
    row = [TensorProto.FLOAT, [60]]
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "W"], ["h"]),
            helper.make_node("Add", ["sum", "h"], ["total"]),
            helper.make_node("Identity", ["total"], ["seen"]),
        ],
        "body",
        [helper.make_tensor_value_info(name, *row) for name in ("sum", "x")],
        [helper.make_tensor_value_info(name, *row) for name in ("total", "seen")],
        [onnx.numpy_helper.from_array(sparse(rng, (60, 60)), "W")],
    )
    start = np.ones(60, np.float32)
    node = helper.make_node("Scan", ["start", "X"], ["last", "Y"], body=body, num_scan_inputs=1)
    return build([node], {"X": (4, 60)}, {"start": start})


MODELS: dict[str, ModelProto] = {
    **{
        f"Gemm transA={a} transB={b} bias={c}": gemm(a, b, c)
        for a in (0, 1)
        for b in (0, 1)
        for c in (False, True)
    },
    "Gemm alpha beta": gemm(0, 1, True, alpha=0.5, beta=2.0),
    **{f"Gemm opset {o}": gemm(0, 1, True, o) for o in (11, 12, 14, 18, 20, 21)},
    **{f"Conv {d}-D group={g}": conv(d, g) for d in (1, 2) for g in (1, 3)},
    "Conv strided": conv(2, 1, strides=[2, 1], pads=[1, 0, 1, 2], dilations=[1, 2]),
    "Conv SAME_UPPER": conv(2, 1, auto_pad="SAME_UPPER"),
    "Conv SAME_LOWER strided": conv(2, 1, auto_pad="SAME_LOWER", strides=[2, 2]),
    "Conv VALID": conv(1, 1, auto_pad="VALID", kernel_shape=[3], strides=[1]),
    **{f"Conv opset {o}": conv(2, 1, o) for o in (11, 18, 21)},
    **{f"MatMul rank {r}": matmul(r) for r in (1, 2, 3, 4)},
    "tied": tied(),
    "If": in_branch(),
    "If opset 18": in_branch(11),
    "Loop": in_loop(),
    "Scan": in_scan(),
    "LSTM": recurrent("LSTM", 4),
    "GRU": recurrent("GRU", 3),
}


def feeds(model: ModelProto) -> dict[str, Any]:
    rng = np.random.default_rng(7)
    return {
        value.name: rng.standard_normal(
            [dim.dim_value or 3 for dim in value.type.tensor_type.shape.dim]
        ).astype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
        for value in model.graph.input
    }


@pytest.mark.parametrize("format", ENCODED)
@pytest.mark.parametrize("name", MODELS)
def test_same_outputs_and_same_bytes_back(name: str, format: str, tmp_path: Any) -> None:
    model = MODELS[name]
    original = model.SerializeToString()
    made = convert(model, format)
    assert model.SerializeToString() == original
    assert is_encoded(made.model)
    assert made.model.ByteSize() < model.ByteSize()
    onnx.checker.check_model(made.model, full_check=format != "coo")
    x = feeds(model)
    wanted, got = run(model, **x), run(made.model, tmp_path / "optimized.onnx", **x)
    for a, b in zip(wanted, got, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)
    assert not operators(onnx.load(tmp_path / "optimized.onnx")) & DECODING
    if format != "coo" and name not in ("LSTM", "GRU"):  # the reference knows no sparse_initializer
        np.testing.assert_allclose(
            ReferenceEvaluator(made.model).run(None, x)[0], wanted[0], rtol=1e-4, atol=1e-4
        )
    back = to_dense(made.model)
    assert not is_encoded(back)
    assert back.SerializeToString() == original


@pytest.mark.parametrize("second", FORMATS)
@pytest.mark.parametrize("first", ENCODED)
def test_formats_convert_into_each_other(first: str, second: str) -> None:
    model = in_branch()
    once = convert(model, first).model
    twice = convert(once, second).model
    assert convert(twice, "dense").model.SerializeToString() == model.SerializeToString()


WANTED_OPERATORS = {
    "Gemm transA=0 transB=1 bias=True": {"CsrGemm"},
    "Conv 2-D group=3": {"CsrConv"},
    "Conv SAME_LOWER strided": {"CsrConv"},
    "MatMul rank 3": {"CsrMatMul"},
    "If": {"CsrMatMul"},
    "Loop": {"CsrMatMul"},
    "Scan": {"CsrMatMul"},
    "tied": {"CsrToDense"},
    "LSTM": {"CsrToDense"},
    "GRU": {"CsrToDense"},
}


@pytest.mark.parametrize("name", WANTED_OPERATORS)
def test_layers_become_sparse_operators_where_there_is_one(name: str) -> None:
    rows = convert(MODELS[name], "csr").tensors
    assert {row.operator for row in rows if row.encoding != "dense"} == WANTED_OPERATORS[name]


def test_padding_that_depends_on_a_free_size_stays_plain() -> None:
    model = conv(2, 1, 13, 0.03, auto_pad="SAME_UPPER", strides=[2, 2])
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.Clear()
    (row,) = (r for r in convert(model, "csr").tensors if r.encoding != "dense")
    assert row.operator == "CsrToDense"
    assert row.reason == "its padding depends on the input size"


@pytest.mark.parametrize("shape", [(40, 30), (30, 40)], ids=["high", "wide"])
def test_layers_beyond_the_kernels_keep_their_plain_node(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_MOST_ROWS", 39)
    weights = {"W": sparse(np.random.default_rng(8), shape, 0.1)}
    model = build([helper.make_node("MatMul", ["X", "W"], ["Y"])], {"X": (1, shape[0])}, weights)
    (row,) = convert(model, "csr").tensors
    assert row.operator == "CsrToDense"
    assert row.reason == "sparse operators take at most 39 rows and columns"


@pytest.mark.parametrize("density", [0.03, 0.15, 0.6])
def test_dense_layers_keep_their_plain_node(density: float) -> None:
    weights = {"W": sparse(np.random.default_rng(8), (300, 300), density)}
    model = build([helper.make_node("MatMul", ["X", "W"], ["Y"])], {"X": (1, 300)}, weights)
    made = convert(model, "csr")
    (row,) = made.tensors
    assert row.operator == ("CsrMatMul" if density < 0.2 else "BitmaskToDense")
    assert ("a dense kernel is faster" in row.reason) == (density > 0.2)
    assert not convert(model, "csr", wants_kernel=lambda *_: False).tensors[0].reason == ""
    x = np.ones((1, 300), np.float32)
    assert np.array_equal(run(made.model, X=x)[0], run(model, X=x)[0])


# op_type, weight shape, a density where the kernel pays, one where it does not
CROSSOVERS = {
    "3x3 convolution": ("Conv", (64, 64, 3, 3), 0.75, 0.85),
    "grouped convolution": ("Conv", (64, 32, 3, 3), 0.75, 0.85),
    "1x1 convolution": ("Conv", (64, 64, 1, 1), 0.7, 0.75),
    "matrix of 1 MB": ("Gemm", (512, 512), 0.2, 0.25),
    "matrix of 16 MB": ("MatMul", (2048, 2048), 0.3, 0.4),
    "matrix of 144 MB": ("Gemm", (4096, 9216), 0.5, 0.6),
}


@pytest.mark.parametrize("case", CROSSOVERS)
def test_cost_model(case: str) -> None:
    op_type, shape, pays, loses = CROSSOVERS[case]
    node = helper.make_node(op_type, ["X", "W"], ["Y"])
    assert kernel_pays(node, shape, pays)
    assert not kernel_pays(node, shape, loses)


def test_depthwise_convolutions_stay_dense_at_any_density() -> None:
    assert not kernel_pays(helper.make_node("Conv", ["X", "W"], ["Y"]), (64, 1, 3, 3), 0.01)


NARROW = {TensorProto.FLOAT16: np.float16, TensorProto.BFLOAT16: ml_dtypes.bfloat16}


@pytest.mark.parametrize("format", ENCODED)
@pytest.mark.parametrize("kind", NARROW)
def test_narrow_floats_keep_their_bits(kind: int, format: str) -> None:
    weight = sparse(np.random.default_rng(9), (80, 90)).astype(NARROW[kind])
    cast = helper.make_node("Cast", ["W"], ["Wf"], to=TensorProto.FLOAT)
    node = helper.make_node("MatMul", ["X", "Wf"], ["Y"])
    model = build([cast, node], {"X": (2, 80)}, {"W": weight})
    made = convert(model, format)
    assert made.tensors[0].encoding != "dense"
    onnx.checker.check_model(made.model)
    x = np.ones((2, 80), np.float32)
    assert np.array_equal(run(made.model, X=x)[0], run(model, X=x)[0])
    assert to_dense(made.model).SerializeToString() == model.SerializeToString()


def test_double_stays_dense_in_csr_with_the_reason() -> None:
    weight = sparse(np.random.default_rng(10), (80, 90)).astype(np.float64)
    node = helper.make_node("MatMul", ["X", "W"], ["Y"])
    model = build([node], {"X": (2, 80)}, {"W": weight}, element=TensorProto.DOUBLE)
    (row,) = convert(model, "csr").tensors
    assert (row.encoding, "float64" in row.reason) == ("dense", True)
    assert convert(model, "portable").tensors[0].encoding.startswith("portable")


def test_special_values_survive_every_format_and_negative_zero_is_cut() -> None:
    weight = np.zeros((40, 50), np.float32)
    special = np.array([np.nan, np.inf, -np.inf, 1e-45, -1e-40, -0.0], np.float32)
    weight.reshape(-1)[[3, 99, 500, 501, 1200, 1999]] = special
    wanted = weight.copy()
    wanted.reshape(-1)[1999] = 0.0
    node = helper.make_node("MatMul", ["X", "W"], ["Y"])
    model = build([node], {"X": (2, 40)}, {"W": np.ones((40, 50), np.float32)})
    for format in FORMATS:
        made = export_model(model, {"W": weight}, format=format)
        for other in FORMATS:
            back = convert(convert(made.model, other).model, "dense").model
            assert tensors(back)["W"].tobytes() == wanted.tobytes(), (format, other)


def test_taken_names_are_left_alone() -> None:
    rng = np.random.default_rng(11)
    weights = {"W": sparse(rng, (60, 60)), "W.values": rng.standard_normal(60).astype(np.float32)}
    nodes = [
        helper.make_node("MatMul", ["X", "W"], ["H"]),
        helper.make_node("Add", ["H", "W.values"], ["Y"]),
    ]
    model = build(nodes, {"X": (2, 60)}, weights)
    made = convert(model, "csr")
    onnx.checker.check_model(made.model, full_check=True)
    assert to_dense(made.model).SerializeToString() == model.SerializeToString()


def test_run_time_operands_are_refused() -> None:
    made = convert(gemm(0, 1, True), "csr").model
    values = next(t for t in made.graph.initializer if t.name == "W.values")
    made.graph.input.append(helper.make_tensor_value_info("W.values", 1, list(values.dims)))
    made.graph.initializer.remove(values)
    with pytest.raises(Exception, match=r"'W\.values' to be stored in the file"):
        to_dense(made)


def test_columns_are_stored_where_they_are_smaller_than_gaps() -> None:
    weight = np.zeros((8000, 200), np.float32)
    weight[::50] = sparse(np.random.default_rng(14), (160, 200), 0.6)
    node = helper.make_node("Gemm", ["X", "W"], ["Y"], transB=1)
    model = build([node], {"X": (2, 200)}, {"W": weight})
    made = convert(model, "csr")
    assert (made.tensors[0].encoding, made.tensors[0].operator) == ("csr uint8", "CsrGemm")
    x = feeds(model)
    np.testing.assert_allclose(run(made.model, **x)[0], run(model, **x)[0], rtol=1e-5, atol=1e-5)
    assert to_dense(made.model).SerializeToString() == model.SerializeToString()


@pytest.mark.parametrize(
    ("density", "small", "large"),
    [
        (0.9, "csr bitmask", "dense"),
        (0.6, "csr bitmask", "dense"),
        (0.3, "csr bitmask", "csr uint8 gaps"),
        (0.1, "csr uint8 gaps", "csr uint8 gaps"),
    ],
)
def test_a_large_model_takes_no_form_that_needs_much_memory(
    density: float, small: str, large: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {"W": sparse(np.random.default_rng(15), (400, 400), density)}
    model = build([helper.make_node("MatMul", ["X", "W"], ["Y"])], {"X": (1, 400)}, weights)
    never = {"wants_kernel": lambda *_: False}
    assert convert(model, "csr", **never).tensors[0].encoding == small
    monkeypatch.setattr(choose, "_MUCH_MEMORY", 1 << 20)
    (row,) = convert(model, "csr", **never).tensors
    assert row.encoding == large
    assert ("memory" in row.reason) == (large == "dense")
