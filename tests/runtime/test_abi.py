"""The hand-written ABI against released ONNX Runtime versions, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from dns_onnx.runtime.library import library_path

Make = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("kernels")

VERSIONS = ("1.17.3", "1.19.2", "1.22.1", "1.25.1", "1.28.0")
NUMPY = "numpy<2"  # onnxruntime up to 1.18 was built against it, and the later ones take it
INSTALL_SECONDS = 300

# runs each model with the library and prints what came out; it must not import dns_onnx
PROBE = """
import json, sys
import numpy as np, onnxruntime as ort
job = json.load(open(sys.argv[1]))
out = {"version": ort.__version__, "results": {}}
for name, case in job["cases"].items():
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 2
    options.register_custom_ops_library(job["library"])
    x = np.asarray(case["x"], np.float32)
    try:
        session = ort.InferenceSession(case["model"], options, providers=["CPUExecutionProvider"])
        out["results"][name] = session.run(None, {"X": x})[0].tolist()
    except Exception as error:
        out["results"][name] = str(error)
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def job(make_layer: Make, make_pruned: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models that touch every API slot in use, their inputs and their answers."""
    folder = tmp_path_factory.mktemp("abi")
    rng = np.random.default_rng(0)
    linear = make_pruned(rng, (6, 40), 0.3)
    filters = make_pruned(rng, (4, 3, 3, 3), 0.5)
    bias = rng.standard_normal(6).astype(np.float32)
    gemm = {"alpha": 0.5, "beta": 1.0, "transA": 0, "transB": 1}
    scaled = make_layer("CsrMatMul", np.rint(9 * linear), columns=np.uint8, pointers=None)
    scaled.operands["values"] = scaled.operands["values"].astype(np.int8)
    scaled.operands["scale"] = rng.random((6, 1)).astype(np.float32)
    scaled.dense = (scaled.dense * scaled.operands["scale"]).astype(np.float32)
    broken = make_layer("CsrGemm", linear, **gemm)
    broken.operands["row_ptr"][2] = 99
    cases = {
        "gemm": (make_layer("CsrGemm", linear, bias=bias, columns=np.uint8, **gemm), (3, 40)),
        "gemm_no_bias": (make_layer("CsrGemm", linear, pointers=np.uint16, **gemm), (1, 40)),
        "gemm_gaps": (make_layer("CsrGemm", linear, bias=bias, pointers=None, **gemm), (2, 40)),
        "matmul_int8": (scaled, (3, 6)),
        "matmul": (make_layer("CsrMatMul", np.ascontiguousarray(linear.T)), (2, 2, 40)),
        "conv": (make_layer("CsrConv", filters, auto_pad="SAME_UPPER", group=1), (2, 3, 8, 8)),
        "conv_pads": (make_layer("CsrConv", filters, pads=[1, 1, 0, 0]), (1, 3, 8, 8)),
        "broken": (broken, (1, 40)),
    }
    described = {}
    for name, (layer, shape) in cases.items():
        x = rng.standard_normal(shape).astype(np.float32)
        model = folder / f"{name}.onnx"
        model.write_bytes(layer.model(sparse=True, rank=len(shape)))
        described[name] = {"model": str(model), "x": x.tolist()}
        if name != "broken":
            np.save(folder / f"{name}.npy", layer.run(x, sparse=False))
    path = folder / "job.json"
    path.write_text(json.dumps({"library": str(library_path()), "cases": described}))
    return path


def check(job: Path, environment: dict[str, str], version: str) -> None:
    done = subprocess.run(
        [sys.executable, "-I" if not environment else "-s", "-c", PROBE, str(job)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout.splitlines()[-1])
    assert out["version"] == version
    for name, got in out["results"].items():
        if name == "broken":
            assert "CsrGemm 'layer': row_ptr[2]" in got
            continue
        assert not isinstance(got, str), f"{name}: {got}"
        np.testing.assert_allclose(got, np.load(job.parent / f"{name}.npy"), atol=1e-5, rtol=1e-5)


def test_library_runs_in_the_installed_onnxruntime(job: Path) -> None:
    check(job, {}, ort.__version__)


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_library_runs_in_released_onnxruntime(version: str, job: Path) -> None:
    check(job, {"PYTHONPATH": str(installed(version))}, version)


def installed(version: str) -> Path:
    """Folder with that release and its NumPy, kept between runs; skips where pip cannot get it."""
    cache = Path(os.environ.get("DNS_ONNX_TEST_CACHE", Path.home() / ".cache" / "dns-onnx-tests"))
    tag = f"onnxruntime-{version}-py{sys.version_info[0]}{sys.version_info[1]}"
    folder = cache / tag
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as partial:
        target = Path(partial) / tag
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--disable-pip-version-check",
            "--only-binary=:all:",
            "--target",
            str(target),
            f"onnxruntime=={version}",
            NUMPY,
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS
        )
        if done.returncode != 0:
            pytest.skip(f"pip cannot install onnxruntime {version}: {done.stderr.strip()[-200:]}")
        target.rename(folder)
    return folder
