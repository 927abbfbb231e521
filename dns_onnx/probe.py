"""What a search finds out before its first trial: how far cuts alone go, how to train, how long.

Networks differ in what a learning rate does to them, and in how much can be cut before training
has to mend it.  `cuts` says the latter.  Some short trainings of the network cut a step further
say which solver mends it best, and what an iteration takes.  What decides are held-out rows.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dns_onnx import checkpoint, distributed
from dns_onnx.attach import to_device
from dns_onnx.config import Config
from dns_onnx.cuts import Cut, Cutter, Judge
from dns_onnx.data import Dataset, batches
from dns_onnx.errors import CheckpointError, Diverged
from dns_onnx.journal import silent
from dns_onnx.pace import LONGER, doublings, first_guess, in_time, next_growth
from dns_onnx.runtime.metrics import Metric
from dns_onnx.snapshot import put_back, taken
from dns_onnx.train import Run, eval_batch

PROBE = "probe.json"
SOLVERS = (("sgd", 1e-2), ("sgd", 1e-3), ("adam", 3e-3), ("adam", 1e-3), ("adam", 3e-4),
           ("adam", 1e-4))  # fmt: skip
GENTLE, BESIDE = ("adam", 3e-4), 0.5  # what says whether so much of the original's helps
CLEARLY = 0.8  # the first solver stays where it mends so much of what the best one mends
ALIKE = 0.9  # so much of that is as good: short trainings favour high rates
PROBE_SHARE, PROBE_LEAST, PROBE_MOST = 0.05, 40, 200  # iterations of a probe, of those of a trial,
SHORT = 5  # but never more than a fifth of them
PROBE_ROWS = 1024  # held-out rows that judge it
FEW_ANSWERS = 5  # that a budget may be before chance decides more than the search
BEYOND = 1.5  # times what cuts alone reach, at most: what short trainings have to mend


@dataclass(frozen=True)
class Probe:
    """What was found.

    ratio: the compression reached within the budget without training; 1.0 where none was or nothing
    is known of a budget.  solver: the settings that were chosen, none where they were
    given.  losses: held-out, after each solver's probe.  seconds: of an iteration.  iterations:
    of a trial.  teacher: the original's part of the loss; None where that was not open.
    worth: how many held-out answers the budget is; None where none are counted.  cuts: all that
    were tried, in order.  longer: how often a trial's iterations may double.
    """

    ratio: float
    solver: dict[str, Any]
    losses: dict[str, float]
    seconds: float
    iterations: int
    teacher: float | None = None
    worth: float | None = None
    cuts: list[Cut] = field(default_factory=list)
    longer: int = LONGER

    @property
    def said(self) -> str:
        """In words."""
        fitted = any(cut.fitted and cut.held for cut in self.cuts)
        how = "cut and fitted, layer by layer," if fitted else "cut"
        words = [f"{how} it holds to {self.ratio:.3g}x"] if self.ratio > 1 else []
        if self.solver:
            words.append(f"{self.solver['type']} at {self.solver['lr']:g} mends best")
        if self.teacher:
            words.append("the original teaches beside the labels")
        if self.seconds:
            words.append(f"an iteration takes {self.seconds:.2g} s")
        words.append(f"{self.iterations} iterations a trial")
        if self.worth and self.worth < FEW_ANSWERS:
            words.append(
                f"the budget is worth {self.worth:.2g} held-out answers, and chance decides more "
                "than that: more held-out rows (--val, data.holdout) and a margin (--margin) keep "
                "it out"
            )
        return "; ".join(words)

    def applied(self, config: Config) -> Config:
        """The settings of a search with what was found in them."""
        train = config.train.model_copy(update={"iterations": self.iterations})
        solver = config.solver.model_copy(update=self.solver)
        longer = self.longer if config.target.longer is None else config.target.longer
        distill = {} if self.teacher is None else {"weight": self.teacher}
        return config.model_copy(
            update={
                "train": train, "solver": solver,
                "target": config.target.model_copy(update={"longer": longer}),
                "distill": config.distill.model_copy(update=distill),
            }
        )  # fmt: skip


@dataclass(frozen=True)
class Prober:
    """What it takes to probe.

    cutter: of the original.  within: whether a held-out metric, and its standard error,
    are within the budget; None where no budget counts.  highest: compression.  worth: how many
    held-out answers the budget is, where it is counted in them.  fallible: whether the original is
    wrong often enough to have something to teach beside labels.  apart: held-out rows are no draw
    from the same as the teaching ones.
    """

    cutter: Cutter
    heldout: Dataset
    within: Callable[[float, float], bool] | None
    highest: float
    worth: float | None = None
    fallible: bool = False
    apart: bool = False

    @property
    def run(self) -> Run:
        """What holds the model."""
        return self.cutter.run

    def find(self, asked: float | None, tell: Callable[[Cut], None]) -> Probe:
        """What there is to know; from the run folder where it stands there.

        asked: the compression to reach, where one is given.  tell: called with each cut.
        """
        path = self.run.folder / PROBE
        found = _read(path, self.run) if path.exists() else None
        distributed.wait()  # nobody writes before all have looked
        if found is None:
            found = self._found(asked, tell)
            if distributed.is_main():
                values = {"of": _key(self.run), "probe": asdict(found)}
                checkpoint.write_json(path, values)
            distributed.wait()
        return found

    def _found(self, asked: float | None, tell: Callable[[Cut], None]) -> Probe:
        config = self.run.config
        iterations = first_guess(config, len(self.cutter.data))
        given = {"type", "lr"} & config.solver.model_fields_set
        timed = "iterations" not in config.train.model_fields_set
        if self.within is None and given and not timed:
            return Probe(1.0, {}, {}, 0.0, iterations)  # nothing is left to find out
        cuts: list[Cut] = []
        self.cutter.restore()
        if self.within is not None:
            witnesses = None if self.worth is None or self.apart else self.cutter.data
            judge = Judge(self.run, self.heldout, self.within, witnesses)
            cuts = self.cutter.furthest(judge, self.highest, tell)
        ratio = max((cut.ratio for cut in cuts if cut.held), default=1.0)
        start = taken(self.run)
        solver: dict[str, Any] = {}
        losses: dict[str, float] = {}
        seconds, teacher = 0.0, None
        if not given or timed:
            step = min(next_growth([ratio], config.target.growth), BEYOND)
            beyond = min(step * ratio, self.highest)
            if asked is not None:
                beyond = math.sqrt(asked)
            plain = self.run.objective
            if plain.open and self.fallible:
                teacher = self._teacher(start, beyond, iterations)
                self.run.objective = plain.sharing(teacher)
            tried = SOLVERS[:1] if given else SOLVERS
            self._begin(start, beyond)
            untrained = heldout_loss(self.run, self.heldout)
            results = [self._train(start, beyond, *s, iterations, bool(teacher)) for s in tried]
            taught = self.run.objective.share > 0
            self.run.objective = plain
            losses = {f"{kind} {lr:g}": r[0] for (kind, lr), r in zip(tried, results, strict=True)}
            seconds = min(r[1] for r in results)
            if not given:
                best = choice(untrained, list(losses.values()), taught)
                if teacher:
                    best = last_best(plain.metric, [r[2] for r in results])
                solver = {"type": SOLVERS[best][0], "lr": SOLVERS[best][1]}
        longer = LONGER
        if timed:
            pace = distributed.from_main(seconds)
            iterations = in_time(iterations, pace)
            longer = doublings(iterations, pace)
        return Probe(ratio, solver, losses, seconds, iterations, teacher, self.worth, cuts, longer)

    def _teacher(self, start: dict[str, Tensor], ratio: float, iterations: int) -> float:
        """The original's part of the loss: none where labels alone leave as good a metric."""
        run, plain, found = self.run, self.run.objective, []
        for share in (0.0, BESIDE):
            run.objective = plain.sharing(share)
            found.append(self._train(start, ratio, *GENTLE, iterations, True)[2])
        run.objective = plain
        return BESIDE if plain.metric.better(found[1], found[0]) else 0.0

    # ------------------------------------------------------------------ short trainings

    def _begin(self, start: dict[str, Tensor], ratio: float) -> None:
        """The net that probes begin from: cut further than it bears."""
        put_back(self.run, start)
        self.cutter.cut(ratio)

    def _train(
        self, start: dict[str, Tensor], ratio: float, kind: str, lr: float, iterations: int,
        judged: bool = False,
    ) -> tuple[float, float, float]:  # fmt: skip
        """What a short training with this solver comes to.

        (held-out loss, seconds of an iteration, held-out metric: where it is `judged`)
        """
        run = self.run
        config = probe_config(run.config, kind, lr, iterations)
        self.cutter.doing(f"Probe: {config.train.iterations} iterations of {kind} at {lr:g}")
        folder = run.folder / f"probe-{kind}-{lr:g}"
        if distributed.is_main():
            shutil.rmtree(folder, ignore_errors=True)
        distributed.wait()
        self._begin(start, ratio)
        trained = run.again(run.surgery.idle(config.seed), config, folder, run.fingerprint)
        torch.manual_seed(config.seed)
        try:
            outcome = trained.train(self.cutter.data, None, silent)
        except Diverged:
            return math.inf, math.inf, math.nan
        loss = heldout_loss(trained, self.heldout)
        if distributed.is_main():
            shutil.rmtree(folder)
        metric = run.score(self.heldout) if judged else math.nan
        return loss, outcome.seconds / outcome.iterations, metric


def probe_config(config: Config, kind: str, lr: float, iterations: int) -> Config:
    """The settings of one probe: the learning rate comes up quickly and goes down to zero."""
    length = min(max(int(PROBE_SHARE * iterations), PROBE_LEAST), PROBE_MOST)
    length = max(min(length, iterations // SHORT), 1)
    solver = {"type": kind, "lr": lr, "policy": "fixed", "warmup": length // 10,
              "tail": length - length // 10}  # fmt: skip
    train = {"iterations": length, "eval_every": 0, "log_every": length}
    return config.model_copy(
        update={
            "train": config.train.model_copy(update=train),
            "solver": config.solver.model_copy(update=solver),
        }
    )


@torch.no_grad()
def heldout_loss(run: Run, heldout: Dataset) -> float:
    """The mean loss over held-out rows; infinite where it is not a number."""
    run.model.eval()
    total, rows = 0.0, 0
    for batch in batches(heldout, eval_batch(run.config), PROBE_ROWS):
        inputs, targets = to_device(batch, run.device)
        total += len(batch) * float(run.objective.loss(run.model(*inputs), inputs, targets))
        rows += len(batch)
    run.model.train()
    mean = distributed.from_main(total / rows)
    return mean if math.isfinite(mean) else math.inf


def choice(untrained: float, losses: Sequence[float], taught: bool = False) -> int:
    """The solver to train with: labels alone take the first one, where it mends nearly as much.

    untrained: the loss before.  taught: the original teaches; the last, gentlest one that mends as
    good as the best then disturbs least what it still knows.
    """
    finite = [x for x in losses if math.isfinite(x)]
    before = untrained if math.isfinite(untrained) else max(finite, default=0.0)
    mended = np.array([before - x if math.isfinite(x) else -math.inf for x in losses])
    best = mended.max()
    if taught:
        return int(np.flatnonzero(mended >= min(ALIKE * best, best))[-1])
    return 0 if mended[0] >= CLEARLY * best else int(mended.argmax())


def last_best(measure: Metric, values: Sequence[float]) -> int:
    """Where the best value of a metric stands; of equals, the last."""
    best = 0
    for i, value in enumerate(values):
        best = best if measure.better(values[best], value) else i
    return best


# ---------------------------------------------------------------------- the run folder


def _key(run: Run) -> dict[str, Any]:
    return {k: run.fingerprint.get(k) for k in ("model", "data", "settings")}


def _read(path: Path, run: Run) -> Probe:
    try:
        values = json.loads(path.read_text("utf-8"))
        cuts = [Cut(**cut) for cut in values["probe"]["cuts"]]
        found = Probe(**{**values["probe"], "cuts": cuts})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: unreadable: {error}; remove it") from error
    if values.get("of") != _key(run):
        raise CheckpointError(
            f"{path}: belongs to another model, other data or other settings; start anew in "
            "another --run-dir"
        )
    return found
