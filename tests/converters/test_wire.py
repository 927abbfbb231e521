"""Files read without their large tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from dns_onnx.converters.dtypes import proto_to_torch
from dns_onnx.converters.importer import import_model
from dns_onnx.converters.reader import read_model
from dns_onnx.converters.wire import without_large_tensors
from dns_onnx.errors import ModelError

from .importer_models import floats, graph_model, imported

LARGE = floats(128, 256)  # 128 KiB
SMALL = floats(256, 4, seed=1)


def places() -> dict[str, onnx.ModelProto]:
    """One model for each place where a large tensor may stand."""
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    feeds = {"x": floats(2, 128)}
    plain, _ = graph_model([product], feeds, {"w": LARGE}, ["y"], opset=17)
    constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(LARGE))
    node, _ = graph_model([constant, product], feeds, {}, ["y"], opset=17)
    body = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["z"])], "body", [],
        [onnx.ValueInfoProto(name="z")], [numpy_helper.from_array(LARGE, "w")],
    )  # fmt: skip
    chosen = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    inside, _ = graph_model([chosen], feeds, {"c": np.array(True)}, ["y"], opset=17)
    return {"initializer": plain, "Constant": node, "body": inside}


@pytest.mark.parametrize("place", places())
def test_large_tensors_stay_in_the_file(place: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(places()[place], path)
    message, spans = without_large_tensors(path)
    assert len(message) < 4096
    assert {length for _, length in spans} == {LARGE.nbytes}
    whole = path.read_bytes()
    assert all(whole[start : start + length] == LARGE.tobytes() for start, length in spans)
    x = floats(2, 128)
    result = import_model(path)(torch.from_numpy(x))
    np.testing.assert_array_equal(result.detach().numpy(), imported(places()[place], [x])[0])


def test_everything_else_comes_back_byte_for_byte(tmp_path: Path) -> None:
    model = places()["initializer"]
    model.graph.initializer.append(numpy_helper.from_array(SMALL, "small"))
    model.doc_string = "d" * 100_000
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    light = onnx.ModelProto.FromString(without_large_tensors(path)[0])
    tensor = light.graph.initializer[0]
    assert tensor.data_location == TensorProto.EXTERNAL
    tensor.raw_data = LARGE.tobytes()
    tensor.ClearField("data_location")
    tensor.ClearField("external_data")
    assert light == model


def test_the_weights_are_free_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(places()["initializer"], path)
    weight = proto_to_torch(read_model(path, load_data=False).graph.initializer[0])
    path.write_bytes(b"")
    np.testing.assert_array_equal(weight.numpy(), LARGE)


def test_data_that_do_not_fill_the_shape_are_refused(tmp_path: Path) -> None:
    model = places()["initializer"]
    model.graph.initializer[0].dims[0] += 1
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    with pytest.raises(ModelError, match=f"'w'.*raw data.*got {LARGE.nbytes}"):
        import_model(path)


@pytest.mark.parametrize("part", [0.3, 0.6, 0.99])
def test_a_file_that_ends_too_soon_is_refused(part: float, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(places()["initializer"], path)
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(ModelError, match="truncated"):
        import_model(path)


def test_a_file_cannot_claim_that_other_data_are_its_own(tmp_path: Path) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(LARGE.tobytes())
    model = places()["initializer"]
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    claims = {"location": str(secret), "offset": "0", "length": str(LARGE.nbytes), "copied": "yes"}
    for key, value in claims.items():
        tensor.external_data.add(key=key, value=value)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="inside the model's folder"):
        import_model(folder / "model.onnx")
