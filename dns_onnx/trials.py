"""The trials of a search: what is known of each, what they say to try next, and its settings.

What comes next depends on the trials so far and on nothing else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dns_onnx.config import Config, Target, parse_config
from dns_onnx.errors import CheckpointError
from dns_onnx.pace import LEAST_GROWTH, LONGER, next_growth
from dns_onnx.targets import Descent

TRIALS = "trials.jsonl"
GENTLER = 2  # times that a diverged trial is repeated
ROUGHLY = 2.5  # to this factor short trials find the limit; what longer ones find moves it
SURGERY_SHARE = 0.7  # of a trial's iterations; in the rest the masks are frozen
RAMP_SHARE = 0.85  # of the surgery: the goal is reached, then entries are still exchanged
LEAST_BETWEEN = 100  # iterations between two looks at held-out rows, unless the tail is shorter
WARMUP_SHARE = 0.02  # of a trial's iterations: its solver has forgotten what the last one knew


@dataclass(frozen=True)
class Plan:
    """What to try next.

    ratio: the compression to reach.  parent: the trial to go on from, None for the original.
    gentle: how often the learning rate is halved, and the iterations doubled.  longer: how often
    the iterations alone are.  fitted: not trained, but fitted layer by layer; what is cut by
    training begins beside it, from what is as it was trained, and from here only where that fails.
    """

    ratio: float
    parent: int | None
    gentle: int = 0
    longer: int = 0
    fitted: bool = False


@dataclass(frozen=True)
class Trial:
    """One trial, as it stands in trials.jsonl.

    ratio: entries under surgery over entries kept.  metric: held-out; None where it diverged.
    reference: what the budget counts from.  drop: against it.  layers, thresholds: kept entries,
    and t at the end, by the initializer name of the weight.  error: the standard error of the drop
    on held-out rows; 0 without a margin.
    """

    trial: int
    plan: Plan
    ratio: float
    kept: int
    size: int
    metric: float | None
    metric_name: str
    original_metric: float
    reference: float
    drop: float | None
    accepted: bool
    iterations: int
    seconds: float
    settings: dict[str, Any]
    note: str
    layers: dict[str, int]
    thresholds: dict[str, float]
    error: float = 0.0

    @property
    def verdict(self) -> str:
        """What became of it, in one word."""
        if self.accepted:
            return "accepted"
        return "diverged" if self.metric is None else "rejected"


def next_plan(trials: Sequence[Trial], target: Target, highest: float = math.inf) -> Plan | None:
    """What to try after these trials; None when the search is over.

    highest: the compression at which each layer keeps the least that it may.
    """
    if trials and trials[-1].metric is None and trials[-1].plan.gentle < GENTLER:
        last = trials[-1].plan
        return replace(last, gentle=last.gentle + 1)
    if target.density is not None:
        return None if trials else Plan(1.0 / target.density, None)
    trained = sum(t.iterations > 0 for t in trials)
    if trained + (trained < len(trials)) >= target.trials:  # what was not trained counts as one
        return None
    best, begun = smallest(trials), smallest([t for t in trials if not t.plan.fitted])
    low = best.plan.ratio if best else 1.0
    parent = begun.trial if begun else None
    longer = max((t.plan.longer for t in trials), default=0)
    failed = [
        t.plan for t in trials
        if not t.accepted and t.plan.ratio > low and t.plan.longer == longer
    ]  # fmt: skip
    if not failed:
        if low * target.precision >= highest:
            return None
        reached = [t.plan.ratio for t in trials if t.accepted and t.iterations]
        cut = [t.plan.ratio for t in trials if t.accepted and not t.iterations]
        reached = ([max(cut)] if cut else []) + reached
        factor = next_growth(reached, target.growth) if reached else target.growth
        # what was too far for shorter trials is far enough for longer ones
        broke = [t.plan.ratio for t in trials if not t.accepted]
        far = min([r for r in broke if r >= low * LEAST_GROWTH], default=math.inf)
        return Plan(min(low * factor, far, highest), parent, longer=longer)
    nearest = min(p.ratio for p in failed)
    parents = {p.parent for p in failed if p.ratio == nearest}
    nearer = best.trial if best else None
    if nearer not in parents and len(parents) == 1:
        # too far from where it began; from here it may hold
        return Plan(nearest, nearer, longer=longer)
    may_double = longer < (LONGER if target.longer is None else target.longer)
    if nearest / low > max(target.precision, ROUGHLY if may_double else 0.0):
        return Plan(math.sqrt(low * nearest), parent, longer=longer)
    return Plan(nearest, parent, longer=longer + 1) if may_double else None


def smallest(trials: Sequence[Trial]) -> Trial | None:
    """The accepted trial that keeps least."""
    return max((t for t in trials if t.accepted), key=lambda t: t.plan.ratio, default=None)


def read_trials(folder: Path) -> list[Trial]:
    """The finished trials of a run folder; a line that was cut short is taken out of the file.

    Raises CheckpointError where the file is not one of ours.
    """
    path = folder / TRIALS
    if not path.exists():
        return []
    whole = path.read_bytes()
    complete = whole[: whole.rfind(b"\n") + 1]
    if len(complete) < len(whole):
        with path.open("r+b") as file:
            file.truncate(len(complete))
    try:
        rows = [json.loads(line) for line in complete.splitlines()]
        return [Trial(**{**row, "plan": Plan(**row["plan"])}) for row in rows]
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{path}: expected one trial of this version a line, got {error}; start anew in "
            "another --run-dir"
        ) from None


def target_of(trial: Trial) -> Target:
    """What the search was after that a trial was part of."""
    return parse_config({"target": trial.settings.get("target", {})}, TRIALS).target


def trial_config(config: Config, plan: Plan, number: int) -> Config:
    """The settings of one trial: draws of its own, and defaults that suit a trial."""
    gentler = 2**plan.gentle
    times = gentler * 2**plan.longer
    iterations = config.train.iterations * times
    surgery = config.surgery
    stop = int(SURGERY_SHARE * iterations)
    if surgery.iter_stop is not None:
        stop = min(surgery.iter_stop * times, iterations)
    ramp = int(RAMP_SHARE * stop)
    if surgery.ramp_iters is not None:
        ramp = min(surgery.ramp_iters * times, stop)
    tail = iterations - stop
    solver = {"lr": config.solver.lr / gentler}
    if "tail" not in config.solver.model_fields_set:
        solver["tail"] = tail
    if "warmup" not in config.solver.model_fields_set:
        solver["warmup"] = int(WARMUP_SHARE * iterations)
    often = max(tail // 4, min(tail, LEAST_BETWEEN))
    every = max(min(config.train.eval_every or iterations, often), 1)
    return config.model_copy(
        update={
            "seed": int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0]),
            "train": config.train.model_copy(
                update={"iterations": iterations, "eval_every": every}
            ),
            "solver": config.solver.model_copy(update=solver),
            "surgery": surgery.model_copy(update={"iter_stop": stop, "ramp_iters": ramp}),
        }
    )


def descent(config: Config) -> Descent:
    """When the goal of a trial is approached, by its settings (see `trial_config`)."""
    settings = config.surgery
    return Descent(
        settings.iter_stop or 0, settings.ramp_iters or 0, settings.gamma, settings.power
    )
