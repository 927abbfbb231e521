"""Freeing a fixed batch axis, and proving it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from dns_onnx.converters.batch import free_batch
from dns_onnx.converters.importer import import_model
from dns_onnx.converters.reader import read_model

from .importer_models import floats, graph_model


@pytest.mark.parametrize("target", [[1, 12], [1, -1], [0, -1], [-1, 12], [1, 4, 3]])
def test_a_reshape_constant_is_freed(target: list[int]) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Reshape", ["r", "s"], ["y"]),
    ]
    model, _ = graph_model(nodes, {"x": floats(1, 3, 4)}, {"s": np.array(target)}, ["y"], opset=13)
    freed = free_batch(model)
    assert (freed.free, freed.size, freed.reason) == (True, 1, "")
    assert import_model(freed.model)(torch.zeros(5, 3, 4)).shape[0] == 5
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [([6, 4], [1, 2, 3, 4]), ([2, 3, 4], [1, 2, 12]), ([2, 1, 12], [1, 24])],
)
def test_a_batch_folded_into_the_first_axis_comes_back(first: list[int], second: list[int]) -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "folded"], ["f"]),
        helper.make_node("Tanh", ["f"], ["t"]),
        helper.make_node("Reshape", ["t", "apart"], ["y"]),
    ]
    shapes = {"folded": np.array(first), "apart": np.array(second)}
    model, _ = graph_model(nodes, {"x": floats(1, 2, 3, 4)}, shapes, ["y"], opset=13)
    freed = free_batch(model)
    assert freed.reason == ""
    rows = torch.from_numpy(floats(5, 2, 3, 4))
    whole, one = import_model(freed.model)(rows), import_model(model)
    torch.testing.assert_close(whole, torch.cat([one(row) for row in rows.split(1)]))


def test_a_branch_that_the_whole_batch_decides_keeps_it() -> None:
    """Rows of one sign take the same branch together and alone; rows of two do not."""

    def body(name: str, operator: str) -> onnx.GraphProto:
        made = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(operator, ["x"], [name])], name, [], [made])

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["y"], then_branch=body("a", "Neg"),
                         else_branch=body("b", "Abs")),
    ]  # fmt: skip
    model, _ = graph_model(
        nodes, {"x": floats(1, 4)}, {"zero": np.float32(0).reshape(())}, ["y"], opset=13
    )
    assert free_batch(model).reason == "output 0 of a batch differs from its samples' own"


def test_heads_of_a_batch_on_the_second_axis_are_freed() -> None:
    """Attention with time first: [time, batch, heads * size] as [time, batch * heads, size]."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["tb"], perm=[1, 0, 2]),
        helper.make_node("Reshape", ["tb", "heads"], ["h"]),
        helper.make_node("Softmax", ["h"], ["s"], axis=0),
        helper.make_node("Reshape", ["s", "joined"], ["j"]),
        helper.make_node("Transpose", ["j"], ["y"], perm=[1, 0, 2]),
    ]
    shapes = {"heads": np.array([5, 2, 4]), "joined": np.array([5, -1, 8])}
    model, _ = graph_model(nodes, {"x": floats(1, 5, 8)}, shapes, ["y"], opset=13)
    freed = free_batch(model)
    assert freed.reason == ""
    assert import_model(freed.model)(torch.zeros(3, 5, 8)).shape == (3, 5, 8)


def test_a_row_that_joins_every_sample_is_repeated() -> None:
    nodes = [
        helper.make_node("Identity", ["token"], ["t"]),
        helper.make_node("Concat", ["t", "x"], ["c"], axis=1),
        helper.make_node("Transpose", ["c"], ["tb"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["tb", "w", "r", "", "", "h", "h"], ["", "s"], hidden_size=3),
        helper.make_node("Squeeze", ["s", "zero"], ["y"]),
    ]
    weights = {"token": floats(1, 1, 4), "w": floats(1, 12, 4, seed=1), "r": floats(1, 12, 3),
               "h": floats(1, 1, 3, seed=2), "zero": np.array([0])}  # fmt: skip
    model, _ = graph_model(nodes, {"x": floats(1, 5, 4)}, weights, ["y"], opset=13)
    freed = free_batch(model)
    assert freed.reason == ""
    assert import_model(freed.model)(torch.zeros(3, 5, 4)).shape == (3, 3)


def test_a_resize_follows_the_batch_but_not_one_of_a_weight() -> None:
    nodes = [
        helper.make_node("Resize", ["x", "", "", "sizes"], ["r"], mode="nearest"),
        helper.make_node("Resize", ["w", "", "", "sizes"], ["v"], mode="nearest"),
        helper.make_node("Mul", ["r", "v"], ["y"]),
    ]
    weights = {"sizes": np.array([1, 2, 6, 8]), "w": floats(1, 2, 3, 4, seed=1)}
    model, _ = graph_model(nodes, {"x": floats(1, 2, 3, 4)}, weights, ["y"], opset=13)
    freed = free_batch(model)
    assert freed.reason == ""
    assert import_model(freed.model)(torch.zeros(3, 2, 3, 4)).shape == (3, 2, 6, 8)


def weights() -> dict[str, np.ndarray]:
    return {"w": floats(1, 16, 4), "r": floats(1, 16, 4), "h": floats(1, 1, 4)}


CONSTANTS = {
    "concat": (
        [helper.make_node("Concat", ["x", "pad"], ["y"], axis=1)],
        (1, 3, 4),
        {"pad": np.zeros((1, 2, 4), np.float32)},
    ),
    "resize": (
        [helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], mode="nearest")],
        (1, 3, 4, 4),
        {"sizes": np.array([1, 3, 8, 8])},
    ),
    "state of an LSTM": (
        [
            helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
            helper.make_node("LSTM", ["t", "w", "r", "", "", "h", "h"], ["o"], hidden_size=4),
            helper.make_node("Transpose", ["o"], ["y"], perm=[2, 0, 1, 3]),
        ],
        (1, 5, 4),
        weights(),
    ),
    "heads": (
        # attention that turns to [L, N, E]: heads go with the batch, rows are merged and parted
        [
            helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
            helper.make_node("Reshape", ["t", "split"], ["s"]),
            helper.make_node("Transpose", ["s"], ["q"], perm=[1, 0, 2]),
            helper.make_node("Transpose", ["q"], ["k"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["q", "k"], ["a"]),
            helper.make_node("MatMul", ["a", "q"], ["v"]),
            helper.make_node("Transpose", ["v"], ["b"], perm=[1, 0, 2]),
            helper.make_node("Reshape", ["b", "join"], ["j"]),
            helper.make_node("Gemm", ["j", "g"], ["o"]),
            helper.make_node("Reshape", ["o", "rows"], ["l"]),
            helper.make_node("Transpose", ["l"], ["y"], perm=[1, 0, 2]),
        ],
        (1, 5, 8),
        {
            "split": np.array([5, 2, 4]),
            "join": np.array([5, 8]),
            "rows": np.array([5, 1, 8]),
            "g": floats(8, 8),
        },
    ),
    "shape that is cast": (
        [
            helper.make_node("Cast", ["s32"], ["s"], to=7),
            helper.make_node("Reshape", ["x", "s"], ["y"]),
        ],
        (1, 3, 4),
        {"s32": np.array([1, 12], np.int32)},
    ),
    "merged windows": (
        [
            helper.make_node("Reshape", ["x", "windows"], ["a"]),
            helper.make_node("Transpose", ["a"], ["b"], perm=[0, 1, 3, 2, 4, 5]),
            helper.make_node("Reshape", ["b", "flat"], ["c"]),
            helper.make_node("Relu", ["c"], ["d"]),
            helper.make_node("Reshape", ["d", "back"], ["y"]),
        ],
        (2, 4, 4, 3),
        {
            "windows": np.array([2, 2, 2, 2, 2, 3]),
            "flat": np.array([8, 4, 3]),
            "back": np.array([2, 48]),
        },
    ),
}


@pytest.mark.parametrize("case", CONSTANTS)
def test_what_repeats_the_batch_size_is_freed(case: str) -> None:
    nodes, shape, held = CONSTANTS[case]
    model, _ = graph_model(nodes, {"x": floats(*shape)}, held, ["y"], opset=13)
    freed = free_batch(model)
    assert (freed.reason, freed.size) == ("", shape[0])
    rows = floats(3 * shape[0], *shape[1:])
    together = import_model(freed.model)(torch.from_numpy(rows))
    alone = [import_model(model)(torch.from_numpy(part)) for part in np.split(rows, 3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_a_mean_over_the_batch_is_not_freed() -> None:
    node = helper.make_node("ReduceMean", ["x"], ["y"], axes=[0], keepdims=1)
    model, _ = graph_model([node], {"x": floats(1, 3)}, {}, ["y"], opset=13)
    freed = free_batch(model)
    assert not freed.free
    assert "differs from its samples' own" in freed.reason
    assert freed.model is model


def test_an_open_batch_needs_nothing() -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    model, _ = graph_model([node], {"x": floats(1, 3)}, {}, ["y"], opset=13, dynamic=True)
    assert (free_batch(model).free, free_batch(model).size) == (True, 0)


@pytest.mark.parametrize(
    ("file", "size"),
    [
        ("lenet_ccoltong.onnx", 10),
        ("mnist_cntk.onnx", 1),
        ("vnn22_sri_resnet_a.onnx", 1),
        ("deeploy_cct_2_fp32_op20.onnx", 1),
        ("tinycnn_esp_int8.onnx", 1),
        ("mediapipe_blazeface_front.onnx", 1),
    ],
)
def test_real_models(data_root: Path, file: str, size: int) -> None:
    freed = free_batch(read_model(data_root / "models" / file))
    assert (freed.reason, freed.size) == ("", size)
