"""Where the native library is found, and what it says of itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dns_onnx.errors import NativeLibraryError
from dns_onnx.runtime import library

KERNEL_SETS = ("portable", "neon", "avx2", "avx512")


@pytest.mark.usefixtures("kernels")
def test_library_path_is_a_file() -> None:
    assert library.library_path().is_file()
    assert library.library_available()


@pytest.mark.usefixtures("kernels")
def test_override_names_another_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    copy = tmp_path / "copy.so"
    copy.write_bytes(library.library_path().read_bytes())
    monkeypatch.setenv("DNS_ONNX_LIBRARY", str(copy))
    assert library.library_path() == copy.resolve()


def test_override_that_is_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNS_ONNX_LIBRARY", "no/such/file.so")
    with pytest.raises(NativeLibraryError, match="DNS_ONNX_LIBRARY: expected a file"):
        library.library_path()
    assert not library.library_available()


def test_missing_library_names_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DNS_ONNX_LIBRARY", raising=False)
    monkeypatch.setattr(library, "_folders", lambda: [tmp_path])
    with pytest.raises(NativeLibraryError, match=r"install a C\+\+17 compiler and reinstall"):
        library.library_path()


@pytest.mark.usefixtures("kernels")
def test_kernel_set_is_known() -> None:
    assert library.kernel_set() in KERNEL_SETS


@pytest.mark.usefixtures("kernels")
def test_environment_picks_a_lesser_kernel_set() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from dns_onnx.runtime.library import kernel_set; print(kernel_set())",
        ],
        env={**os.environ, "DNS_ONNX_KERNELS": "portable"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.strip() == "portable"
