"""Dead units go, and the model computes what it did."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper

from dns_onnx.converters.exporter import export_model
from dns_onnx.converters.shrink import drop_dead

from .exporter_models import build, run, tensors


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def chain(*activations: Any, pads: int = 0, bias: bool = True, **weights: Any) -> ModelProto:
    """Conv a [8 of 3] -> activations -> Conv b [6 of 8], on 10x10 images."""
    held = {"a.w": normal(8, 3, 3, 3), "a.b": normal(8, seed=1), "b.w": normal(6, 8, 3, 3, seed=2)}
    held["b.b"] = normal(6, seed=3)
    held.update(weights)
    nodes = [helper.make_node("Conv", ["X", "a.w", "a.b"], ["t0"], name="a")]
    for index, (op_type, extra, attributes) in enumerate(activations):
        inputs, output = [f"t{index}", *extra], f"t{index + 1}"
        nodes.append(helper.make_node(op_type, inputs, [output], **attributes))
    inputs = [f"t{len(activations)}", "b.w", *(["b.b"] if bias else [])]
    nodes.append(helper.make_node("Conv", inputs, ["Y"], name="b", pads=[pads] * 4))
    if not bias:
        del held["b.b"]
    return build(nodes, {"X": (2, 3, 10, 10)}, held)


def kill(model: ModelProto, name: str, axis: int, *units: int) -> None:
    """Set the weights of some units to zero along one axis of a stored tensor."""
    for tensor in model.graph.initializer:
        if tensor.name == name:
            weight = onnx.numpy_helper.to_array(tensor).copy()
            np.moveaxis(weight, axis, 0)[list(units)] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(weight, name))


def check(model: ModelProto, **wanted: list[int]) -> list[Any]:
    """Shrink, compare outputs and the shapes wanted (axis names with _ for .)."""
    shrunk, rows = drop_dead(model)
    onnx.checker.check_model(shrunk, full_check=True)
    shape = [dim.dim_value or 5 for dim in model.graph.input[0].type.tensor_type.shape.dim]
    x = normal(*shape, seed=9)
    before, after = run(model, X=x)[0], run(shrunk, X=x)[0]
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)
    shapes = {name: list(array.shape) for name, array in tensors(shrunk).items()}
    for name, dims in wanted.items():
        assert shapes[name.replace("_", ".")] == dims
    return rows


RELU = ("Relu", [], {})
POOL = ("MaxPool", [], {"kernel_shape": [2, 2]})
MEAN = ("AveragePool", [], {"kernel_shape": [2, 2], "pads": [1, 1, 1, 1]})
LEAKY = ("LeakyRelu", [], {"alpha": 0.2})


@pytest.mark.parametrize("activations", [[], [RELU], [POOL, RELU], [LEAKY, POOL], [MEAN]])
def test_constant_channels_go_into_the_next_bias(activations: list[Any]) -> None:
    model = chain(*activations)
    kill(model, "a.w", 0, 1, 4, 5)
    a, b = check(model, a_w=[5, 3, 3, 3], a_b=[5], b_w=[6, 5, 3, 3], b_b=[6])
    assert (a.node, a.before, a.after, a.reason) == ("a", 8, 5, "")
    assert (b.before, b.after) == (6, 6)
    assert "leaves the graph" in b.reason


def test_a_missing_bias_is_made() -> None:
    model = chain(RELU, bias=False)
    kill(model, "a.w", 0, 2)
    check(model, a_w=[7, 3, 3, 3])


def test_padding_keeps_constants_but_not_zeros() -> None:
    model = chain(RELU, pads=1, **{"a.b": np.array([1, -1, 0, 1, 1, 1, 1, 1], np.float32)})
    kill(model, "a.w", 0, 0, 1, 2)
    a, _ = check(model, a_w=[6, 3, 3, 3])  # relu(-1) and 0 go, 1 stays
    assert a.reason == "1 constant units stay: a padded or bias-free layer reads them"


def test_average_pool_that_counts_padding_keeps_constants() -> None:
    attributes = {"kernel_shape": [2, 2], "pads": [1, 1, 1, 1], "count_include_pad": 1}
    model = chain(("AveragePool", [], attributes))
    kill(model, "a.w", 0, 3)
    check(model, a_w=[8, 3, 3, 3])


def test_unread_channels_go_even_before_padding() -> None:
    model = chain(RELU, pads=1)
    kill(model, "b.w", 1, 0, 7)
    check(model, a_w=[6, 3, 3, 3], b_w=[6, 6, 3, 3])


def test_batch_normalization_is_cut_with_its_channels() -> None:
    held = {f"n.{i}": np.abs(normal(8, seed=20 + i)) + 0.5 for i in range(4)}
    model = chain(("BatchNormalization", list(held), {}), RELU, **held)
    kill(model, "a.w", 0, 0, 6)
    check(model, a_w=[6, 3, 3, 3], n_0=[6], n_3=[6])


def test_a_bias_per_channel_is_cut_too() -> None:
    model = chain(("Add", ["k"], {}), RELU, k=normal(8, 1, 1, seed=30))
    kill(model, "a.w", 0, 0, 6)
    check(model, a_w=[6, 3, 3, 3], k=[6, 1, 1])


def test_clip_with_stored_bounds() -> None:
    bounds = {"low": np.float32(0), "high": np.float32(6)}
    model = chain(("Clip", ["low", "high"], {}), **bounds)
    kill(model, "a.w", 0, 0, 6)
    check(model, a_w=[6, 3, 3, 3])


def blocked(*nodes: Any, **weights: Any) -> str:
    held = {"a.w": normal(8, 8), "b.w": normal(8, 6, seed=1), **weights}
    model = build(
        [helper.make_node("MatMul", ["X", "a.w"], ["h"], name="a"), *nodes], {"X": (2, 8)}, held
    )
    kill(model, "a.w", 1, 0, 3)
    rows = check(model, a_w=[8, 8])
    reason: str = rows[0].reason
    return reason


def test_whatever_mixes_units_blocks_with_the_reason() -> None:
    read = helper.make_node("MatMul", ["r", "b.w"], ["Y"])
    add = helper.make_node("Add", ["h", "X"], ["r"])
    assert "Add 'r' joins them with something" in blocked(add, read)
    softmax = helper.make_node("Softmax", ["h"], ["r"])
    assert "2 units are all zero, kept: Softmax 'r' may mix them" in blocked(softmax, read)
    square = helper.make_node("MatMul", ["h", "h"], ["Y"])
    with_self = build(
        [helper.make_node("MatMul", ["X", "W"], ["h"]), square], {"X": (8, 8)}, {"W": normal(8, 8)}
    )
    kill(with_self, "W", 1, 0)
    assert "as something else" in check(with_self, W=[8, 8])[0].reason


def test_matmul_folds_only_into_an_add() -> None:
    held = {"a.w": normal(8, 8), "a.b": normal(8, seed=1), "b.w": normal(8, 6, seed=2)}
    nodes = [
        helper.make_node("MatMul", ["X", "a.w"], ["h"]),
        helper.make_node("Add", ["h", "a.b"], ["s"]),
        helper.make_node("Relu", ["s"], ["r"]),
        helper.make_node("MatMul", ["r", "b.w"], ["p"]),
    ]
    add = helper.make_node("Add", ["b.b", "p"], ["Y"])
    with_bias = build([*nodes, add], {"X": (3, 2, 8)}, {**held, "b.b": normal(6, seed=3)})
    kill(with_bias, "a.w", 1, 0, 1, 2, 3)
    check(with_bias, a_w=[8, 4], a_b=[4], b_w=[4, 6])
    nodes[-1].output[0] = "Y"
    without = build(nodes, {"X": (3, 2, 8)}, {**held, "a.b": np.array([1, -1] * 4, np.float32)})
    kill(without, "a.w", 1, 0, 1, 2, 3)
    check(without, a_w=[8, 6])  # relu(-1) goes, relu(1) has no bias to go into


@pytest.mark.parametrize("trans_b", [0, 1])
def test_gemm_in_both_orientations_with_alpha_and_beta(trans_b: int) -> None:
    held = {"a.w": normal(30, 20), "a.b": normal(1, 30, seed=1), "b.w": normal(9, 30, seed=2)}
    held["b.b"] = normal(9, seed=3)
    if not trans_b:
        held["a.w"], held["b.w"] = held["a.w"].T.copy(), held["b.w"].T.copy()
    options = {"transB": trans_b, "alpha": 0.5, "beta": 2.0}
    nodes = [
        helper.make_node("Gemm", ["X", "a.w", "a.b"], ["h"], **options),
        helper.make_node("Sigmoid", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "b.w", "b.b"], ["Y"], **options),
    ]
    model = build(nodes, {"X": ("n", 20)}, held)
    kill(model, "a.w", 0 if trans_b else 1, *range(5))
    kill(model, "b.w", 1 if trans_b else 0, 28, 29)
    check(model, a_b=[1, 23], b_b=[9])


@pytest.mark.parametrize("target", [[0, -1], [2, -1], [-1, 512], [2, 512], None])
def test_flattened_channels_are_blocks_of_features(target: list[int] | None) -> None:
    held = {"a.w": normal(8, 3, 3, 3), "a.b": normal(8, seed=1), "b.w": normal(5, 512, seed=2)}
    flatten = helper.make_node("Flatten", ["h"], ["f"])
    if target is not None:
        held["shape"] = np.array(target, np.int64)
        flatten = helper.make_node("Reshape", ["h", "shape"], ["f"])
    nodes = [
        helper.make_node("Conv", ["X", "a.w", "a.b"], ["h"]),
        flatten,
        helper.make_node("Gemm", ["f", "b.w"], ["Y"], transB=1),
    ]
    model = build(nodes, {"X": (2, 3, 10, 10)}, held)
    kill(model, "a.w", 0, 2, 3)
    check(model, a_w=[6, 3, 3, 3], b_w=[5, 384])


def test_a_reshape_that_may_move_entries_between_examples_blocks() -> None:
    held = {"a.w": normal(8, 3, 3, 3), "b.w": normal(5, 256, seed=2)}
    held["shape"] = np.array([-1, 256], np.int64)
    nodes = [
        helper.make_node("Conv", ["X", "a.w"], ["h"]),
        helper.make_node("Reshape", ["h", "shape"], ["f"]),
        helper.make_node("Gemm", ["f", "b.w"], ["Y"], transB=1),
    ]
    model = build(nodes, {"X": (2, 3, 10, 10)}, held)
    kill(model, "a.w", 0, 2, 3)
    assert "between examples" in check(model, a_w=[8, 3, 3, 3])[0].reason


def test_what_goes_takes_its_own_inputs_along() -> None:
    held = {f"w{i}": normal(6, 6, seed=i) for i in range(4)}
    names = ["X", "h0", "h1", "h2", "Y"]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(4)]
    model = build(nodes, {"X": (2, 6)}, held)
    kill(model, "w3", 0, 0, 1, 2)  # so h2's units 0..2 are unread
    kill(model, "w2", 0, 5)
    for name in ("w2", "w1"):
        kill(model, name, 0, 4)
    check(model, w0=[6, 5], w1=[5, 4], w2=[4, 3], w3=[3, 6])


def test_a_layer_never_loses_its_last_unit() -> None:
    model = chain(RELU)
    kill(model, "b.w", 1, *range(8))
    check(model, a_w=[1, 3, 3, 3], b_w=[6, 1, 3, 3])


def test_exported_with_the_rest(tmp_path: Path) -> None:
    model = chain(RELU)
    weight = tensors(model)["a.w"].copy()
    weight[:6] = 0
    made = export_model(model, {"a.w": weight}, tmp_path / "small.onnx", drop_dead=True)
    assert [(row.before, row.after) for row in made.dropped] == [(8, 2), (6, 6)]
    assert made.tensors[0].shape == (2, 3, 3, 3)
    kept = export_model(model, {"a.w": weight}, format="dense").model
    x = normal(2, 3, 10, 10)
    np.testing.assert_allclose(run(made.model, X=x)[0], run(kept, X=x)[0], rtol=1e-4, atol=1e-4)


def test_published_lenet5_keeps_8_filters_and_57_hidden_units(
    paper_models: Path, mnist: Path
) -> None:
    """58 hidden units have weights of their own, and the last layer reads all but one of them."""
    model = onnx.load(paper_models / "lenet5_dns.onnx")
    shrunk, rows = drop_dead(model)
    assert [(row.before, row.after) for row in rows] == [(20, 8), (50, 19), (500, 57), (10, 10)]
    shapes = {name: list(array.shape) for name, array in tensors(shrunk).items()}
    assert shapes["conv2.weight"] == [19, 8, 5, 5]
    assert shapes["ip1.weight"] == [57, 304]
    raw = gzip.decompress((mnist / "t10k-images-idx3-ubyte.gz").read_bytes())
    images = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 1, 28, 28)[:500]
    digits = images.astype(np.float32) / 256
    (before,), (after,) = run(model, data=digits), run(shrunk, data=digits)
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-4)
    assert np.array_equal(after.argmax(1), before.argmax(1))
