"""The standard error of a drop on held-out rows."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from dns_onnx.config import Target
from dns_onnx.data import Dataset, Subset
from dns_onnx.doubt import BLOCKS, Doubt, blocks, joint, standard_error
from dns_onnx.runtime.metrics import metric


class Answers:
    """Rows that are themselves whether they are answered rightly; a run that scores them."""

    def __init__(self, right: np.ndarray, margin: float = 1.0) -> None:
        self.right = right.astype(float)
        self.config = SimpleNamespace(target=Target(margin=margin))
        self.objective = SimpleNamespace(metric=metric("accuracy"))
        self.read = 0

    def __len__(self) -> int:
        return len(self.right)

    def score(self, data: Dataset) -> float:
        assert isinstance(data, Subset)
        self.read += 1
        return float(self.right[data.rows].mean())


@pytest.mark.parametrize("rows", [1, 2, 31, 32, 33, 1000])
def test_blocks_are_neighbours_and_hold_every_row_once(rows: int) -> None:
    parts = [b.rows for b in blocks(Answers(np.ones(rows)))]  # type: ignore[attr-defined, arg-type]
    assert len(parts) == min(rows, BLOCKS)
    assert np.concatenate(parts).tolist() == list(range(rows))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_it_is_what_changed_answers_say() -> None:
    """Of n rows that change independently with probability p each way: 100 sqrt(2 p / n)."""
    rng, found = np.random.default_rng(0), []
    for _ in range(200):
        run = Answers(rng.random(3200) < 0.8)
        doubt = Doubt(run, run)  # type: ignore[arg-type]
        change = rng.choice([-1, 0, 1], 3200, p=[0.02, 0.96, 0.02])
        run.right = run.right + change
        found.append(doubt(run))  # type: ignore[arg-type]
    assert np.sqrt(np.mean(np.square(found))) == pytest.approx(
        100 * math.sqrt(0.04 / 3200), rel=0.1
    )


def test_rows_that_change_together_say_less() -> None:
    """A hundred recordings of 32 rows, each right or wrong as a whole."""
    rng = np.random.default_rng(0)
    run = Answers(np.ones(3200))
    doubt = Doubt(run, run)  # type: ignore[arg-type]
    alone, together = rng.random(3200) < 0.9, np.repeat(rng.random(100) < 0.9, 32)
    run.right = alone.astype(float)
    by_rows = doubt(run)  # type: ignore[arg-type]
    run.right = together.astype(float)
    assert doubt(run) > 3 * by_rows  # type: ignore[arg-type]


def test_nothing_is_read_without_a_margin() -> None:
    run = Answers(np.ones(100), margin=0.0)
    assert Doubt(run, run)(run) == 0.0  # type: ignore[arg-type]
    assert run.read == 0


def test_blocks_that_say_nothing_do_not_count() -> None:
    assert standard_error([1.0, 3.0, math.nan, math.inf]) == pytest.approx(1.0)
    assert standard_error([1.0, math.nan]) == math.inf
    assert standard_error([]) == math.inf


def test_two_that_are_weighed_together() -> None:
    assert joint(0.8, 1.0, 0.5) == pytest.approx(math.sqrt(0.04 + 0.16))
