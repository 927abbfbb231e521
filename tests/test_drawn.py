from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from dns_onnx import sources
from dns_onnx.config import Preprocess
from dns_onnx.converters.ranges import Draw, draws
from dns_onnx.drawn import DrawnDataset, sized
from dns_onnx.errors import ConfigError, DataError
from dns_onnx.preprocess import InputSpec
from dns_onnx.rows import input_specs

F32, I64 = np.dtype(np.float32), np.dtype(np.int64)
ROWS = np.arange(4)


def token_model() -> onnx.ModelProto:
    """ids through a table of 12 rows, a mask, a rate that only one value suits, and a state."""
    table = numpy_helper.from_array(np.zeros((12, 4), np.float32), "table")
    rate = numpy_helper.from_array(np.array(16000, np.int64), "rate")
    nodes = [
        helper.make_node("Cast", ["ids"], ["wide"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "wide"], ["y"]),
        helper.make_node("Equal", ["sr", "rate"], ["is_wide"]),
        helper.make_node("Identity", ["attention_mask"], ["mask"]),
        helper.make_node("Identity", ["state"], ["next"]),
    ]
    inputs = [
        helper.make_tensor_value_info("ids", TensorProto.INT32, ["n", "t"]),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["n", "t"]),
        helper.make_tensor_value_info("state", TensorProto.FLOAT, [2, "n", 5]),
        helper.make_tensor_value_info("sr", TensorProto.INT64, []),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "t", 4])]
    return helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, [table, rate]))


def test_ranges_are_read_from_the_model() -> None:
    assert draws(token_model()) == {
        "ids": Draw(0, 12), "attention_mask": Draw(value=1), "state": Draw(),
        "sr": Draw(value=16000),
    }  # fmt: skip


def test_what_is_looked_through_for_padding_is_not_all_padding() -> None:
    model = token_model()
    zero = numpy_helper.from_array(np.array(0, np.int64), "zero")
    model.graph.initializer.append(zero)
    for name in ("wide", "attention_mask"):
        model.graph.node.append(helper.make_node("Equal", [name, "zero"], [f"{name}.pad"]))
    found = draws(model)
    assert (found["ids"], found["attention_mask"]) == (Draw(0, 12), Draw(value=1))


def net(inputs: dict[str, list], nodes: list[onnx.NodeProto]) -> ort.InferenceSession:
    """A session of nodes that end in y, with a 3 x 1 x 50 kernel `w` among the initializers."""
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()]
    kernel = numpy_helper.from_array(np.ones((3, 1, 50), np.float32), "w")
    graph = helper.make_graph(nodes, "g", infos, [onnx.ValueInfoProto(name="y")], [kernel])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def specs_of(session: ort.InferenceSession) -> list[InputSpec]:
    shapes = ([d if isinstance(d, int) else None for d in i.shape] for i in session.get_inputs())
    return [InputSpec(i.name, F32, tuple(shape))
            for i, shape in zip(session.get_inputs(), shapes, strict=True)]  # fmt: skip


def test_open_sizes_are_those_that_the_model_runs_on() -> None:
    conv = helper.make_node("Conv", ["x", "w"], ["y"])
    wave = net({"x": ["n", 1, "samples"]}, [conv])
    found, said = sized(specs_of(wave), wave)
    assert found[0].shape == (None, 1, 64)
    assert said == "Sizes that the model leaves open were taken as --shape x=1x1x64."


def test_sizes_follow_sums_in_their_names() -> None:
    join = helper.make_node("Concat", ["past", "new"], ["all"], axis=1)
    add = helper.make_node("Add", ["all", "mask"], ["y"])
    cache = net({"new": ["n", 1], "past": ["n", "past"], "mask": ["n", "past + 1"]}, [join, add])
    found, _ = sized(specs_of(cache), cache)
    assert [s.shape for s in found] == [(None, 1), (None, 16), (None, 17)]


def test_sizes_that_are_not_found_are_asked_for() -> None:
    conv = helper.make_node("Conv", ["x", "w"], ["y"], pads=[0, 0])
    add = helper.make_node("Add", ["y0", "z"], ["y"])
    conv.output[0] = "y0"
    odd = net({"x": ["n", 1, "samples"], "z": ["n", 3, "frames"]}, [conv, add])
    with pytest.raises(DataError, match=r"'z': \['\*', 3, '\*'\]\}, found none; give them"):
        sized([replace(s, shape=(None, s.shape[1], None)) for s in specs_of(odd)], odd)


def test_rows_keep_to_ranges_shapes_and_types() -> None:
    specs = input_specs(token_model(), {"ids": (1, 7), "attention_mask": (1, 7)})
    batch = DrawnDataset(specs, Preprocess()).take(ROWS)
    ids = batch.inputs["ids"]
    assert (ids.shape, ids.dtype) == ((4, 7), np.int32)
    assert 0 <= ids.min() < ids.max() < 12
    assert batch.inputs["attention_mask"].all()
    assert batch.inputs["state"].shape == (4, 2, 5)
    assert batch.inputs["sr"].tolist() == [16000]
    assert batch.targets == {}


def test_a_row_is_a_function_of_seed_and_number() -> None:
    spec = [InputSpec("x", F32, (None, 3, 8, 8))]
    data = DrawnDataset(spec, Preprocess(), rows=9)
    again = DrawnDataset(spec, Preprocess()).take(np.array([3])).inputs["x"]
    assert np.array_equal(data.take(ROWS).inputs["x"][3:], again)
    other = DrawnDataset(spec, Preprocess(), seed=1).take(np.array([3])).inputs["x"]
    assert not np.array_equal(other, again)
    assert len(data) == 9


def test_images_lie_in_the_unit_range_or_the_one_given() -> None:
    spec = [InputSpec("x", F32, (None, 3, 32, 32))]
    image = DrawnDataset(spec, Preprocess()).take(ROWS).inputs["x"]
    assert 0 <= image.min() < 0.3 < 0.7 < image.max() <= 1
    assert abs(np.diff(image, axis=-1)).mean() < np.abs(image - image[::-1]).mean()  # patches
    wide = sources.load("random?low=-10&high=10&rows=5", spec, Preprocess(), "train")
    values = wide.take(ROWS).inputs["x"]
    assert values.min() < -1 < 1 < values.max()
    assert len(wide) == 5


@pytest.mark.parametrize("spec", ["random?rows=0", "random?low=1", "random?rows=x"])
def test_bad_options(spec: str) -> None:
    with pytest.raises(DataError, match="random: expected"):
        sources.load(spec, [InputSpec("x", F32, (None, 4))], Preprocess(), "train")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"ids": (1, 2, 3)}, r"expected sizes for \['\*', '\*'\] of 'ids'"),
        ({"state": (3, 1, 5)}, r"expected sizes for \[2, '\*', 5\] of 'state', got \[3, 1, 5\]"),
        ({"nothing": (1,)}, r"expected inputs of the model .*got \['nothing'\]"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shape: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        input_specs(token_model(), shape)
