"""The C++ host of examples/ runs a pruned net with the kernels and without them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import onnxruntime as ort
import pytest

from dns_onnx.converters.exporter import convert
from dns_onnx.runtime.library import library_available, library_path

from .models import conv_net

SOURCE = Path(__file__).parents[2] / "examples" / "cpp_host"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, built as its README says."""
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("cmake or a C++ compiler is not installed")
    build = tmp_path_factory.mktemp("cpp_host")
    for command in (["cmake", "-S", SOURCE, "-B", build], ["cmake", "--build", build]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "cpp_host"


def runtime_library() -> Path:
    """The shared library inside the Python package of ONNX Runtime."""
    found = sorted((Path(ort.__file__).parent / "capi").glob("libonnxruntime.so*"))
    if not found:
        pytest.skip("this ONNX Runtime package brings no libonnxruntime.so")
    return found[-1]


def run(host: Path, model: Path, shape: str) -> subprocess.CompletedProcess[str]:
    command = [host, runtime_library(), library_path(), model, shape, "3"]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.skipif(not library_available(), reason="the native library is not built")
def test_pruned_net_in_a_cpp_host(host: Path, tmp_path: Path) -> None:
    model = tmp_path / "net.onnx"
    made = convert(conv_net(13), "csr", model, wants_kernel=lambda *_: True)
    assert {row.operator for row in made.tensors} >= {"CsrConv", "CsrGemm"}
    done = run(host, model, "1,8,8,8")
    assert done.returncode == 0, done.stderr
    assert f"ONNX Runtime {ort.__version__}" in done.stdout
    apart = re.search(r"outputs at most (\S+) apart", done.stdout)
    assert apart is not None, done.stdout
    assert float(apart[1]) < 1e-4


@pytest.mark.skipif(not library_available(), reason="the native library is not built")
def test_cpp_host_says_what_is_wrong(host: Path, tmp_path: Path) -> None:
    model = tmp_path / "broken.onnx"
    model.write_bytes(b"no model")
    done = run(host, model, "1,8,8,8")
    assert done.returncode == 1
    assert done.stderr.startswith("cpp_host: ")
