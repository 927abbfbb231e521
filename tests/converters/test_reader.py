"""Reading ONNX files: what is refused, and how."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from dns_onnx.converters.dtypes import proto_to_torch
from dns_onnx.converters.reader import infer_shapes, inline_functions, read_model
from dns_onnx.errors import ModelError

from .importer_models import floats, graph_model


@pytest.fixture
def model() -> onnx.ModelProto:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    made, _ = graph_model([node], {"x": floats(2, 64)}, {"w": floats(64, 64)}, ["y"], opset=13)
    return made


@pytest.fixture
def external(model: onnx.ModelProto, tmp_path: Path) -> Path:
    """A model in a folder of its own, its weight in `w.bin` beside it."""
    folder = tmp_path / "model"
    folder.mkdir()
    own = onnx.ModelProto()
    own.CopyFrom(model)
    onnx.save(
        own,
        folder / "model.onnx",
        save_as_external_data=True,
        location="w.bin",
        size_threshold=0,
    )
    return folder / "model.onnx"


def _point_at(path: Path, location: str, **entries: str) -> None:
    model = onnx.load(path, load_external_data=False)
    tensor = model.graph.initializer[0]
    kept = {e.key: e.value for e in tensor.external_data}
    del tensor.external_data[:]
    for key, value in {**kept, "location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expected a readable ONNX file"):
        read_model(tmp_path / "none.onnx")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.onnx"
    path.write_bytes(b"")
    with pytest.raises(ModelError, match="empty file"):
        read_model(path)


@pytest.mark.parametrize("content", [b"not a model at all", b"\x00" * 64, b"PK\x03\x04zip"])
def test_another_kind_of_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="expected an ONNX model"):
        read_model(path)


@pytest.mark.parametrize("part", [0.3, 0.6, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, model: onnx.ModelProto, part: float) -> None:
    data = model.SerializeToString()
    path = tmp_path / "cut.onnx"
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(ModelError, match="expected an ONNX model"):
        read_model(path)


def test_external_data_are_read(external: Path, model: onnx.ModelProto) -> None:
    read = read_model(external)
    weight = numpy_helper.to_array(read.graph.initializer[0])
    np.testing.assert_array_equal(weight, numpy_helper.to_array(model.graph.initializer[0]))


def test_large_external_data_can_stay_in_their_file(external: Path) -> None:
    read = read_model(external, load_data=False)
    tensor = read.graph.initializer[0]
    assert tensor.data_location == onnx.TensorProto.EXTERNAL
    weight = proto_to_torch(tensor)
    np.testing.assert_array_equal(
        np.asarray(weight), numpy_helper.to_array(read_model(external).graph.initializer[0])
    )


def test_missing_external_data_are_refused(external: Path) -> None:
    (external.parent / "w.bin").unlink()
    with pytest.raises(ModelError, match=r"'w'.*no such file"):
        read_model(external)


def test_short_external_data_are_refused(external: Path) -> None:
    (external.parent / "w.bin").write_bytes(b"1234")
    with pytest.raises(ModelError, match="got a file of 4"):
        read_model(external)


@pytest.mark.parametrize("entries", [{"offset": "-8"}, {"offset": "x"}, {"length": "3"}])
def test_nonsense_in_external_data_is_refused(external: Path, entries: dict[str, str]) -> None:
    _point_at(external, "w.bin", **entries)
    with pytest.raises(ModelError, match="external data"):
        read_model(external)


@pytest.mark.parametrize("location", ["../secret.bin", "sub/../../secret.bin", ""])
def test_external_data_outside_the_folder_are_refused(external: Path, location: str) -> None:
    (external.parent.parent / "secret.bin").write_bytes(bytes(64 * 64 * 4))
    _point_at(external, location)
    with pytest.raises(ModelError, match="inside the model's folder"):
        read_model(external)


def test_an_absolute_location_is_refused(external: Path) -> None:
    _point_at(external, str(external.parent / "w.bin"))
    with pytest.raises(ModelError, match="inside the model's folder"):
        read_model(external)


def test_a_link_out_of_the_folder_is_refused(external: Path) -> None:
    secret = external.parent.parent / "secret.bin"
    secret.write_bytes(bytes(64 * 64 * 4))
    (external.parent / "link.bin").symlink_to(secret)
    _point_at(external, "link.bin")
    with pytest.raises(ModelError, match="inside the model's folder"):
        read_model(external)


def test_a_proto_with_external_data_needs_its_path(external: Path) -> None:
    proto = onnx.load(external, load_external_data=False)
    with pytest.raises(ModelError, match="give the model's path"):
        read_model(proto)


def test_a_proto_is_left_as_it_is(model: onnx.ModelProto) -> None:
    before = model.SerializeToString()
    read_model(model).graph.node[0].op_type = "Add"
    assert model.SerializeToString() == before


def test_local_functions_are_inlined() -> None:
    body = helper.make_function(
        "local", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    node = helper.make_node("Twice", ["x"], ["y"], domain="local")
    model, _ = graph_model([node], {"x": floats(2)}, {}, ["y"], opset=17, domain="local")
    model.functions.append(body)
    assert [n.op_type for n in inline_functions(model).graph.node] == ["Add"]


def test_stale_types_in_the_file_are_dropped(model: onnx.ModelProto) -> None:
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, [9, 9]))
    typed = infer_shapes(model).graph.output[0].type.tensor_type
    assert [d.dim_value for d in typed.shape.dim] == [2, 64]
