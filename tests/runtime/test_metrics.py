"""Every metric against a value computed by hand or by its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dns_onnx.errors import ConfigError, DataError
from dns_onnx.runtime.meters import Mergeable
from dns_onnx.runtime.metrics import aligned, metric

RNG = np.random.default_rng(0)


def value(name: str, outputs: np.ndarray, targets: np.ndarray, parts: int = 3, **how) -> float:
    """The metric, taken in several batches, by one meter or by one for each."""
    made = metric(name, **how).make
    meter, merged = made(), made()
    for y, t in zip(np.array_split(outputs, parts), np.array_split(targets, parts), strict=True):
        meter.update([y], [t])
        if isinstance(merged, Mergeable):
            part = made()
            part.update([y], [t])
            merged.merge(part)
    if isinstance(merged, Mergeable):
        assert merged.value() == pytest.approx(meter.value())
    else:
        assert "Largest" in name
    return meter.value()


SCORES = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0, 1]]
LABELS = np.array([0, 1, 2, 0, 1, 1])


def test_accuracy_of_scores_maps_and_label_outputs() -> None:
    assert value("accuracy", SCORES, LABELS) == pytest.approx(4 / 6)
    assert value("accuracy", SCORES[:, :, None, None], LABELS) == pytest.approx(4 / 6)
    assert value("accuracy", SCORES.argmax(1), LABELS) == pytest.approx(4 / 6)
    maps = np.moveaxis(np.stack([SCORES, SCORES]), 2, 1)  # [2, C, 6]
    assert value("accuracy", maps, np.stack([LABELS, SCORES.argmax(1)])) == pytest.approx(10 / 12)
    tokens = np.stack([SCORES, SCORES])  # [2, 6, C]
    assert value("accuracy", tokens, np.stack([LABELS] * 2), axis=-1) == pytest.approx(4 / 6)
    ignored = np.where(LABELS == 0, 255, LABELS)
    assert value("accuracy", SCORES, ignored, ignore=255) == pytest.approx(3 / 4)


def test_top_k_counts_labels_among_the_k_highest() -> None:
    scores = np.array([[4, 3, 2, 1.0]] * 4)
    found = [value(f"top{k}", scores, np.arange(4)) for k in (1, 2, 3, 9)]
    assert found == [0.25, 0.5, 0.75, 1.0]


def test_one_score_a_row_says_yes_or_no() -> None:
    scores, labels = np.array([[0.9], [0.2], [0.7], [0.1]]), np.array([1, 0, 0, 1])
    assert value("accuracy", scores, labels, threshold=0.5) == 0.5
    assert value("f1", scores, labels, threshold=0.5) == pytest.approx(2 / (2 + 1 + 1))
    assert value("f1", scores[:, 0], labels, threshold=0.5) == pytest.approx(0.5)


def test_f1_and_mean_iou_average_over_the_classes_that_occur() -> None:
    # class 0: 1 hit, 1 false, 1 missed; 1: 2 hits, 1 missed; 2: 1 hit; 3: 1 false
    guess = np.eye(5)[[0, 0, 1, 1, 2, 3]]
    labels = np.array([0, 1, 1, 1, 2, 0])
    f1 = [2 / 4, 4 / 5, 1.0, 0.0]
    iou = [1 / 3, 2 / 3, 1.0, 0.0]
    assert value("f1", guess, labels) == pytest.approx(np.mean(f1))
    assert value("miou", guess, labels) == pytest.approx(np.mean(iou))


def test_mse_and_psnr() -> None:
    wanted = RNG.random((6, 2, 3)).astype(np.float32)
    output = wanted + np.float32(0.1)
    assert value("mse", output, wanted) == pytest.approx(0.01, rel=1e-5)
    peak = wanted.max() - wanted.min()
    assert value("psnr", output, wanted) == pytest.approx(20 * math.log10(peak / 0.1), rel=1e-5)


def test_label_error_rate_counts_edits_of_the_best_path() -> None:
    def scores(*path: int) -> np.ndarray:
        return np.eye(4)[list(path)]

    outputs = np.stack([scores(1, 1, 0, 1, 2, 0), scores(0, 3, 3, 0, 0, 0)])
    labels = np.array([[1, 1, 2], [2, 3, 0]])  # second: one missing of two
    assert value("ler", outputs, labels, parts=1) == pytest.approx(1 / 5)


def test_agreement_and_relative_error_compare_with_the_original() -> None:
    other = SCORES.copy()
    other[0] = [0, 1, 0, 0]
    assert value("agreement", other, SCORES, labelled=False) == pytest.approx(5 / 6)
    y = RNG.standard_normal((6, 3))
    assert value("relative-error", 1.02 * y, y, labelled=False) == pytest.approx(0.02)
    meter = metric("relative-error", labelled=False).make()
    meter.update([1.02 * y, 1.5 * y], [y, y])
    assert meter.value() == pytest.approx(0.5), "the worst of all outputs counts"


@pytest.mark.parametrize(
    ("name", "before", "after", "drop", "unit"),
    [
        ("accuracy", 0.99, 0.98, 1.0, "points"),
        ("f1", 0.5, 0.6, -10.0, "points"),
        ("agreement", 1.0, 0.97, 3.0, "points"),
        ("relative-error", 0.0, 0.01, 1.0, "points"),
        ("psnr", 31.5, 31.0, 0.5, "dB"),
        ("mse", 0.2, 0.21, 5.0, "per cent"),
        ("mse", 0.0, 0.1, math.inf, "per cent"),
    ],
)
def test_a_drop_has_the_unit_of_its_metric(
    name: str, before: float, after: float, drop: float, unit: str
) -> None:
    m = metric(name)
    assert m.drop(before, after) == pytest.approx(drop)
    assert m.drop_unit == unit
    assert m.better(before, after) == (drop > 0)
    assert m.better(after, math.nan)
    assert not m.better(math.nan, after)


FUNCTIONS = """
import numpy as np
def off(outputs, targets): return abs(outputs - targets).mean()
off.higher_is_better = False
off.unit = "mm"
class Largest:
    def __init__(self): self.found = 0.0
    def update(self, outputs, targets): self.found = max(self.found, outputs[0].max())
    def value(self): return self.found
"""


def test_functions_and_classes_of_ones_own(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "metrics_for_test.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    outputs, targets = np.arange(5.0)[:, None], np.zeros((5, 1))
    assert value("metrics_for_test:off", outputs, targets, parts=2) == pytest.approx(2.0)
    off = metric("metrics_for_test:off")
    assert (off.drop(1.0, 1.5), off.drop_unit, off.better(1.0, 2.0)) == (0.5, "mm", True)
    assert value("metrics_for_test:Largest", outputs, targets) == 4.0
    with pytest.raises(ConfigError, match="importable"):
        metric("metrics_for_test:absent")


def test_names_that_are_none_and_metrics_that_need_labels() -> None:
    with pytest.raises(ConfigError, match=r"expected accuracy, topK .*got 'acc'"):
        metric("acc")
    with pytest.raises(ConfigError, match="'f1' compares with labels and the data have none"):
        metric("f1", labelled=False)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((2, 1), np.int64), r"expected class numbers of shape \[N\]"),
        (np.array([0.0, 1.0]), "expected class numbers"),
        (np.array([0, 4]), "expected 0 to 3"),
        (np.array([-1, 0]), "expected 0 to 3"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        value("accuracy", SCORES[:2], labels, parts=1)


def test_targets_are_found_by_name() -> None:
    assert aligned({"labels": 1, "x": 2}, ["y"]) == [1]
    assert aligned({"boxes": 1, "scores": 2}, ["scores", "boxes"]) == [2, 1]
    with pytest.raises(DataError, match=r"expected a target for each of \['a', 'b'\], got \['a'\]"):
        aligned({"a": 1}, ["a", "b"])
