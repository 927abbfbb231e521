"""Graph pieces as exporters write them, each of which real models need."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from dns_onnx.converters.importer import import_model
from dns_onnx.masks import holders

from .importer_models import assert_same, floats, graph_model, runtime


def node(op_type: str, inputs: list[str], outputs: list[str], **attributes: object):
    return helper.make_node(op_type, inputs, outputs, f"{op_type}_{outputs[0]}", **attributes)


def test_an_exponent_gets_a_finite_gradient_from_negative_bases() -> None:
    model, feeds = graph_model(
        [node("Mul", ["x", "w"], ["m"]), node("Pow", ["m", "three"], ["y"])],
        {"x": np.array([-2.0, 0.0, 0.5, 3.0], np.float32)},
        {"w": np.ones(4, np.float32), "three": np.array(3.0, np.float32)},
        ["y"],
        opset=15,
    )
    assert_same(model, feeds)
    graph = import_model(model)
    graph(torch.from_numpy(feeds[0])).sum().backward()
    held = holders(graph)
    x = torch.from_numpy(feeds[0])
    torch.testing.assert_close(held["w"].weight.grad, 3 * x**3)
    torch.testing.assert_close(
        held["three"].weight.grad, (x[2:] ** 3 * x[2:].log()).sum(), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_a_sampling_grid_has_a_type_of_its_own(mode: str) -> None:
    """As deformable attention leaves it; ONNX Runtime only has one type, hence the twin."""
    sample = node("GridSample", ["x", "g"], ["y"], mode=mode)
    grid = floats(1, 3, 5, 2, seed=1)
    mixed, feeds = graph_model(
        [sample], {"x": floats(1, 2, 6, 6), "g": grid.astype(np.float64)}, {}, ["y"], opset=16
    )
    plain, twins = graph_model([sample], {"x": feeds[0], "g": grid}, {}, ["y"], opset=16)
    got = import_model(mixed)(*map(torch.from_numpy, feeds))
    np.testing.assert_allclose(got.numpy(), runtime(plain, twins)[0], rtol=1e-4, atol=1e-5)


def _size(source: str, axis: int, result: str) -> list[onnx.NodeProto]:
    return [
        node("Shape", [source], [f"{result}_shape"]),
        node("Gather", [f"{result}_shape", f"axis{axis}"], [result]),
    ]


AXES = {f"axis{i}": np.array([i]) for i in range(3)}


def test_an_open_size_does_not_follow_from_sizes_that_look_alike() -> None:
    """Heads folded into the batch (2 b = a product of two sizes, one of them computed)."""
    nodes = [
        *_size("x", 0, "b"),
        node("Reshape", ["x", "split"], ["s"]),
        node("Transpose", ["s"], ["t"], perm=[0, 2, 1, 3]),
        node("Mul", ["b", "two"], ["b2"]),
        node("Concat", ["b2", "five", "open"], ["folded"], axis=0),
        node("Reshape", ["t", "folded"], ["f"]),
        *_size("f", 2, "c"),
        node("Concat", ["b2", "c", "open"], ["last"], axis=0),
        node("Reshape", ["f", "last"], ["y"]),
    ]
    weights = {"split": np.array([0, 5, 2, 8]), "two": np.array([2]), "five": np.array([5]),
               "open": np.array([-1]), **AXES}  # fmt: skip
    model, feeds = graph_model(nodes, {"x": floats(3, 5, 16)}, weights, ["y"], opset=17)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    assert_same(model, feeds)


def test_a_flattened_batch_is_not_taken_for_the_batch() -> None:
    nodes = [
        *_size("x", 0, "b"),
        node("Reshape", ["x", "rows"], ["flat"]),
        node("MatMul", ["flat", "w"], ["m"]),
        node("Concat", ["b", "open", "eight"], ["target"], axis=0),
        node("Reshape", ["m", "target"], ["r"]),
        *_size("r", 1, "n"),
        node("Concat", ["b", "n", "two", "four"], ["heads"], axis=0),
        node("Reshape", ["r", "heads"], ["y"]),
    ]
    weights = {"rows": np.array([-1, 16]), "w": floats(16, 8, seed=1), "open": np.array([-1]),
               "eight": np.array([8]), "two": np.array([2]), "four": np.array([4]),
               **AXES}  # fmt: skip
    model, feeds = graph_model(nodes, {"x": floats(3, 5, 16)}, weights, ["y"], opset=17)
    for axis, name in enumerate(("batch", "time")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    assert_same(model, feeds)


def test_a_window_between_two_computed_ends_is_not_empty() -> None:
    """The causal mask of a decoder with a past: rows from past to past + new."""
    nodes = [
        *_size("past", 0, "p"),
        *_size("x", 0, "n"),
        node("Add", ["p", "n"], ["end"]),
        node("Slice", ["bias", "p", "end", "axis0"], ["window"]),
        *_size("window", 0, "rows"),
        node("Concat", ["rows", "open"], ["target"], axis=0),
        node("Reshape", ["window", "target"], ["r"]),
        node("Add", ["x", "r"], ["y"]),
    ]
    weights = {"bias": floats(32, 4, seed=1), "open": np.array([-1]), **AXES}
    feeds = {"x": floats(3, 4), "past": floats(2, 4, seed=2)}
    model, given = graph_model(nodes, feeds, weights, ["y"], opset=17)
    for index, name in enumerate(("new", "past_length")):
        model.graph.input[index].type.tensor_type.shape.dim[0].dim_param = name
    assert_same(model, given)
