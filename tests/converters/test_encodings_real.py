"""Real files of operator sets 7 to 18, pruned to 10 %: written as csr, checked, equal, folded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from dns_onnx.converters.encodings import to_dense
from dns_onnx.converters.encodings.functions import default_opset
from dns_onnx.converters.encodings.sites import all_graphs, find_sites
from dns_onnx.converters.exporter import export_model
from dns_onnx.converters.reader import read_model

from .exporter_models import DECODING, operators, run

# file -> its operator set, and the one it is written in
FILES = {
    "squeezenet_fp16_winml": (7, 13),
    "squeezenet_fp32_from_fp16": (7, 13),
    "mnist_cntk": (8, 13),
    "lenet_ccoltong": (9, 13),
    "tract_bidi_lstm": (9, 13),
    "ultraface_rfb_320": (9, 13),
    "g1_policy": (11, 11),
    "tribuo_tinybert": (11, 11),
    "vespa_transformer": (12, 12),
    "magika_v1": (13, 13),
    "zoo_vittrack": (14, 14),
    "super_resolution_pytorch": (15, 15),
    "fastestdet_coco": (16, 16),
    "sedgen_unet": (18, 18),
}


def pruned(model: ModelProto) -> dict[str, Any]:
    """The largest tenth of every weight of two axes or more."""
    weights = {site.name: numpy_helper.to_array(site.tensor) for site in find_sites(model)}
    return {
        name: weight * (np.abs(weight) > np.quantile(np.abs(weight).astype(np.float64), 0.9))
        for name, weight in weights.items()
        if weight.ndim >= 2 and weight.size >= 256
    }


def random_inputs(model: ModelProto) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    given = {tensor.name for tensor in model.graph.initializer}
    feeds = {}
    for value in model.graph.input:
        if value.name not in given:
            kind = value.type.tensor_type
            shape = [max(dim.dim_value, 1) for dim in kind.shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
            whole = dtype.kind in "biu"
            drawn = rng.integers(0, 2, shape) if whole else rng.standard_normal(shape)
            feeds[value.name] = drawn.astype(dtype)
    return feeds


def without_default_domains(model: ModelProto) -> bytes:
    """The serialized model, the empty domain of a node never written out: it means the same."""
    for graph in all_graphs(model.graph):
        for node in graph.node:
            if not node.domain:
                node.ClearField("domain")
    data: bytes = model.SerializeToString(deterministic=True)
    return data


@pytest.mark.parametrize("name", FILES)
def test_real_file(name: str, data_root: Path, tmp_path: Path) -> None:
    original = data_root / "models" / f"{name}.onnx"
    before, after = FILES[name]
    model = read_model(original)
    weights = pruned(model)
    assert default_opset(model) == before
    dense = export_model(original, weights, format="dense").model
    made = export_model(original, weights, tmp_path / "small.onnx")
    assert (made.format, default_opset(made.model)) == ("csr", after)
    onnx.checker.check_model(str(tmp_path / "small.onnx"), full_check=True)
    assert (tmp_path / "small.onnx").stat().st_size < 0.65 * dense.ByteSize()
    feeds = random_inputs(dense)
    wanted = run(dense, **feeds)
    got = run(made.model, tmp_path / "optimized.onnx", **feeds)
    for a, b in zip(wanted, got, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5 * max(1, np.abs(a).max()))
    before_decoding = operators(dense)
    decoding = operators(onnx.load(tmp_path / "optimized.onnx")) & DECODING
    assert not decoding - before_decoding
    if before == after:
        assert without_default_domains(to_dense(made.model)) == without_default_domains(dense)


def test_what_no_converter_knows_becomes_coo(data_root: Path) -> None:
    original = data_root / "models" / "winml_mnist_big.onnx"
    model = read_model(original)
    weights = pruned(model)
    made = export_model(original, weights)
    assert made.format == "coo"
    assert "operator set 7 could not be lifted" in made.notes[0]
    assert "ImageScaler" in made.notes[0]
    feeds = random_inputs(model)
    wanted = run(export_model(original, weights, format="dense").model, **feeds)
    for a, b in zip(wanted, run(made.model, **feeds), strict=True):
        np.testing.assert_array_equal(a, b)
