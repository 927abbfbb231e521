"""The standard error of what a model loses on held-out rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from dns_onnx.config import Target
from dns_onnx.data import Dataset, Subset
from dns_onnx.doubt import BLOCKS, FEWEST, Doubt, blocks, jackknife, joint, without_each
from dns_onnx.errors import ConfigError
from dns_onnx.runtime.metrics import Metric, metric


class Model:
    """A run whose outputs on all rows are given; the targets, too."""

    def __init__(
        self, name: str, outputs: np.ndarray, targets: np.ndarray, margin: float = 1.0
    ) -> None:
        self.outputs, self.targets = outputs, targets
        self.config = SimpleNamespace(target=Target(margin=margin))
        self.objective = SimpleNamespace(metric=metric(name))
        self.read = 0

    def __len__(self) -> int:
        return len(self.outputs)

    def meter(self, data: Dataset) -> object:
        assert isinstance(data, Subset)
        self.read += 1
        found = self.objective.metric.make()
        found.update([self.outputs[data.rows]], [self.targets[data.rows]])
        return found


def doubt(model: Model, pruned: np.ndarray) -> float:
    """What is told of the pruned model's outputs."""
    found = Doubt(model, model)  # type: ignore[arg-type]
    model.outputs = pruned
    return found(model)  # type: ignore[arg-type]


def spread(draw: Callable[[int], Model], change: Callable[[Model, int], np.ndarray]) -> float:
    """How far the drop really moves from one draw of rows to the next."""
    drops = []
    for seed in range(300):
        model = draw(seed)
        measure: Metric = model.objective.metric
        values = []
        for outputs in (model.outputs, change(model, seed)):
            meter = measure.make()
            meter.update([outputs], [model.targets])
            values.append(meter.value())
        drops.append(values[1] - values[0])
    return float(np.std(drops))


@pytest.mark.parametrize("rows", [1, 2, 31, 32, 33, 1000])
def test_blocks_are_neighbours_and_hold_every_row_once(rows: int) -> None:
    parts = [b.rows for b in blocks(range(rows))]  # type: ignore[attr-defined, arg-type]
    assert len(parts) == min(rows, BLOCKS)
    assert np.concatenate(parts).tolist() == list(range(rows))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def scores(labels: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Scores of two classes that say the label where it is right."""
    return np.eye(2)[np.where(right, labels, 1 - labels)]


def answers(seed: int, rows: int = 1600) -> Model:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, rows)
    return Model("accuracy", scores(labels, rng.random(rows) < 0.8), labels)


def other_answers(model: Model, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, 1])
    changed = rng.random(len(model)) < 0.05
    return np.where(changed[:, None], 1 - model.outputs, model.outputs)


def recordings(seed: int) -> Model:
    """Of 32 rows each, a quarter of them quiet: a norm over all is no mean of their norms."""
    rng = np.random.default_rng(seed)
    loud = np.where(rng.random(100) < 0.25, 0.03, 1.0).repeat(32)
    y = loud[:, None] * rng.standard_normal((3200, 8))
    return Model("relative-error", y, y)


def noisier(model: Model, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, 1])
    each = rng.uniform(0.01, 0.05, 100).repeat(32)
    return np.asarray(model.outputs + each[:, None] * rng.standard_normal(model.outputs.shape))


@pytest.mark.parametrize(
    ("draw", "change"), [(answers, other_answers), (recordings, noisier)],
    ids=["accuracy", "relative-error"],
)  # fmt: skip
def test_it_is_how_far_the_drop_moves(
    draw: Callable[[int], Model], change: Callable[[Model, int], np.ndarray]
) -> None:
    told = []
    for seed in range(40):
        model = draw(seed)
        told.append(doubt(model, change(model, seed)))
    assert math.sqrt(np.mean(np.square(told))) == pytest.approx(spread(draw, change), rel=0.25)


def test_rows_that_change_together_say_less() -> None:
    """A hundred recordings of 32 rows, each right or wrong as a whole."""
    rng = np.random.default_rng(0)
    labels = np.zeros(3200, int)
    each, whole = rng.random(3200) < 0.9, np.repeat(rng.random(100) < 0.9, 32)
    by_rows, by_recordings = (
        doubt(Model("accuracy", scores(labels, labels == 0), labels), scores(labels, right))
        for right in (each, whole)
    )
    assert by_recordings > 3 * by_rows


@pytest.mark.parametrize("rows", [10, 100, 1000])
def test_where_no_answer_changed_one_might_have(rows: int) -> None:
    model = answers(0, rows)
    assert doubt(model, model.outputs) == pytest.approx(1 / rows)


def test_nothing_is_read_without_a_margin() -> None:
    labels = np.zeros(3, int)
    model = Model("accuracy", np.eye(2)[labels], labels, margin=0.0)
    assert doubt(model, model.outputs) == 0.0
    assert model.read == 0


def test_too_few_rows_are_refused_with_the_remedy() -> None:
    labels = np.zeros(FEWEST - 1, int)
    model = Model("accuracy", np.eye(2)[labels], labels)
    with pytest.raises(ConfigError, match=r"at least 8 held-out rows .*--val"):
        Doubt(model, model)  # type: ignore[arg-type]


def test_a_metric_that_cannot_be_merged_is_refused() -> None:
    model = answers(0)
    plain = SimpleNamespace(update=lambda outputs, targets: None, value=lambda: 0.0)
    model.objective.metric = SimpleNamespace(name="mine:Metric", make=lambda: plain)
    with pytest.raises(ConfigError, match=r"mine:Metric.*merge\(other\)"):
        Doubt(model, model)  # type: ignore[arg-type]


def test_without_each_block() -> None:
    means = [metric("mse").make() for _ in range(3)]
    for meter, x in zip(means, (1.0, 2.0, 3.0), strict=True):
        meter.update([np.full((1, 1), x)], [np.zeros((1, 1))])
    assert without_each(means) == pytest.approx([6.5, 5.0, 2.5])  # type: ignore[arg-type]
    assert [m.value() for m in means] == [1.0, 4.0, 9.0]  # as they were


def test_of_a_mean_it_is_the_textbook_one() -> None:
    x = np.random.default_rng(0).standard_normal(20)
    left = [(x.sum() - v) / 19 for v in x]
    assert jackknife(left) == pytest.approx(x.std(ddof=1) / math.sqrt(20))
    assert jackknife([0.1, math.nan, 0.2]) == math.inf


def test_two_that_are_weighed_together() -> None:
    assert joint(0.8, 1.0, 0.5) == pytest.approx(math.sqrt(0.04 + 0.16))
