"""Where a loss can attach to an imported graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper

from dns_onnx.converters.frontier import attachment_points, cut_off, frontier, opaque_cuts
from dns_onnx.converters.importer import import_model

from .importer_models import floats, graph_model

HEADS = {
    "output": ([], ["h"], ["h"], ["h"]),
    "softmax": ([helper.make_node("Softmax", ["h"], ["y"])], ["y"], ["y"], ["y"]),
    "handed on": ([helper.make_node("Identity", ["h"], ["y"])], ["y"], ["y"], ["y"]),
    "label": ([helper.make_node("ArgMax", ["h"], ["y"], axis=1)], ["y"], ["h"], ["h"]),
    "best": ([helper.make_node("TopK", ["h", "k"], ["v", "i"])], ["v", "i"], ["v"], ["h"]),
    "label and scores": (
        [helper.make_node("Softmax", ["h"], ["p"]), helper.make_node("ArgMax", ["p"], ["y"])],
        ["y", "p"],
        ["p"],
        ["p"],
    ),
    "shape": ([helper.make_node("Shape", ["h"], ["y"])], ["y", "h"], ["h"], ["h"]),
    "kept rows": (
        [
            helper.make_node("ReduceMax", ["h"], ["m"], axes=[1], keepdims=0),
            helper.make_node("Greater", ["m", "half"], ["c"]),
            helper.make_node("Compress", ["h", "c"], ["y"], axis=0),
        ],
        ["y"],
        ["m", "y"],
        ["h"],
    ),
}


@pytest.mark.parametrize("head", HEADS)
def test_frontier(head: str) -> None:
    nodes, outputs, last, points = HEADS[head]
    model, _ = graph_model(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), *nodes],
        {"x": floats(2, 3)},
        {"w": floats(3, 4), "k": np.array([2]), "half": np.float32([0.5])},
        outputs,
        opset=13,
    )
    module = import_model(model)
    assert frontier(module) == last
    assert attachment_points(module) == points
    assert cut_off(module) == (["w"] if head == "label" else [])
    assert cut_off(module, points) == []


def _detector(
    tail: list[NodeProto], outputs: list[str], dynamic: bool = False, **constants: np.ndarray
) -> ModelProto:
    """Boxes and scores of ten places from one convolution each, and what chooses among them."""
    heads = [
        helper.make_node("Conv", ["x", "stem"], ["f"], "stem"),
        helper.make_node("Conv", ["f", "w_box"], ["b_map"], "box"),
        helper.make_node("Conv", ["f", "w_score"], ["s_map"], "score"),
        helper.make_node("Transpose", ["b_map"], ["boxes"], perm=[0, 2, 1]),
        helper.make_node("Sigmoid", ["s_map"], ["scores"]),
    ]
    weights = {
        "stem": floats(4, 3, 1),
        "w_box": floats(4, 4, 1),
        "w_score": floats(2, 4, 1),
        **constants,
    }
    inputs = {"x": floats(1, 3, 10)}
    nodes = [*heads, *tail]
    return graph_model(nodes, inputs, weights, outputs, opset=13, dynamic=dynamic)[0]


def _nms() -> list[NodeProto]:
    return [
        helper.make_node("NonMaxSuppression", ["boxes", "scores", "most"], ["chosen"]),
        helper.make_node("Slice", ["chosen", "two", "three", "one"], ["column"]),
        helper.make_node("Reshape", ["column", "flat"], ["rows"]),
        helper.make_node("Gather", ["boxes", "rows"], ["out_boxes"], axis=1),
        helper.make_node("Gather", ["scores", "rows"], ["out_scores"], axis=2),
    ]


_PLACES = {
    "most": np.array([3]),
    "two": np.array([2]),
    "three": np.array([3]),
    "one": np.array([1]),
    "flat": np.array([-1]),
}


def test_a_detector_attaches_before_its_nms() -> None:
    model = _detector(_nms(), ["out_boxes", "out_scores"], **_PLACES)
    assert attachment_points(import_model(model)) == ["boxes", "scores"]


def test_a_helper_that_the_scores_determine_is_left_out() -> None:
    tail = [
        helper.make_node("ReduceMax", ["scores"], ["best"], axes=[1], keepdims=0),
        helper.make_node("TopK", ["best", "most"], ["v", "i"]),
        helper.make_node("Reshape", ["i", "flat"], ["rows"]),
        helper.make_node("Gather", ["boxes", "rows"], ["out_boxes"], axis=1),
        helper.make_node("Gather", ["scores", "rows"], ["out_scores"], axis=2),
    ]
    model = _detector(tail, ["out_boxes", "out_scores"], **_PLACES)
    assert attachment_points(import_model(model)) == ["boxes", "scores"]


def test_what_is_read_for_its_shape_is_no_attachment_point() -> None:
    tail = [
        helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
        helper.make_node("Shape", ["boxes"], ["s"]),
        helper.make_node("Slice", ["s", "one", "two"], ["count"]),
        helper.make_node("Expand", ["zero", "count"], ["y"]),
    ]
    constants = {**_PLACES, "zero": np.zeros(1, np.int64)}
    module = import_model(_detector(tail, ["label", "y"], dynamic=True, **constants))
    assert attachment_points(module) == ["scores"]
    assert cut_off(module, ["scores"]) == ["w_box"]


def test_a_second_stage_keeps_its_own_output() -> None:
    tail = [
        *_nms(),
        helper.make_node("MatMul", ["out_boxes", "w_head"], ["refined"], "head"),
    ]
    model = _detector(tail, ["refined"], **_PLACES, w_head=floats(4, 5))
    module = import_model(model)
    assert attachment_points(module) == ["boxes", "scores", "refined"]
    assert cut_off(module, attachment_points(module)) == []


def test_a_choice_inside_a_body_counts() -> None:
    some = helper.make_graph(
        [helper.make_node("TopK", ["scores", "most"], ["v", "i"])],
        "some",
        [],
        [helper.make_tensor_value_info("v", TensorProto.FLOAT, None)],
    )
    every = helper.make_graph(
        [helper.make_node("Identity", ["scores"], ["v2"])],
        "every",
        [],
        [helper.make_tensor_value_info("v2", TensorProto.FLOAT, None)],
    )
    tail = [
        helper.make_node("ReduceMax", ["x"], ["peak"], keepdims=0),
        helper.make_node("Greater", ["peak", "half"], ["bright"]),
        helper.make_node("If", ["bright"], ["y"], then_branch=some, else_branch=every),
    ]
    model = _detector(tail, ["y", "boxes"], **_PLACES, half=np.float32(0.5))
    assert attachment_points(import_model(model)) == ["boxes", "scores"]


def test_an_opaque_step_says_what_it_cuts_off() -> None:
    tree = helper.make_node(
        "Binarizer", ["f"], ["q"], "edge", domain="ai.onnx.ml", threshold=0.5
    )  # fmt: skip
    model = _detector([tree], ["q", "scores"])
    model.opset_import.add(domain="ai.onnx.ml", version=1)
    module = import_model(model)
    assert attachment_points(module) == ["scores", "f"]
    assert opaque_cuts(module) == {"ai.onnx.ml::Binarizer 'edge'": []}
    del model.graph.output[1]
    assert opaque_cuts(import_model(model)) == {"ai.onnx.ml::Binarizer 'edge'": ["stem"]}


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("ultraface_rfb_320.onnx", ["scores", "boxes"]),
        ("winml_mnist_big.onnx", ["prediction1"]),
        ("g2p_arpabet.onnx", ["538"]),
        ("silero_vad.onnx", ["output", "stateN"]),
        ("sklearn_randomforest.onnx", []),
    ],
)
def test_real_models(data_root: Path, file: str, expected: list[str]) -> None:
    assert attachment_points(import_model(data_root / "models" / file)) == expected
