"""dns_onnx.runtime.session: providers, the native library, and what it says about both."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from dns_onnx.errors import ModelError, NativeLibraryError
from dns_onnx.runtime import library
from dns_onnx.runtime.session import session

# the package's attribute of that name is the function
sessions = importlib.import_module("dns_onnx.runtime.session")

Make = Callable[..., Any]
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"


@pytest.fixture
def layer(make_layer: Make, make_pruned: Make) -> Any:
    weight = make_pruned(np.random.default_rng(0), (5, 30), 0.3)
    return make_layer("CsrGemm", weight, alpha=1.0, beta=1.0, transA=0, transB=1)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("as_path", [False, True], ids=["bytes", "path"])
def test_session_runs_the_sparse_kernel(
    as_path: bool, layer: Any, tmp_path: Path, close: Make
) -> None:
    source: Any = layer.model(sparse=True, rank=2)
    if as_path:
        path = tmp_path / "m.onnx"
        path.write_bytes(source)
        source = path
    made = session(source, [CPU], native="require", threads=1)
    assert made.dns_onnx.native
    assert made.dns_onnx.folded == ()
    x = np.ones((2, 30), np.float32)
    close(made.run(None, {"X": x})[0], layer.run(x, sparse=False))


def test_native_false_leaves_the_kernels_out(layer: Any) -> None:
    made = session(layer.model(sparse=False, rank=2), [CPU], native=False)
    assert not made.dns_onnx.native
    assert "switched off" in made.dns_onnx.reason


def test_missing_library_falls_back_with_a_reason(
    layer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DNS_ONNX_LIBRARY", "no/such/file.so")
    made = session(layer.model(sparse=False, rank=2), [CPU])
    assert not made.dns_onnx.native
    assert "DNS_ONNX_LIBRARY" in made.dns_onnx.reason


def test_missing_library_is_an_error_when_required(
    layer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DNS_ONNX_LIBRARY", "no/such/file.so")
    with pytest.raises(NativeLibraryError):
        session(layer.model(sparse=False, rank=2), [CPU], native="require")


def test_file_that_is_no_library_is_told(
    layer: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setenv("DNS_ONNX_LIBRARY", str(broken))
    made = session(layer.model(sparse=False, rank=2), [CPU])
    assert "expected a library that ONNX Runtime" in made.dns_onnx.reason
    with pytest.raises(NativeLibraryError, match="reinstall dns-onnx"):
        session(layer.model(sparse=False, rank=2), [CPU], native="require")


def test_model_that_does_not_load_names_its_file(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"broken\.onnx: expected a model that ONNX Runtime"):
        session(path)


def test_default_providers_skip_cuda_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(sessions, "cuda_devices", lambda: 0)
    assert sessions.default_providers() == [CPU]


def test_default_providers_take_cuda_where_a_device_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded: list[bool] = []
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(ort, "preload_dlls", lambda: loaded.append(True), raising=False)
    monkeypatch.setattr(sessions, "cuda_devices", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "3")
    exact = {"use_tf32": "0", "device_id": "1"}
    assert sessions.default_providers() == [(CUDA, exact), CPU]
    assert loaded == [True]


def test_another_device_goes_without_the_cpu_kernels() -> None:
    notes = sessions._register(ort.SessionOptions(), [CUDA, CPU], True)
    assert not notes.native
    assert "CUDAExecutionProvider" in notes.reason


def test_cuda_devices_is_a_count() -> None:
    assert sessions.cuda_devices() >= 0


def test_runtime_imports_no_torch() -> None:
    code = "import sys, dns_onnx.runtime.session; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


@pytest.mark.usefixtures("kernels")
def test_session_without_graph_optimizations_reads_the_matrix_while_running(
    layer: Any, close: Make
) -> None:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    made = session(layer.model(sparse=True, rank=2), [CPU], options=options)
    x = np.ones((3, 30), np.float32)
    close(made.run(None, {"X": x})[0], layer.run(x, sparse=False))


@pytest.mark.usefixtures("kernels")
def test_matrix_fed_as_an_input_is_checked_on_each_run(layer: Any, close: Make) -> None:
    import onnx

    model = onnx.load_from_string(layer.model(sparse=True, rank=2))
    operands = {
        tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer
    }
    for tensor in model.graph.initializer:
        model.graph.input.append(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, [None])
        )
    del model.graph.initializer[:]
    made = session(model.SerializeToString(), [CPU], native="require")
    x = np.ones((1, 30), np.float32)
    close(made.run(None, {"X": x, **operands})[0], layer.run(x, sparse=False))
    operands["col_indices"] = operands["col_indices"] + 30
    with pytest.raises(Exception, match=r"CsrGemm 'layer': col_indices\[0\]"):
        made.run(None, {"X": x, **operands})
    assert library.library_available()
