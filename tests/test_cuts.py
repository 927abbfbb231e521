"""How far cuts alone go: a bit at a time, fitted where that breaks the budget."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dns_onnx import compress
from dns_onnx.config import Config, parse_config
from dns_onnx.cuts import FINE, FIRST, LARGEST, Cut, Cutter, Judge, untrained
from dns_onnx.data import Dataset, Subset
from dns_onnx.probe import PROBE, Probe
from dns_onnx.result import Result
from dns_onnx.runtime.meters import Meter
from dns_onnx.runtime.metrics import metric
from dns_onnx.trials import TRIALS

pytestmark = pytest.mark.usefixtures("one_thread")


def run(folder: Path, drop: float, resume: bool = False, **target: object) -> tuple[Result, list]:
    """A search that ends with the cuts, without labels: the metric is the relative error."""
    rows = dict(np.load(folder / "train.npz"))
    rows.pop("labels", None)
    np.savez(folder / "rows.npz", **rows)
    config = parse_config(
        {"data": {"batch": 16, "holdout": 0.2}, "train": {"iterations": 20},
         "solver": {"type": "sgd", "lr": 0.01},
         "target": {"trials": 1, "max_drop": drop, **target}}, "test",
    )  # fmt: skip
    found: list[object] = []
    result = compress(
        folder / "net.onnx", folder / "out.onnx", train=f"{folder}/rows.npz", config=config,
        bench_seconds=0.01, tell=found.append, resume=resume,
    )  # fmt: skip
    return result, [f for f in found if isinstance(f, Cut)]


def test_the_furthest_cut_that_held_is_the_first_trial(small: Path) -> None:
    result, cuts = run(small, drop=5.0)
    held = [c for c in cuts if c.held]
    *plain, trial = result.trials
    assert [t.note for t in plain] == ["cut, not trained"] * (len(untrained(cuts)) - 1)
    assert trial.metric == held[-1].metric
    assert trial.ratio == pytest.approx(held[-1].ratio, rel=0.02)
    assert trial.note == "cut and fitted, not trained"
    assert [c.ratio for c in held] == sorted({c.ratio for c in held})
    assert all(c.held == (100 * c.metric <= 5.0) for c in cuts)
    broke = [c.ratio for c in cuts if not c.held]
    assert min(broke[-1:]) / held[-1].ratio <= FIRST**0.5
    assert all(c.fitted for c in cuts if not c.held)  # nothing is given up unfitted


def test_steps_grow_until_the_budget_breaks_and_shrink_from_there() -> None:
    made: list[float] = []

    class Still(Cutter):
        """Keeps no model: a ratio is within the budget up to 30, fitted or not."""

        def restore(self) -> None: ...
        def fit(self) -> None: ...
        def cut(self, ratio: float) -> None:
            made.append(ratio)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dns_onnx.cuts.taken", lambda run: {})
        patch.setattr("dns_onnx.cuts.put_back", lambda run, state: None)
        told: list[Cut] = []
        cutter = Still(None, None, None, {})  # type: ignore[arg-type]
        cuts = cutter.furthest(
            lambda ratio, fitted: Cut(ratio, made[-1], fitted, made[-1] <= 30), 1000.0, told.append
        )
    assert cuts == told
    ratios = [c.ratio for c in cuts]
    assert ratios[:3] == pytest.approx([FIRST, FIRST**3, FIRST**7])
    factors = np.diff(np.log(ratios[:4]))
    assert np.exp(factors).max() <= LARGEST + 1e-9
    assert 30 / FINE**2 < max(c.ratio for c in cuts if c.held) <= 30


def test_no_more_is_cut_than_layers_may_lose(small: Path) -> None:
    result, cuts = run(small, drop=1e9)
    assert all(c.held for c in cuts)
    assert result.trials[0].kept == 2  # of each layer one entry


def test_fitting_reaches_further(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted, _ = run(small, drop=5.0)
    shutil.rmtree(small / "out.run")
    monkeypatch.setattr(Cutter, "fit", lambda self: None)
    bare, _ = run(small, drop=5.0)
    assert fitted.trials[-1].ratio > 1.05 * bare.trials[-1].ratio


def test_a_margin_is_kept_by_cuts(small: Path) -> None:
    """By what decided: the standard error stands beside the metric."""
    result, cuts = run(small, drop=10.0, margin=4.0)
    judged = [c for c in cuts if c.error]
    assert judged
    assert all(c.held == (100 * (c.metric + 4.0 * c.error) <= 10.0) for c in judged)
    assert all(not c.held and c.metric > 0.1 for c in cuts if not c.error)
    trial = result.trials[-1]
    assert trial.error == pytest.approx(100 * [c for c in cuts if c.held][-1].error)
    plain, _ = run(small, drop=10.0)
    assert trial.ratio < plain.trials[-1].ratio


class Rows(list[int]):
    """So many rows."""

    def __init__(self, count: int) -> None:
        super().__init__(range(count))


class Rated:
    """A run whose right answers on held-out and on teaching rows are given."""

    def __init__(self, *right: np.ndarray) -> None:
        self.right = right
        self.rows = [Rows(len(part)) for part in right]
        self.config = parse_config({"target": {"margin": 1.0}}, "test")
        self.objective = SimpleNamespace(metric=metric("accuracy"))

    def score(self, data: Dataset) -> float:
        return self.meter(data).value()

    def meter(self, data: Dataset) -> Meter:
        found = metric("accuracy").make()
        right = self.right[data_of(data, self.rows)][numbers(data)]
        found.update([np.eye(2)[right.astype(int)]], [np.ones(len(right), int)])
        return found


def data_of(data: object, known: list) -> int:
    """Which of the known datasets rows come from."""
    while isinstance(data, Subset):
        data = data.base
    return [data is rows for rows in known].index(True)


def numbers(data: object) -> np.ndarray:
    """Their numbers there."""
    return numbers(data.base)[data.rows] if isinstance(data, Subset) else np.array(data)


@pytest.mark.parametrize(("change", "held"), [(0, True), (30, True), (140, False)])
def test_all_that_judge_share_the_margin(change: int, held: bool) -> None:
    """One answer of 100 is lost; of 400 teaching rows `change` change, as many for the better."""
    rng = np.random.default_rng(0)
    heldout, teaching = np.ones(100), rng.permutation(np.repeat([1.0, 0.0], [800, 200]))
    heldout[:20] = 0
    run = Rated(heldout, teaching)
    judge = Judge(run, run.rows[0], lambda m, e: m - e >= 0.78, run.rows[1])  # type: ignore[arg-type]
    assert len(judge.doubts) == 2
    run.right[0][20] = 0
    seen = judge.witnesses.rows  # type: ignore[union-attr]
    right, wrong = (seen[run.right[1][seen] == x][: change // 2] for x in (1, 0))
    run.right[1][right], run.right[1][wrong] = 0, 1
    found = judge(2.0, False)
    assert found.held == held
    assert found.together == pytest.approx(0.8 - 0.002)
    assert found.error > 0


@pytest.mark.parametrize("finished", [0, 1])
def test_a_search_that_died_among_its_cuts_makes_the_same_again(small: Path, finished: int) -> None:
    before, _ = run(small, drop=5.0)
    whole = (small / "out.onnx").read_bytes()
    log = small / "out.run" / TRIALS
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:finished]))
    for number in range(finished, len(before.trials)):
        shutil.rmtree(small / "out.run" / f"trial-{number:03d}")
    after, cuts = run(small, drop=5.0, resume=True)
    assert cuts == []  # they stand in probe.json
    assert after.trials == before.trials
    assert (small / "out.onnx").read_bytes() == whole


@pytest.mark.parametrize(
    ("cuts", "lengths"),
    [
        ("", [0]),
        ("-", [0]),
        ("cc", [2]),
        ("c-c", [2]),
        ("ccF", [2, 3]),
        ("F", [1]),
        ("c-Fc", [1, 3]),
    ],
)
def test_what_held_unfitted_is_a_trial_beside_what_was_fitted(
    cuts: str, lengths: list[int]
) -> None:
    made = [Cut(2.0 + i, 0.5, c in "F-", c != "-") for i, c in enumerate(cuts)]
    assert [len(found) for found in untrained(made)] == lengths


def test_the_cuts_stand_in_the_run_folder(small: Path) -> None:
    _, cuts = run(small, drop=5.0)
    stored = json.loads((small / "out.run" / PROBE).read_text())["probe"]
    assert [Cut(**c) for c in stored["cuts"]] == cuts
    said = Probe(2.0, {}, {}, 0.0, 10, cuts=[Cut(2.0, 0.9, True, True)]).said
    assert "cut and fitted, layer by layer, it holds to 2x" in said


class Scored:
    """A run whose metric on so many rows is given."""

    config = Config()

    def __init__(self, **by_rows: float) -> None:
        self.by_rows = by_rows

    def score(self, data: Rows) -> float:
        return self.by_rows[f"of{len(data)}"]


@pytest.mark.parametrize(
    ("original", "cut", "together", "held"),
    [
        ((0.80, 0.79), (0.79, 0.79), 0.798, True),
        ((0.80, 0.79), (0.80, 0.76), 0.776, False),
        ((0.80, 0.79), (0.76, 0.79), None, False),
        ((0.80, 0.95), (0.79, 0.50), None, True),
    ],
    ids=["both hold", "a lucky cut", "an unlucky one", "rows that the original knows better"],
)
def test_teaching_rows_judge_cuts_beside_held_out_ones(
    original: tuple[float, float], cut: tuple[float, float], together: float | None, held: bool
) -> None:
    """100 held-out rows and the first 400 of 500 others; a drop of a point is allowed."""
    heldout, teaching = Rows(100), Rows(500)
    run = Scored(of100=original[0], of400=original[1])
    judge = Judge(run, heldout, lambda m, error: m >= 0.79, teaching)  # type: ignore[arg-type]
    run.by_rows = {"of100": cut[0], "of400": cut[1]}
    found = judge(2.0, False)
    assert found.held == held
    assert found.metric == cut[0]
    assert found.together == (together if together is None else pytest.approx(together))
