from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dns_onnx import sources
from dns_onnx.config import Preprocess
from dns_onnx.errors import DataError
from dns_onnx.preprocess import InputSpec

F32 = np.dtype(np.float32)
FIRST = [InputSpec("x", F32, (None, 3, 6, 8))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes: left half red, right half blue, of different sizes."""
    for name, size in (("b/1.png", (16, 12)), ("a/2.png", (32, 24)), ("b/0.png", (8, 6))):
        pixels = np.zeros((size[1], size[0], 3), np.uint8)
        pixels[:, : size[0] // 2, 0] = 255
        pixels[:, size[0] // 2 :, 2] = 255
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / name)
    return tmp_path


def test_subfolders_are_classes_and_images_fit_the_model(folder: Path) -> None:
    data = sources.load(f"{folder}?scale=0.5", FIRST, Preprocess(), "train")
    batch = data.take(np.arange(3))
    assert batch.labels.tolist() == [0, 1, 1]
    x = batch.inputs["x"]
    assert x.shape == (3, 3, 6, 8)
    assert x[2, 0, :, 0].tolist() == [127.5] * 6
    assert x[2, 0, :, -1].tolist() == [0] * 6
    assert (x[0, :, 3, 1] - x[2, :, 3, 1] == 0).all()


def test_a_flat_folder_has_no_labels(folder: Path) -> None:
    data = sources.load(
        str(folder / "b"), [InputSpec("x", F32, (None, 6, 8, 3))], Preprocess(), "t"
    )
    batch = data.take(np.arange(2))
    assert batch.labels is None
    assert batch.inputs["x"].shape == (2, 6, 8, 3)


def test_images_of_any_size_are_read_one_at_a_time(folder: Path) -> None:
    data = sources.load(
        str(folder), [InputSpec("x", F32, (None, 3, None, None))], Preprocess(), "t"
    )
    sizes = [data.take(np.array([i])).inputs["x"].shape[2:] for i in range(3)]
    assert sizes == [(24, 32), (6, 8), (12, 16)]
    with pytest.raises(DataError, match=r"set data\.batch = 1"):
        data.take(np.arange(3))


def test_what_is_no_image_is_named(folder: Path) -> None:
    (folder / "b" / "2.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"2\.png: expected an image"):
        sources.load(str(folder), FIRST, Preprocess(), "t")
    with pytest.raises(DataError, match="images are for inputs"):
        sources.load(str(folder), [InputSpec("x", F32, (None, 5))], Preprocess(), "t")
