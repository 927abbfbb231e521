"""The original model as teacher, and what it said of rows that come again and again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dns_onnx.attach import TrainingGraph, as_array, to_device
from dns_onnx.data import Batch, Dataset, batches
from dns_onnx.errors import DataError

Array = NDArray[Any]
ANSWER = "teacher:"  # before a value's name: the target that holds what the teacher said
ANSWERS_IN_MEMORY = 1 << 30  # bytes of them that are kept
CHUNK = 64  # rows that the teacher is asked at a time


class Teacher(nn.Module):
    """The original model, frozen: what it says is what the pruned one should."""

    def __init__(self, graph: TrainingGraph) -> None:
        super().__init__()
        self.graph = graph.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        """The values at the heads, by name."""
        return dict(zip(self.graph.values, self.graph(*inputs), strict=True))

    def scales(self, data: Iterable[Batch], device: torch.device) -> dict[str, float]:
        """The root mean square of each of the values over some rows; 1 where all are 0.

        Raises DataError where a value is never finite.
        """
        squares: dict[str, list[float]] = {}
        for batch in data:
            for name, y in self(*to_device(batch, device)[0]).items():
                finite = y.float()[y.isfinite()]
                squares.setdefault(name, []).extend([float((finite**2).mean())] * bool(len(finite)))
        silent = [name for name, s in squares.items() if not s]
        if silent:
            raise DataError(
                f"training data: expected rows that the model has finite outputs for, got NaN or "
                f"infinity (or nothing) at {silent} on all that were tried; give others (--train)"
            )
        return {name: float(np.sqrt(np.mean(s))) or 1.0 for name, s in squares.items()}

    @torch.no_grad()
    def answers(self, data: Dataset, device: torch.device) -> dict[str, Array] | None:
        """What it says of every row, as targets; None where that is too much, or not row by row."""
        names = list(dict.fromkeys([*self.graph.values, *(h.output for h in self.graph.heads)]))
        found: dict[str, list[Array]] = {ANSWER + name: [] for name in names}
        for batch in batches(data, CHUNK):
            inputs, _ = to_device(batch, device)
            values = dict(zip(self.graph.values, self.graph(*inputs), strict=True))
            outputs = [h.output for h in self.graph.heads]
            values |= dict(zip(outputs, self.graph.read(*inputs), strict=True))
            answered = {ANSWER + name: as_array(values[name]) for name in names}
            rows = sum(y.nbytes for y in answered.values()) / len(batch)
            if rows * len(data) > ANSWERS_IN_MEMORY:
                return None
            if any(y.ndim == 0 or len(y) != len(batch) for y in answered.values()):
                return None
            for name, y in answered.items():
                found[name].append(y)
        return {name: np.concatenate(parts) for name, parts in found.items()}


class Answered:
    """Rows with what the teacher says of them among their targets."""

    def __init__(self, base: Dataset, answers: Mapping[str, Array]) -> None:
        self.base, self.answers = base, answers

    def __len__(self) -> int:
        return len(self.base)

    def take(self, rows: NDArray[np.int64]) -> Batch:
        batch = self.base.take(rows)
        said = {name: answer[rows] for name, answer in self.answers.items()}
        return Batch(batch.inputs, {**batch.targets, **said})


def answered(values: Mapping[str, Any], names: Iterable[str]) -> list[Any] | None:
    """The teacher's answers among targets, in the order of names; None where one is missing."""
    found = [values.get(ANSWER + name) for name in names]
    return None if any(y is None for y in found) else found


def labels_in(values: Mapping[str, Any]) -> dict[str, Any]:
    """The targets without the teacher's answers."""
    return {name: y for name, y in values.items() if not name.startswith(ANSWER)}
