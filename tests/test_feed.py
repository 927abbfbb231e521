"""Batches are functions of seed and iteration, whether the rows stay on the device or not."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dns_onnx import distributed, feed
from dns_onnx.config import Config, Preprocess, parse_config
from dns_onnx.data import ArrayDataset, LazyDataset, Subset
from dns_onnx.feed import Feed, Resident, is_fixed, moved, nbytes
from dns_onnx.preprocess import InputSpec, shifted, shifts

CPU = torch.device("cpu")


def images(rows: int = 50) -> ArrayDataset:
    """Images, a number a row, a whole input that all rows share, and labels."""
    rng = np.random.default_rng(0)
    specs = [InputSpec("image", np.dtype("f4"), (None, 2, 5, 4)),
             InputSpec("age", np.dtype("f4"), (None, 1)),
             InputSpec("grid", np.dtype("f4"), (3, 3), None)]  # fmt: skip
    arrays = {"image": rng.random((rows, 2, 5, 4)), "age": rng.random((rows, 1)),
              "grid": rng.random((3, 3))}  # fmt: skip
    return ArrayDataset(specs, arrays, rng.integers(0, 3, rows), Preprocess(scale=0.5), "t")


def config(shift: int, batch: int = 8) -> Config:
    return parse_config({"data": {"batch": batch, "shift": shift}}, "test")


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("rows", [50, 1030], ids=str)
def test_resident_rows_are_the_same(shift: int, rows: int) -> None:
    data = Subset(images(rows), np.arange(rows)[::-1].copy())
    plain = Feed(data, config(shift), CPU)
    assert plain.resident is None
    kept = Feed(data, config(shift), CPU)
    kept.resident = Resident(data, CPU)
    for iteration in (0, 1, 9):
        (a, labels), (b, other) = plain(iteration), kept(iteration)
        assert [x.shape for x in a] == [(8, 2, 5, 4), (8, 1), (1, 3, 3)]
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        assert torch.equal(labels["labels"], other["labels"])


def test_processes_divide_what_one_would_take(monkeypatch: pytest.MonkeyPatch) -> None:
    feeds = Feed(images(), config(2), CPU)
    whole, labels = feeds(3)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "size", lambda: 2)
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts.append(feeds(3))
    assert torch.equal(torch.cat([p[0][0] for p in parts]), whole[0])
    assert torch.equal(torch.cat([p[1]["labels"] for p in parts]), labels["labels"])


@pytest.mark.parametrize("shape", [(6, 1, 7, 7), (6, 3, 5, 8), (6, 4, 4), (6, 2, 3, 4, 5)], ids=str)
def test_moves_on_the_device_are_those_of_numpy(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).random(shape).astype(np.float32)
    moves = shifts(len(x), 2, np.random.default_rng(1))
    assert np.array_equal(moved(torch.from_numpy(x), 2, moves).numpy(), shifted(x, 2, moves))


def test_only_rows_that_stay_the_same_and_fit_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    data = images()
    assert is_fixed(Subset(data, np.arange(3)))
    assert not is_fixed(LazyDataset(data.specs, [()], Preprocess(), "t"))
    size = 50 * (4 * (40 + 1 + 9) + 8)
    assert nbytes(data) == size
    monkeypatch.setattr(feed, "Resident", lambda data, device: "kept")
    cuda = SimpleNamespace(type="cuda")
    for free, kept in ((5 * size, "kept"), (3 * size, None)):
        monkeypatch.setattr(feed, "free", lambda device, free=free: free)
        assert Feed(data, config(0), cuda).resident == kept
