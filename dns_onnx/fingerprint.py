"""What must be equal for a run to go on: the model's bytes, the data, the settings."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import numpy as np

from dns_onnx.config import Config
from dns_onnx.data import Dataset, all_labels
from dns_onnx.rows import Rows
from dns_onnx.runtime.sizes import model_files


def fingerprint(model: str | os.PathLike[str], rows: Rows, config: Config) -> dict[str, Any]:
    """Of a run, as JSON values.

    Held-out rows that were split from the training ones are told by what is left of those.
    """
    apart = [rows.heldout] if rows.apart and rows.heldout is not None else []
    return {
        "model": file_digest(model), "data": data_digest(rows.teaching, *apart),
        "settings": config.model_dump(mode="json"),
    }  # fmt: skip


def file_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a model file and its external data, in hex."""
    digest = hashlib.sha256()
    for part in model_files(path):
        digest.update(part.read_bytes())
    return digest.hexdigest()


def data_digest(*parts: Dataset) -> str:
    """SHA-256 over the number of rows, all labels, and the first, middle and last row of each."""
    digest = hashlib.sha256()
    for data in parts:
        digest.update(str(len(data)).encode())
        labels = all_labels(data)
        if labels is not None:
            digest.update(np.ascontiguousarray(labels).tobytes())
        for x in data.take(np.array([0, len(data) // 2, len(data) - 1])).inputs.values():
            digest.update(np.ascontiguousarray(x).tobytes())
    return digest.hexdigest()
