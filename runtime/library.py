"""Where the native sparse kernels lie, and what they found in this CPU."""

from __future__ import annotations

import ctypes
import os
import sys
from importlib import metadata
from pathlib import Path

from dns_onnx.errors import NativeLibraryError

_SUFFIX = {"win32": ".dll", "cygwin": ".dll"}.get(sys.platform, ".so")
_NAME = f"dns_onnx_ops{_SUFFIX}"
_OVERRIDE = "DNS_ONNX_LIBRARY"
_REMEDY = "install a C++17 compiler and reinstall dns-onnx, or use the model without it (slower)"


def library_path() -> Path:
    """Path of the custom-op library, for any host that can register one.

    The environment variable DNS_ONNX_LIBRARY names another build of it.
    Raises NativeLibraryError where the package was installed without it.
    """
    override = os.environ.get(_OVERRIDE)
    if override:
        if Path(override).is_file():
            return Path(override).resolve()
        raise NativeLibraryError(f"{_OVERRIDE}: expected a file, got '{override}'; unset it")
    for folder in _folders():
        if (folder / _NAME).is_file():
            return (folder / _NAME).resolve()
    raise NativeLibraryError(
        f"dns_onnx.runtime: expected {_NAME} beside the package, got no such file; {_REMEDY}"
    )


def library_available() -> bool:
    """Whether library_path() would return."""
    try:
        library_path()
    except NativeLibraryError:
        return False
    return True


def kernel_set() -> str:
    """Instruction set of the kernels chosen for this CPU: portable, neon, avx2 or avx512."""
    library = ctypes.CDLL(str(library_path()))
    library.DnsOnnxKernelSet.restype = ctypes.c_char_p
    name: bytes = library.DnsOnnxKernelSet()
    return name.decode()


def peak_gflops() -> float:
    """Floating point operations that one thread could do without memory, in 10^9 a second."""
    library = ctypes.CDLL(str(library_path()))
    library.DnsOnnxPeakGflops.restype = ctypes.c_double
    return float(library.DnsOnnxPeakGflops())


def _folders() -> list[Path]:
    """Folders that may hold the library, the likeliest first.

    In an editable install the sources stay in the checkout and the built library lies in the
    package folder of site-packages; the installed distribution knows where that is.
    """
    folders = [Path(__file__).parent]
    try:
        distribution = metadata.distribution("dns-onnx")
    except metadata.PackageNotFoundError:
        return folders
    folders.append(Path(str(distribution.locate_file("dns_onnx/runtime"))))
    return folders
