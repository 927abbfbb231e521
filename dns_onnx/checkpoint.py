"""Checkpoints: a folder of tensors (safetensors) and plain state (JSON), written atomically.

A checkpoint holds all that a run needs to go on as if it had never stopped.  It appears under its
final name only when every byte is on the disk; the one before it is removed only after that.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dns_onnx.errors import CheckpointError

FORMAT = 2
LOCK = ".lock"
_NAME = re.compile(r"step-(\d{9})")


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep other runs out of a run folder; a process that is killed lets go of it, too.

    Raises CheckpointError where another run has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise CheckpointError(
            f"{folder}: another run writes there; wait until it is done, or choose another "
            "--run-dir"
        ) from None
    except NotImplementedError:
        pass  # a file system without locks
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class Checkpoint:
    """tensors: by name, on the CPU.  state: JSON values."""

    iteration: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save(
    folder: Path, iteration: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]
) -> None:
    """Write the checkpoint of `iteration` below `folder`, then remove the older ones.

    Raises CheckpointError when the disk refuses; the previous checkpoint is then still there.
    """
    final = folder / f"step-{iteration:09d}"
    draft = folder / f".{final.name}.draft"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        # safetensors refuses tensors that share memory: every tensor gets bytes of its own
        save_file({k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()},
                  draft / "tensors.safetensors")  # fmt: skip
        body = {"format": FORMAT, "iteration": iteration, **state}
        (draft / "state.json").write_text(json.dumps(body, indent=1), "utf-8")
        for file in draft.iterdir():
            _sync(file)
        shutil.rmtree(final, ignore_errors=True)
        os.rename(draft, final)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise CheckpointError(
            f"{final}: cannot be written: {error}; free some space or choose another --run-dir "
            "(the last complete checkpoint is untouched)"
        ) from error
    for old in _all(folder):
        if old != final:
            shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a small file of a run folder, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    with draft.open("w", encoding="utf-8") as file:
        file.write(json.dumps(values, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def latest(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint below `folder`, or None.

    Raises CheckpointError where its files cannot be read.
    """
    found = _all(folder)
    if not found:
        return None
    path = found[-1]
    try:
        state = json.loads((path / "state.json").read_text("utf-8"))
        tensors = load_file(path / "tensors.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: unreadable: {error}; remove it to start again without --resume"
        ) from error
    if state.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: expected checkpoint format {FORMAT}, got {state.get('format')}; "
            "resume with the version of dns-onnx that wrote it"
        )
    return Checkpoint(int(state["iteration"]), tensors, state)


def remove(folder: Path) -> None:
    """Remove every checkpoint below `folder`, unfinished ones too."""
    for path in [*_all(folder), *folder.glob(".step-*.draft")]:
        shutil.rmtree(path, ignore_errors=True)


def _all(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if _NAME.fullmatch(p.name))


def _sync(path: Path) -> None:
    """Ask the system to have the file or folder on the disk."""
    if os.name == "nt":
        return  # Windows refuses fsync on what is open for reading
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
