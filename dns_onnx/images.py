"""Folders of image files as rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from dns_onnx.data import LABELS
from dns_onnx.errors import DataError
from dns_onnx.preprocess import InputSpec

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


class ImageFolder:
    """Images below a folder, in order of name, as bytes of the model's layout and size.

    Each is scaled and cropped around its centre to the size that the model takes.  Where they lie
    in subfolders, each subfolder is a class: its place in the order of their names is the label.
    Raises DataError where a file cannot be read.
    """

    def __init__(self, folder: Path, spec: InputSpec) -> None:
        self.files = image_files(folder)
        classes = sorted({f.parent for f in self.files})
        self.labels = (
            {f: classes.index(f.parent) for f in self.files} if folder not in classes else None
        )
        self.spec = spec
        self.first, self.grey, self.size = _layout(spec, folder)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> dict[str, NDArray[Any]]:
        path = self.files[row]
        try:
            with Image.open(path) as file:
                image = file.convert("L" if self.grey else "RGB")
                pixels = np.asarray(ImageOps.fit(image, self.size) if self.size else image)
        except OSError as error:
            raise DataError(f"{path}: expected an image, got: {error}") from None
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        values = {self.spec.name: np.moveaxis(pixels, -1, 0) if self.first else pixels}
        if self.labels is not None:
            values[LABELS] = np.asarray(self.labels[path])
        return values


def image_files(folder: Path) -> list[Path]:
    """Every image file below a folder."""
    return sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES)


def _layout(spec: InputSpec, folder: Path) -> tuple[bool, bool, tuple[int, int] | None]:
    """(channels first, one channel, (width, height) or None where both are free)."""
    row = spec.row
    if len(row) != 3:
        raise DataError(
            f"{folder}: images are for inputs [N, C, H, W] or [N, H, W, C], "
            f"got '{spec.name}' with rows {list(row)}"
        )
    first = row[0] in (1, 3) or row[2] not in (1, 3)
    channels, height, width = row if first else (row[2], *row[:2])
    if (height is None) != (width is None):
        raise DataError(f"{folder}: '{spec.name}': give both sizes with --shape {spec.name}=...")
    return first, channels == 1, None if height is None or width is None else (width, height)
