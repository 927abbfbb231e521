"""The same pruned file, computed wherever it may be deployed, equals its dense form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from dns_onnx.converters.encodings import FORMATS, to_dense
from dns_onnx.converters.exporter import convert

from .consumers import CONSUMERS
from .job import Job
from .models import MODELS, inputs

RTOL, ATOL = 1e-3, 1e-4


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Job]]:
    """Every model in every format, on disk."""
    folder = tmp_path_factory.mktemp("deployment")
    return {format: [_write(folder, format, name) for name in MODELS] for format in FORMATS}


def _write(folder: Path, format: str, name: str) -> Job:
    model, values = MODELS[name]
    path = folder / f"{format} {name}.onnx"
    made = convert(
        model, format, path, values=values if format in ("csr", "portable") else "float32",
        wants_kernel=lambda *_: True,
    )  # fmt: skip
    assert made.format == format
    onnx.checker.check_model(str(path), full_check=format != "coo")
    x = inputs(model)
    dense = to_dense(made.model).SerializeToString()
    wanted = ort.InferenceSession(dense, providers=["CPUExecutionProvider"]).run(["Y"], x)[0]
    return Job(name, path, x, wanted)


@pytest.mark.parametrize("consumer", CONSUMERS)
def test_same_result_everywhere(
    consumer: str, written: dict[str, list[Job]], subtests: pytest.Subtests
) -> None:
    place = CONSUMERS[consumer]
    reason = place.missing()
    if reason:
        pytest.skip(reason)
    asked = [(format, job) for format in place.formats for job in written[format]]
    answers = place.run([job for _, job in asked])
    for (format, job), got in zip(asked, answers, strict=True):
        with subtests.test(f"{format}: {job.name}"):
            assert not isinstance(got, str), got
            np.testing.assert_allclose(got, job.wanted, rtol=RTOL, atol=ATOL)


def test_openvino_folds_portable_at_load(
    written: dict[str, list[Job]], subtests: pytest.Subtests
) -> None:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    for job in written["portable"]:
        with subtests.test(job.name):
            compiled = openvino.Core().compile_model(str(job.path), "CPU")
            nodes = compiled.get_runtime_model().get_ops()
            kinds = {node.get_rt_info()["layerType"].astype(str) for node in nodes}
            assert "Output" in kinds
            assert not {kind for kind in kinds if "Scatter" in kind or "CumSum" in kind}
