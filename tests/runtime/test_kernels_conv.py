"""CsrConv against a NumPy twin and ONNX Runtime's dense Conv."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

Array = npt.NDArray[Any]
Make = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("kernels")

# input, filters, density, attributes
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], float, dict[str, Any]]] = {
    "one_by_one": ((1, 1, 1, 1), (1, 1, 1, 1), 1.0, {}),
    "pointwise": ((2, 16, 14, 14), (24, 16, 1, 1), 0.2, {}),
    "pointwise_in_place": ((1, 16, 56, 56), (24, 16, 1, 1), 0.3, {}),
    "pointwise_cut_vectors": ((3, 12, 15, 17), (10, 12, 1, 1), 0.4, {}),
    "pointwise_blocks": ((2, 1500, 14, 14), (9, 1500, 1, 1), 0.1, {}),
    "pointwise_grouped": ((1, 12, 28, 28), (8, 3, 1, 1), 0.6, {"group": 4}),
    "pointwise_one_dimension": ((2, 20, 200), (11, 20, 1), 0.3, {}),
    "pointwise_many_channels": ((1, 300, 7, 7), (40, 300, 1, 1), 0.1, {}),
    "pointwise_strided": ((1, 8, 15, 15), (6, 8, 1, 1), 0.5, {"strides": [2, 2]}),
    "pointwise_padded": ((1, 8, 5, 5), (6, 8, 1, 1), 0.5, {"pads": [1, 0, 2, 3]}),
    "same_3x3": ((1, 20, 28, 28), (17, 20, 3, 3), 0.1, {"pads": [1, 1, 1, 1]}),
    "same_3x3_13": ((1, 33, 13, 13), (40, 33, 3, 3), 0.3, {"pads": [1, 1, 1, 1]}),
    "same_3x3_56": ((1, 6, 56, 56), (8, 6, 3, 3), 0.2, {"pads": [1, 1, 1, 1]}),
    "same_5x5": ((1, 8, 27, 27), (6, 8, 5, 5), 0.2, {"pads": [2, 2, 2, 2]}),
    "same_batch_of_small": ((5, 6, 7, 7), (8, 6, 3, 3), 0.3, {"pads": [1, 1, 1, 1]}),
    "wide": ((1, 5, 6, 117), (7, 5, 3, 3), 0.3, {"pads": [1, 1, 1, 1]}),
    "narrow": ((2, 5, 40, 3), (7, 5, 3, 3), 0.3, {"pads": [1, 1, 1, 1]}),
    "padded_on_one_side": ((2, 4, 16, 21), (5, 4, 3, 4), 0.3, {"pads": [0, 3, 2, 0]}),
    "many_channels": ((1, 130, 9, 9), (21, 130, 3, 3), 0.15, {"pads": [1, 1, 1, 1]}),
    "batch": ((5, 4, 10, 11), (7, 4, 3, 3), 0.3, {}),
    "stem_11x11": ((1, 3, 67, 67), (16, 3, 11, 11), 0.5, {"strides": [4, 4]}),
    "strided_odd": ((2, 5, 17, 13), (6, 5, 3, 5), 0.5, {"strides": [3, 2], "pads": [1, 2, 0, 1]}),
    "dilated": ((1, 6, 20, 19), (9, 6, 3, 3), 0.4, {"dilations": [2, 3], "pads": [2, 3, 2, 3]}),
    "dilated_strided": (
        (1, 4, 21, 22),
        (5, 4, 3, 2),
        0.6,
        {"dilations": [2, 3], "strides": [3, 2]},
    ),
    "group": ((1, 12, 9, 9), (8, 3, 3, 3), 0.4, {"group": 4, "pads": [1, 1, 1, 1]}),
    "depthwise": ((2, 10, 12, 12), (10, 1, 3, 3), 0.7, {"group": 10, "pads": [1, 1, 1, 1]}),
    "depthwise_two": ((1, 5, 8, 8), (10, 1, 3, 3), 0.7, {"group": 5}),
    "even_kernel": ((1, 3, 9, 9), (4, 3, 2, 4), 0.6, {"pads": [0, 1, 1, 2]}),
    "kernel_is_input": ((3, 6, 5, 5), (10, 6, 5, 5), 0.3, {}),
    "pads_beyond_input": ((1, 2, 2, 2), (3, 2, 3, 3), 0.8, {"pads": [4, 4, 4, 4]}),
    "one_dimension": ((2, 8, 50), (6, 8, 5), 0.3, {"pads": [2, 2]}),
    "one_dimension_strided": ((1, 4, 41), (6, 4, 7), 0.4, {"strides": [3], "dilations": [2]}),
    "three_dimensions": ((2, 3, 7, 8, 9), (5, 3, 3, 3, 3), 0.3, {"pads": [1] * 6}),
    "three_strided": ((1, 3, 9, 8, 7), (4, 3, 2, 3, 3), 0.5, {"strides": [2, 1, 2]}),
    "three_dilated_grouped": (
        (1, 4, 9, 9, 9),
        (6, 2, 3, 2, 3),
        0.5,
        {"group": 2, "dilations": [2, 1, 2], "pads": [2, 0, 1, 0, 1, 2]},
    ),
    "dense": ((1, 8, 12, 12), (8, 8, 3, 3), 1.0, {"pads": [1, 1, 1, 1]}),
    "no_nonzeros": ((1, 4, 6, 6), (5, 4, 3, 3), 0.0, {}),
    "batch_zero": ((0, 4, 6, 6), (5, 4, 3, 3), 0.5, {}),
}


def csr_conv(x: Array, weight: Array, bias: Array | None, attributes: dict[str, Any]) -> Array:
    """The NumPy twin: every stored weight adds a shifted, strided view of its input map."""
    axes = x.ndim - 2
    strides = attributes.get("strides", [1] * axes)
    dilations = attributes.get("dilations", [1] * axes)
    pads = attributes.get("pads", [0] * 2 * axes)
    group = attributes.get("group", 1)
    padded = np.pad(
        x.astype(np.float64), [(0, 0), (0, 0), *zip(pads[:axes], pads[axes:], strict=True)]
    )
    spans = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    out = [
        (size - span) // stride + 1
        for size, span, stride in zip(padded.shape[2:], spans, strides, strict=True)
    ]
    y = np.zeros((x.shape[0], weight.shape[0], *out))
    for m, c, *taps in zip(*np.nonzero(weight), strict=True):
        channel = m // (weight.shape[0] // group) * weight.shape[1] + c
        window = tuple(
            slice(t * d, t * d + (o - 1) * s + 1, s)
            for t, d, o, s in zip(taps, dilations, out, strides, strict=True)
        )
        y[:, m] += float(weight[(m, c, *taps)]) * padded[(slice(None), channel, *window)]
    if bias is not None:
        y += bias.reshape(1, -1, *[1] * axes)
    return y.astype(np.float32)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("biased", [False, True], ids=["no_bias", "bias"])
def test_conv_equals_twin_and_dense(
    case: tuple[tuple[int, ...], tuple[int, ...], float, dict[str, Any]],
    biased: bool,
    make_layer: Make,
    make_pruned: Make,
    close: Make,
) -> None:
    shape, filters, density, attributes = case
    rng = np.random.default_rng(11)
    weight = make_pruned(rng, filters, density)
    if filters[0] > 4:
        weight[3] = 0
    bias = rng.standard_normal(filters[0]).astype(np.float32) if biased else None
    x = rng.standard_normal(shape).astype(np.float32)
    layer = make_layer("CsrConv", weight, bias=bias, kernel_shape=list(filters[2:]), **attributes)
    got = layer.run(x, times=5)  # from the fourth run on, the layer knows how many threads it has
    close(got, csr_conv(x, weight, bias, attributes))
    if x.size:  # ONNX Runtime's own Conv refuses an empty batch in some versions
        close(got, layer.run(x, sparse=False))
    close(layer.run(x, threads=2, times=5), got)


@pytest.mark.parametrize(
    ("auto_pad", "stride", "size"),
    list(itertools.product(["SAME_UPPER", "SAME_LOWER", "VALID"], [1, 2, 3], [7, 8])),
)
def test_conv_auto_pad(
    auto_pad: str, stride: int, size: int, make_layer: Make, make_pruned: Make, close: Make
) -> None:
    rng = np.random.default_rng(12)
    weight = make_pruned(rng, (4, 3, 3, 4), 0.5)
    layer = make_layer(
        "CsrConv", weight, auto_pad=auto_pad, strides=[stride, stride], kernel_shape=[3, 4]
    )
    x = rng.standard_normal((1, 3, size, size + 2)).astype(np.float32)
    close(layer.run(x), layer.run(x, sparse=False))


def test_conv_session_takes_changing_shapes_from_many_threads(
    make_layer: Make, make_pruned: Make, close: Make
) -> None:
    import onnxruntime as ort

    from dns_onnx.runtime.library import library_path

    rng = np.random.default_rng(13)
    weight = make_pruned(rng, (12, 8, 3, 3), 0.3)
    layer = make_layer("CsrConv", weight, pads=[1, 1, 1, 1])
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.register_custom_ops_library(str(library_path()))
    session = ort.InferenceSession(
        layer.model(sparse=True, rank=4), options, providers=["CPUExecutionProvider"]
    )
    inputs = [
        rng.standard_normal((1 + i % 3, 8, 5 + i, 9 + i % 4)).astype(np.float32) for i in range(24)
    ]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda x: session.run(None, {"X": x})[0], inputs * 2))
    for x, got in zip(inputs * 2, results, strict=True):
        close(got, csr_conv(x, weight, None, {"pads": [1, 1, 1, 1]}))


ACTIVATIONS = {
    "relu": {"low": 0.0},
    "clip": {"low": -0.5, "high": 0.75},
    "leaky": {"slope": 0.1},
    "leaky_above_one": {"slope": 3.0, "high": 2.0},
}


def activated(y: Array, low: float = -np.inf, high: float = np.inf, slope: float = 1) -> Array:
    return np.clip(np.where(y < 0, y * np.float32(slope), y), low, high).astype(np.float32)


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
@pytest.mark.parametrize(
    "case",
    [
        ((2, 16, 15, 15), (24, 16, 1, 1), {}),
        ((2, 150, 7, 7), (24, 150, 1, 1), {}),
        ((1, 6, 13, 13), (9, 6, 3, 3), {"pads": [1, 1, 1, 1]}),
        ((2, 6, 28, 30), (9, 6, 3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ((1, 3, 6, 7, 8), (4, 3, 2, 2, 2), {}),
    ],
    ids=["in_place", "panels", "patches", "strided", "three_dimensions"],
)
@pytest.mark.parametrize("adds", [False, True], ids=["alone", "residual"])
def test_conv_finishes_its_sums(
    case: tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]],
    activation: dict[str, float],
    adds: bool,
    make_layer: Make,
    make_pruned: Make,
    run_model: Make,
    close: Make,
) -> None:
    shape, filters, attributes = case
    rng = np.random.default_rng(14)
    weight = make_pruned(rng, filters, 0.3)
    weight[2] = 0
    bias = rng.standard_normal(filters[0]).astype(np.float32)
    x = rng.standard_normal(shape).astype(np.float32)
    layer = make_layer("CsrConv", weight, bias=bias, **attributes)
    want = csr_conv(x, weight, bias, attributes)
    feeds = {"X": x}
    if adds:
        feeds["Z"] = rng.standard_normal(want.shape).astype(np.float32)
        want += feeds["Z"]
    model = onnx.load_from_string(layer.model(sparse=True, rank=len(shape)))
    node = model.graph.node[0]
    node.attribute.extend(onnx.helper.make_attribute(k, v) for k, v in activation.items())
    if adds:
        node.input.extend(["", "Z"])
        model.graph.input.append(
            onnx.helper.make_tensor_value_info("Z", onnx.TensorProto.FLOAT, want.shape)
        )
    for threads in (1, 2):
        close(run_model(model, feeds, threads), activated(want, **activation))


def test_conv_residual_of_another_shape_is_an_error(
    make_layer: Make, make_pruned: Make, run_model: Make
) -> None:
    weight = make_pruned(np.random.default_rng(0), (4, 3, 1, 1), 0.5)
    layer = make_layer("CsrConv", weight, bias=np.zeros(4, np.float32))
    model = onnx.load_from_string(layer.model(sparse=True, rank=4))
    model.graph.node[0].input.extend(["", "Z"])
    model.graph.input.append(
        onnx.helper.make_tensor_value_info("Z", onnx.TensorProto.FLOAT, [None] * 4)
    )
    feeds = {"X": np.ones((1, 3, 2, 2), np.float32), "Z": np.ones((1, 4, 1, 2), np.float32)}
    with pytest.raises(Exception, match=r"CsrConv 'layer': Z: expected shape \[1, 4, 2, 2\]"):
        run_model(model, feeds)


def test_conv_activation_passes_nan_through(make_layer: Make, run_model: Make) -> None:
    layer = make_layer("CsrConv", np.ones((2, 1, 1, 1), np.float32))
    model = onnx.load_from_string(layer.model(sparse=True, rank=4))
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("low", 0.0))
    x = np.array([np.nan, -1, -np.inf, np.inf, 2], np.float32).reshape(1, 1, 1, 5)
    got = run_model(model, {"X": x})
    np.testing.assert_array_equal(got[0, 1, 0], [np.nan, 0, 0, np.inf, 2])


def test_conv_nan_spreads_only_through_stored_weights(make_layer: Make) -> None:
    weight = np.zeros((2, 1, 3, 3), np.float32)
    weight[0, 0, 1, 1] = 1
    weight[1, 0, 0, 0] = 1
    x = np.zeros((1, 1, 6, 6), np.float32)
    x[0, 0, 2, 2] = np.nan
    got = make_layer("CsrConv", weight, pads=[1, 1, 1, 1]).run(x)
    assert np.argwhere(np.isnan(got)).tolist() == [[0, 0, 2, 2], [0, 1, 3, 3]]
