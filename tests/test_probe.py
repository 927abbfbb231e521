"""What a search finds out before its first trial."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from dns_onnx import compress
from dns_onnx.config import Config, parse_config
from dns_onnx.data import Dataset
from dns_onnx.errors import CheckpointError
from dns_onnx.probe import (
    PROBE,
    SOLVERS,
    Probe,
    choice,
    last_best,
    probe_config,
)
from dns_onnx.result import Result
from dns_onnx.runtime.metrics import metric
from dns_onnx.train import Run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("losses", "chosen"),
    [([1.0, 1.1, 0.9], 0), ([1.0, 0.5, 0.4], 2), ([math.inf, math.inf, 0.4], 2),
     ([0.1, 0.2, math.inf], 0), ([3.0, 2.5, 4.0], 1), ([2.5, 3.0, 4.0], 0)],
)  # fmt: skip
def test_the_first_solver_stays_where_none_is_clearly_better(
    losses: list[float], chosen: int
) -> None:
    assert choice(2.0, losses) == chosen


@pytest.mark.parametrize(
    ("losses", "chosen"),
    [([1.0, 1.1, 0.9], 2), ([1.0, 0.5, 0.6], 2), ([1.0, 0.5, 0.7], 1), ([0.1, 0.4, math.inf], 0),
     ([3.0, 2.5, 4.0], 1)],
)  # fmt: skip
def test_where_the_original_teaches_the_gentlest_that_mends_is_taken(
    losses: list[float], chosen: int
) -> None:
    assert choice(2.0, losses, taught=True) == chosen


@pytest.mark.parametrize("taught", [False, True], ids=["labels", "original"])
@pytest.mark.parametrize(
    ("losses", "chosen"),
    [([3.0, 0.5, 2.0], {1}), ([math.inf, 0.5, math.inf], {1}), ([math.inf] * 3, {0, 2})],
)
def test_a_cut_that_leaves_no_finite_loss_takes_what_mends_it_best(
    losses: list[float], chosen: set[int], taught: bool
) -> None:
    assert choice(math.inf, losses, taught) in chosen


@pytest.mark.parametrize(
    ("name", "values", "best"),
    [("accuracy", [0.8, 0.9, 0.7], 1), ("accuracy", [0.9, 0.8, 0.9], 2),
     ("ler", [0.3, 0.1, 0.2], 1), ("accuracy", [math.nan, 0.1, math.nan], 1)],
)  # fmt: skip
def test_of_equal_metrics_the_gentlest_solver_is_taken(
    name: str, values: list[float], best: int
) -> None:
    assert last_best(metric(name), values) == best


def test_what_a_probe_says_of_doubling_gives_way_to_the_settings() -> None:
    found = Probe(1.0, {}, {}, 0.01, 8000, longer=2)
    assert found.applied(parse_config({}, "t")).target.longer == 2
    assert found.applied(parse_config({"target": {"longer": 0}}, "t")).target.longer == 0


def test_a_probe_comes_up_and_goes_down_within_a_small_part_of_a_trial() -> None:
    told = probe_config(Config(), "adam", 1e-3, 8000)
    assert (told.solver.type, told.solver.lr, told.solver.policy) == ("adam", 1e-3, "fixed")
    assert told.train.iterations == 200
    assert told.solver.warmup + told.solver.tail == 200
    assert probe_config(Config(), "adam", 1e-3, 400).train.iterations == 40
    assert probe_config(Config(), "adam", 1e-3, 100).train.iterations == 20


@pytest.mark.parametrize(
    ("worth", "told"), [(None, False), (0.0, False), (1.6, True), (6.0, False)]
)
def test_a_budget_of_a_few_answers_is_told(worth: float | None, told: bool) -> None:
    said = Probe(1.0, {}, {}, 0.0, 10, worth=worth).said
    assert ("worth 1.6 held-out answers" in said) == told


# ---------------------------------------------------------------------- on a small net


def run(folder: Path, out: str = "out.onnx", **options) -> Result:
    config = parse_config(
        {
            "data": {"batch": 16, "holdout": 0.2},
            "train": {"iterations": 60, "log_every": 40},
            "target": {"trials": 3, "max_drop": 2.0, "growth": 2.0},
        },
        "test",
    )
    return compress(
        folder / "net.onnx", folder / out, train=f"{folder}/train.npz", config=config,
        bench_seconds=0.05, **options,
    )  # fmt: skip


def test_a_search_begins_with_cuts_and_its_own_solver(small: Path) -> None:
    found: list[object] = []
    result = run(small, tell=found.append)
    (probe,) = (f for f in found if isinstance(f, Probe))
    cut = [t for t in result.trials if not t.iterations]
    others = result.trials[len(cut) :]
    assert cut[-1].ratio == pytest.approx(probe.ratio, rel=0.05)
    assert all(t.accepted for t in cut)
    assert others[0].plan.parent == next((t.trial for t in cut if not t.plan.fitted), None)
    assert probe.worth == pytest.approx(0.02 * 0.2 * len(np.load(small / "train.npz")["labels"]))
    assert len(probe.losses) == len(SOLVERS)
    assert all(math.isfinite(loss) for loss in probe.losses.values())
    solver = others[0].settings["solver"]
    assert (solver["type"], solver["lr"]) == (probe.solver["type"], probe.solver["lr"])


def test_without_labels_a_search_finds_its_way_too(small: Path) -> None:
    rows = dict(np.load(small / "train.npz"))
    rows.pop("labels")
    np.savez(small / "train.npz", **rows)
    result = run(small)
    assert result.check.metric is not None
    assert result.check.metric.name == "relative-error"
    assert sum(t.iterations > 0 for t in result.trials) == 2


def test_a_probe_is_read_again_where_a_search_goes_on(small: Path) -> None:
    before: list[object] = []
    run(small, tell=before.append)
    path = small / "out.run" / PROBE
    stored = json.loads(path.read_text())
    stored["probe"]["seconds"] = 77.0  # were it measured again, it would say something else
    path.write_text(json.dumps(stored))
    after: list[object] = []
    run(small, tell=after.append, resume=True)
    (probe,) = (f for f in after if isinstance(f, Probe))
    assert probe.seconds == 77.0


@pytest.mark.parametrize("broken", ["{", '{"probe": {"what": 1}}'])
def test_a_probe_that_cannot_be_read_is_refused(small: Path, broken: str) -> None:
    run(small)
    (small / "out.run" / PROBE).write_text(broken)
    with pytest.raises(CheckpointError, match=r"probe\.json"):
        run(small, resume=True)


def test_a_probe_of_other_settings_is_refused(small: Path) -> None:
    run(small)
    path = small / "out.run" / PROBE
    stored = json.loads(path.read_text())
    stored["of"]["settings"]["seed"] = 5
    path.write_text(json.dumps(stored))
    with pytest.raises(CheckpointError, match="other settings"):
        run(small, resume=True)


# ---------------------------------------------------------------------- the original beside labels


def labelled(folder: Path, right: float, resume: bool = False, **told: object) -> Result:
    """A search on the small net, whose labels agree with it on this share of the rows."""
    rows = dict(np.load(folder / "train.npz"))
    session = ort.InferenceSession(folder / "net.onnx")
    (scores,) = session.run(None, {"x": rows["x"]})
    order = np.argsort(-scores, 1)
    wrong = np.random.default_rng(0).random(len(scores)) >= right
    rows["labels"] = order[np.arange(len(scores)), wrong.astype(int)]
    np.savez(folder / "agreed.npz", **rows)
    config = parse_config(
        {
            "data": {"batch": 16, "holdout": 0.2},
            "train": {"iterations": 50, "log_every": 50},
            "target": {"trials": 2, "max_drop": 50.0, "reference": "original"},
            **told,
        },
        "test",
    )
    return compress(
        folder / "net.onnx", folder / "agreed.onnx", train=f"{folder}/agreed.npz", config=config,
        bench_seconds=0.02, resume=resume,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("better", "right", "told", "weight"),
    [(True, 0.8, {}, 0.5), (False, 0.8, {}, 0.0), (True, 1.0, {}, None),
     (True, 0.8, {"distill": {"weight": 0.0}}, 0.0), (True, 0.8, {"solver": {"lr": 0.01}}, None)],
    ids=["helps", "does not", "nearly perfect", "told", "solver told"],
)  # fmt: skip
def test_the_original_teaches_beside_labels_where_that_helps(
    small: Path, monkeypatch: pytest.MonkeyPatch, better: bool, right: float,
    told: dict[str, object], weight: float | None,
) -> None:  # fmt: skip
    shares: list[float] = []

    def score(run: Run, data: Dataset) -> float:
        shares.append(run.objective.share)
        return scored(run, data) + (0.5 if better else -0.5) * run.objective.share

    scored = Run.score
    with monkeypatch.context() as patched:
        patched.setattr(Run, "score", score)
        result = labelled(small, right, **told)
    assert {t.settings["distill"]["weight"] for t in result.trials} == {weight}
    assert ("the original model teaches, too (weight 0.5)" in result.objective) == (weight == 0.5)
    assert (0.5 in shares) == (told == {} and right < 1)


def test_an_original_that_labels_contradict_does_not_teach(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dns_onnx.probe.GENTLE", ("adam", 0.03))  # for a net as small as this
    result = labelled(small, right=0.0)
    assert {t.settings["distill"]["weight"] for t in result.trials} == {0.0}
    again = labelled(small, right=0.0, resume=True)
    assert (again.objective, again.trials) == (result.objective, result.trials)
