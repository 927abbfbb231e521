"""Damaged models are imported or refused, and nothing else happens."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from onnx import ModelProto, TensorProto, helper

from dns_onnx.converters.importer import import_model
from dns_onnx.converters.reader import read_model
from dns_onnx.errors import DnsOnnxError, ModelError

from .models import built, real
from .mutations import LOCATIONS, damage, damage_bytes

# the same in every run: what new seeds find is the loop's to say
EACH_SEED = pytest.mark.parametrize("seed", range(40))
BUILT = dict(built())


def imported_or_refused(data: bytes, folder: Path) -> None:
    path = folder / "model.onnx"
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        causes = [refusal(take, path) for take in (read_model, import_model)]
    assert not any(isinstance(cause, MemoryError) for cause in causes)


def refusal(take: Callable[[Path], object], path: Path) -> BaseException | None:
    try:
        take(path)
    except DnsOnnxError as error:
        return error.__cause__
    return None


@pytest.mark.parametrize("name", BUILT)
@EACH_SEED
def test_damaged_bytes(tmp_path: Path, name: str, seed: int) -> None:
    imported_or_refused(damage_bytes(BUILT[name].SerializeToString(), seed), tmp_path)


@pytest.mark.parametrize("name", BUILT)
@EACH_SEED
def test_damaged_structure(tmp_path: Path, name: str, seed: int) -> None:
    imported_or_refused(damage(BUILT[name], seed), tmp_path)


@EACH_SEED
def test_damaged_real_models(data_root: Path, tmp_path: Path, seed: int) -> None:
    models = real()
    _, model = models[seed % len(models)]
    imported_or_refused(damage(model, seed), tmp_path)


@pytest.mark.parametrize("location", [place for place in LOCATIONS if place != "w.bin"])
def test_no_place_outside_the_folder_is_read(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    (folder / "folder").mkdir(parents=True)
    (folder / "w.bin").write_bytes(bytes(4096))
    (tmp_path / "secret.bin").write_bytes(bytes(65536))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    model = ModelProto()
    model.CopyFrom(BUILT["net"])
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    for take in (read_model, import_model):
        with pytest.raises(ModelError, match=f"tensor '{tensor.name}'"):
            take(path)


def _no_data(model: ModelProto) -> None:
    model.graph.initializer[0].data_type = TensorProto.UINT2


def _huge(model: ModelProto) -> None:
    del model.graph.initializer[-1].dims[:]
    model.graph.initializer[-1].dims.append(2**31 - 1)


def _no_operand(model: ModelProto) -> None:
    model.graph.node[-1].input[0] = ""  # a LabelEncoder


def _endless(model: ModelProto) -> None:
    function = model.functions.add(name="F", domain="local", output=["y"])
    function.node.add(op_type="F", domain="local", output=["y"])


def _far_axis(model: ModelProto) -> None:
    node = model.graph.node.add(op_type="LayerNormalization", input=["m", "m"], output=["n"])
    node.attribute.append(helper.make_attribute("axis", 2**63 - 1))
    model.graph.output.add(name="n")


@pytest.mark.parametrize("fault", [_no_data, _huge, _endless], ids=lambda f: f.__name__)
def test_what_ended_the_process_is_refused(fault: Callable[[ModelProto], None]) -> None:
    broken = ModelProto()
    broken.CopyFrom(BUILT["net"])
    fault(broken)
    with pytest.raises(ModelError):
        import_model(broken)


def _long_vector(model: ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("v", TensorProto.INT64, [2**40]))
    model.graph.node.add(op_type="Neg", input=["v"], output=["n"])
    model.graph.output.add(name="n")


def test_a_location_that_is_no_text_is_refused(tmp_path: Path) -> None:
    model = ModelProto()
    model.CopyFrom(BUILT["net"])
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="no text")
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString().replace(b"no text", b"\xff\xfe\xfd\xfc\xfb\xfa\xf9"))
    with pytest.raises(ModelError):
        read_model(path)


@pytest.mark.parametrize("fault", [_no_operand, _far_axis, _long_vector], ids=lambda f: f.__name__)
def test_what_onnx_own_inference_does_not_survive_is_kept_from_it(
    fault: Callable[[ModelProto], None], tmp_path: Path
) -> None:
    broken = ModelProto()
    broken.CopyFrom(BUILT["function"])
    fault(broken)
    imported_or_refused(broken.SerializeToString(), tmp_path)
