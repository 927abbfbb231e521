"""Training through pairs of QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from dns_onnx.converters.importer import import_model
from dns_onnx.converters.layers import layers
from dns_onnx.masks import holders

from .importer_models import assert_same, floats, graph_model

_node = helper.make_node


def pair(
    x: np.ndarray, scale: np.ndarray, zero: np.ndarray, *, held: bool, domain: str = "", **how: int
) -> tuple[onnx.ModelProto, list[np.ndarray]]:
    """DequantizeLinear(QuantizeLinear(x)) times 2, x an input or an initializer."""
    nodes = [
        _node("QuantizeLinear", ["x", "s", "z"], ["q"], domain=domain, **how),
        _node("DequantizeLinear", ["q", "s", "z"], ["d"], domain=domain, **how),
        _node("Mul", ["d", "two"], ["y"]),
    ]
    weights = {"s": scale, "z": zero, "two": np.full_like(x, 2)}
    fed = {} if held else {"x": x}
    weights |= {"x": x} if held else {}
    return graph_model(nodes, fed, weights, ["y"], opset=21, domain=domain)


SCALES = {
    "tensor": (np.float32(0.5), np.int8(3), {}),
    "axis": (np.float32([0.5, 0.25, 1.0]), np.int8([3, 0, -2]), {"axis": 0}),
    "block": (floats(3, 2, low=0.2), np.zeros((3, 2), np.int8), {"axis": 1, "block_size": 2}),
}
X = np.float32([[-200, -60, -1.1, 0.2], [30, 31.7, 33, 400], [-0.1, 0, 5.3, 127]])


@pytest.mark.parametrize("held", [False, True], ids=["activation", "weight"])
@pytest.mark.parametrize("kind", SCALES)
def test_the_gradient_passes_inside_the_range_only(kind: str, held: bool) -> None:
    scale, zero, how = SCALES[kind]
    model, feeds = pair(X, scale, zero, held=held, **how)
    assert_same(model, feeds, rtol=0, atol=0)
    module = import_model(model)
    x = holders(module)["x"].weight if held else torch.from_numpy(X).requires_grad_()
    module(*([] if held else [x])).sum().backward()
    if kind == "block":
        scale, zero = scale.repeat(2, 1), zero.repeat(2, 1)
    elif kind == "axis":
        scale, zero = scale[:, None], zero[:, None]
    steps = np.round(X / scale) + zero.astype(np.float32)
    inside = (steps >= -128) & (steps <= 127)
    assert not inside.all()
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad.numpy(), np.where(inside, 2.0, 0.0))


def test_the_scale_learns_its_step() -> None:
    scale, zero = SCALES["axis"][:2]
    module = import_model(pair(X, scale, zero, held=False, axis=0)[0])
    module(torch.from_numpy(X)).sum().backward()
    step = X / scale[:, None]
    rounded = np.clip(np.round(step) + zero[:, None], -128, 127) - zero[:, None]
    cut = np.abs(rounded - step) > 0.5
    expected = 2 * np.where(cut, rounded, rounded - step).sum(1)
    gradient = holders(module)["s"].weight.grad
    assert gradient is not None
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-4)


def test_com_microsoft_pairs_train_too() -> None:
    model, feeds = pair(X, np.float32(0.5), np.int16(3), held=False, domain="com.microsoft")
    assert_same(model, feeds, rtol=0, atol=0)
    x = torch.from_numpy(X).requires_grad_()
    import_model(model)(x).sum().backward()
    assert x.grad is not None
    assert bool((x.grad == 2).all())


def test_a_weight_behind_a_pair_is_a_prunable_layer() -> None:
    nodes = [
        _node("QuantizeLinear", ["w", "s", "z"], ["q"]),
        _node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        _node("MatMul", ["x", "d"], ["y"]),
    ]
    weights = {"w": floats(4, 3), "s": np.float32(0.02), "z": np.int8(0)}
    model, feeds = graph_model(nodes, {"x": floats(2, 4)}, weights, ["y"], opset=13)
    assert_same(model, feeds)
    (row,) = layers(import_model(model))
    assert (row.weight, row.shape, row.prunable) == ("w", (4, 3), True)


def test_a_quantised_output_is_still_an_integer() -> None:
    nodes = [_node("QuantizeLinear", ["x", "s", "z"], ["y"])]
    weights = {"s": np.float32(0.5), "z": np.uint8(3)}
    assert_same(*graph_model(nodes, {"x": X}, weights, ["y"], opset=13))
