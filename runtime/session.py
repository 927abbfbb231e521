"""ONNX Runtime sessions with the sparse kernels in place wherever they can be."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import onnxruntime as ort
from google.protobuf.message import DecodeError

from dns_onnx.errors import ModelError, NativeLibraryError
from dns_onnx.runtime.dispatch import Choice
from dns_onnx.runtime.dispatch import choose as choose_form
from dns_onnx.runtime.library import library_path

_log = logging.getLogger(__name__)
_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"

Provider = str | tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class SessionNotes:
    """How a session was made; found as its attribute `dns_onnx`.

    native: whether the sparse kernels are registered.  reason: why not, empty if they are.
    folded: sparse layers that run dense, because on this machine that is faster.
    unfolded: layers that the file has dense nodes for and that run on sparse kernels.
    substituted: standard nodes that run on kernels of ours.
    choice: what the two rest on.
    """

    native: bool
    reason: str
    folded: tuple[str, ...] = ()
    unfolded: tuple[str, ...] = ()
    substituted: tuple[str, ...] = ()
    choice: str = ""


def session(
    model: str | os.PathLike[str] | bytes,
    providers: Sequence[Provider] | None = None,
    *,
    native: bool | Literal["require"] = True,
    threads: int | None = None,
    choose: bool = True,
    substitute: bool = True,
    options: ort.SessionOptions | None = None,
) -> ort.InferenceSession:
    """Opens a model in ONNX Runtime, with the native sparse kernels where they can help.

    model: a path, or the bytes of a serialized model.  providers: as ONNX Runtime takes them;
    None asks for CUDA where a device exists, then for the CPU.  native: False leaves the kernels
    out, "require" makes their absence an error; they run on the CPU, so by default a session on
    another device goes without.  threads: for work inside one node.
    choose: decide again, for this machine, which layers run sparse and which dense, and join the
    sparse ones with what follows them (dispatch.py); a model with layers denser than 15 % costs
    some seconds of measuring, once for each machine.
    substitute: let standard nodes for which the library has a faster kernel run on it: LRN in any
    model, MaxPool behind sparse layers; needs `choose`.
    The session's attribute `dns_onnx` is a SessionNotes.
    Raises NativeLibraryError (native="require") and ModelError (the model does not load).
    """
    chosen = list(default_providers() if providers is None else providers)
    options = options or _quiet()
    if threads is not None:
        options.intra_op_num_threads = threads
    notes = _register(options, chosen, native)
    source = model if isinstance(model, bytes) else os.fspath(model)
    where = "model" if isinstance(source, bytes) else source
    try:
        choice = Choice(None)
        if notes.native and choose:
            choice = _choose(source, options, chosen, substitute)
        made = ort.InferenceSession(
            source if choice.data is None else choice.data, options, providers=chosen
        )
    except Exception as error:  # ONNX Runtime's exceptions share no base of their own
        raise ModelError(
            f"{where}: expected a model that ONNX Runtime {ort.__version__} loads, got: {error}"
        ) from error
    notes = replace(
        notes,
        folded=choice.folded,
        unfolded=choice.unfolded,
        substituted=choice.substituted,
        choice=choice.reason,
    )
    made.dns_onnx = notes
    _log.debug("%s: native kernels: %s %s", where, notes.native, notes.reason)
    return made


def _quiet() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only: a model's own warnings are not ours to repeat
    return options


def _choose(
    source: str | bytes, options: ort.SessionOptions, providers: list[Provider], substitute: bool
) -> Choice:
    """The form of the model that runs; a file that cannot be read stays as it is."""
    folder = None
    if isinstance(source, bytes):
        data = source
    else:
        try:
            data, folder = Path(source).read_bytes(), Path(source).resolve().parent
        except OSError:  # ONNX Runtime says what is wrong with the path
            return Choice(None)
        # bytes have no folder of their own, beside which external data would be looked for
        options.add_session_config_entry(_DATA_FOLDER, str(folder))

    def open_(form: bytes) -> ort.InferenceSession:
        return ort.InferenceSession(form, options, providers=providers)

    # a session that writes files is opened once
    quiet = not (options.enable_profiling or options.optimized_model_filepath)
    try:
        threads, opener = options.intra_op_num_threads, open_ if quiet else None
        return choose_form(data, folder, threads, opener, substitutes=substitute)
    except DecodeError:  # ONNX Runtime says what is wrong with the file
        return Choice(None)


def default_providers() -> list[Provider]:
    """CUDA where this ONNX Runtime offers it and a device answers, then the CPU."""
    if _CUDA in ort.get_available_providers() and (devices := cuda_devices()) > 0:
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()
        # float32 as everywhere else, not its first ten bits; of many processes each has a device
        own = int(os.environ.get("LOCAL_RANK", "0")) % devices
        return [(_CUDA, {"use_tf32": "0", "device_id": str(own)}), _CPU]
    return [_CPU]


def cuda_devices() -> int:
    """Number of CUDA devices that the driver reports; 0 without a driver."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def _register(
    options: ort.SessionOptions, providers: list[Provider], native: bool | Literal["require"]
) -> SessionNotes:
    """Registers the kernel library with `options`, or says why it does not."""
    if not native:
        return SessionNotes(False, "switched off by the caller")
    names = {provider if isinstance(provider, str) else provider[0] for provider in providers}
    if native != "require" and names != {_CPU}:
        return SessionNotes(False, f"the kernels run on the CPU, the session on {sorted(names)}")
    try:
        options.register_custom_ops_library(str(library_path()))
    except NativeLibraryError as error:
        if native == "require":
            raise
        return SessionNotes(False, str(error))
    except Exception as error:  # ONNX Runtime could not load the file
        message = (
            f"{library_path()}: expected a library that ONNX Runtime {ort.__version__} loads, "
            f"got: {error}; reinstall dns-onnx"
        )
        if native == "require":
            raise NativeLibraryError(message) from error
        return SessionNotes(False, message)
    return SessionNotes(True, "")
