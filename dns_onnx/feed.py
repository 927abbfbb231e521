"""The batches of a run: which rows, moved how, on the device."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dns_onnx import distributed
from dns_onnx.attach import to_device
from dns_onnx.config import Config
from dns_onnx.data import ArrayDataset, Dataset, batch_rows, batches
from dns_onnx.preprocess import shifted, shifts

SHARE = 0.25  # of the device's free memory that rows may fill
Rows = NDArray[np.int64]
Fed = tuple[list[Tensor], dict[str, Tensor]]


class Feed:
    """This process's part of each iteration's batch; seed and iteration alone decide it.

    On CUDA the rows are prepared once and stay on the device, where they are arrays and take no
    more than a quarter of its free memory.
    """

    def __init__(self, data: Dataset, config: Config, device: torch.device) -> None:
        self.data, self.config, self.device = data, config, device
        fits = device.type == "cuda" and is_fixed(data) and nbytes(data) < SHARE * free(device)
        self.resident = Resident(data, device) if fits else None

    def __call__(self, iteration: int) -> Fed:
        """(inputs in graph order, targets by name) of an iteration."""
        c = self.config
        seed = c.seed if c.data.shuffle else None
        rows = batch_rows(len(self.data), c.data.batch, iteration, seed)
        mine = distributed.share(len(rows))
        rng = np.random.default_rng([c.seed, 1, iteration])
        if self.resident is None:
            batch = self.data.take(rows[mine])
            for name, x in batch.inputs.items():
                if self._moves(x, rows[mine]):
                    moves = shifts(len(rows), c.data.pixels, rng)[:, mine]
                    batch.inputs[name] = shifted(x, c.data.pixels, moves)
            return to_device(batch, self.device)
        inputs, targets = self.resident.take(rows[mine])
        for i, kept in enumerate(inputs):
            if self._moves(kept, rows[mine]):
                moves = shifts(len(rows), c.data.pixels, rng)[:, mine]
                inputs[i] = moved(kept, c.data.pixels, moves)
        return inputs, targets

    def _moves(self, x: Tensor | NDArray[np.generic], rows: Rows) -> bool:
        """Whether augmentation moves this input: images, one a row."""
        return self.config.data.pixels > 0 and x.ndim >= 3 and len(x) == len(rows)


class Resident:
    """All rows of a dataset, prepared once, on the device."""

    def __init__(self, data: Dataset, device: torch.device) -> None:
        parts = [to_device(batch, device) for batch in batches(data, 1024)]
        rows = [max(len(x) for x in inputs) for inputs, _ in parts]
        self.device = device
        self.inputs = [_joined([p[0][i] for p in parts], rows) for i in range(len(parts[0][0]))]
        self.targets = {k: torch.cat([p[1][k] for p in parts]) for k in parts[0][1]}

    def take(self, rows: Rows) -> Fed:
        """The given rows."""
        at = torch.from_numpy(rows).to(self.device, non_blocking=True)
        inputs = [x if len(x) == 1 else x.index_select(0, at) for x in self.inputs]
        return inputs, {k: t.index_select(0, at) for k, t in self.targets.items()}


def _joined(parts: list[Tensor], rows: list[int]) -> Tensor:
    """Rows of all parts; the one value of an input that all rows share."""
    shared = all(len(x) == 1 for x in parts) and rows != [1]
    return parts[0] if shared else torch.cat(parts)


def moved(images: Tensor, pixels: int, moves: NDArray[np.int64]) -> Tensor:
    """`data.shifted` on a device: the same values."""
    n, (height, width) = len(images), images.shape[-2:]
    flat = images.reshape(n, -1, height, width)
    padded = F.pad(flat, (pixels,) * 4, mode="replicate")
    down, right = torch.from_numpy(moves).to(images.device, non_blocking=True)
    y = down[:, None] + torch.arange(height, device=images.device)
    x = right[:, None] + torch.arange(width, device=images.device)
    row = torch.arange(n, device=images.device)
    taken = padded.permute(0, 2, 3, 1)[row[:, None, None], y[:, :, None], x[:, None, :]]
    return taken.permute(0, 3, 1, 2).reshape(images.shape).contiguous()


def is_fixed(data: Dataset) -> bool:
    """Whether a row is the same each time it is read; a Dataset of the user's may augment it."""
    base = getattr(data, "base", None)  # of a Subset, or of rows with more to them
    return isinstance(data, ArrayDataset) if base is None else is_fixed(base)


def nbytes(data: Dataset) -> int:
    """Bytes of all prepared rows, from those of one."""
    one = data.take(np.arange(1))
    return len(data) * sum(x.nbytes for x in [*one.inputs.values(), *one.targets.values()])


def free(device: torch.device) -> int:
    """Bytes of the device's memory that are free, those that torch keeps for later included."""
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached
