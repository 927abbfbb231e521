"""The smallest model within a budget: trial after trial, each going on from the best so far.

A trial takes the weights and masks of the last one that was accepted and cuts on, to a higher
compression; then its masks freeze, and the held-out metric decides.  A trial that breaks the budget
is rolled back, and the next one aims between it and the last that held; what broke is tried again
from nearer before it counts as the limit.  One whose loss diverges is repeated with half the
learning rate and twice the iterations.  Every trial stays in the run folder,
so that the result is a front of size against metric, and a search that was stopped goes on where it
was: what comes next depends on the trials so far and on nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from dns_onnx import checkpoint, distributed
from dns_onnx.budget import Budget
from dns_onnx.config import Target
from dns_onnx.cuts import Cut, Cutter, untrained
from dns_onnx.data import Dataset
from dns_onnx.doubt import Doubt
from dns_onnx.errors import BudgetMissed, CheckpointError, ConfigError, Diverged
from dns_onnx.journal import Note, Observer, Patience
from dns_onnx.pace import first_guess
from dns_onnx.prices import least
from dns_onnx.probe import PROBE, Probe, Prober
from dns_onnx.reference import PACE, REFERENCE, Reference, nearly_perfect, settle, twin_folders
from dns_onnx.runtime.metrics import Metric
from dns_onnx.snapshot import put_back, taken
from dns_onnx.targets import TargetSurgery, goals
from dns_onnx.train import Run
from dns_onnx.trials import (
    GENTLER,
    TRIALS,
    Plan,
    Trial,
    descent,
    next_plan,
    read_trials,
    smallest,
    target_of,
    trial_config,
)

RESULT = "result.safetensors"


class Search:
    """A search over one model under surgery.

    run: the run that settings without thresholds prepare; its holders are what all trials train.
    sparsity: of the layers that have a goal of their own, by weight.
    apart: the held-out rows are no draw from the same as the teaching ones, which then say nothing
    of them.
    original: the metric of the unpruned model on the held-out rows.
    reference: what the budget counts from; the original's metric until `settle`.
    """

    def __init__(
        self, run: Run, sparsity: Mapping[str, float | None], data: Dataset, heldout: Dataset,
        apart: bool = False,
    ) -> None:  # fmt: skip
        self.run, self.sparsity, self.data, self.heldout = run, sparsity, data, heldout
        self.apart, self.original = apart, run.score(heldout)
        self.reference = Reference(self.original, self.original, "")
        self.folder, self.config = run.folder, run.config
        self.first = taken(run)
        self.doubt = Doubt(run, heldout)
        self.highest = run.surgery.size() / sum(map(least, run.surgery))
        self.trials: list[Trial] = []

    @property
    def target(self) -> Target:
        """What the search is after, with what `explore` found in it."""
        return self.config.target

    @property
    def budget(self) -> Budget:
        """What the model may lose, by the reference as it is known now."""
        return Budget(self.target, self.run.objective.metric, self.reference.metric, self.answers)

    @cached_property
    def answers(self) -> int:
        """How many held-out answers the metric counts; 0 where it counts none."""
        run = self.run
        found = run.objective.counted(run.model.eval(), self.heldout, run.device)
        run.model.train()
        return found

    # ------------------------------------------------------------------ the search

    def settle(self, observe: Observer) -> None:
        """Find what the budget counts from, where there is a budget that counts.

        Raises CheckpointError where the trials so far counted from something else.
        """
        if self.budget.drop is not None and not self.apart:
            iterations = first_guess(self.config, len(self.data))
            self.reference = settle(
                self.run, self.data, self.heldout, self.original, iterations, observe
            )
            put_back(self.run, self.first)
        if any(t.reference != self.reference.metric for t in self.trials):
            raise CheckpointError(
                f"{self.folder / TRIALS}: the trials' drops count from another reference; go on "
                "with the same target.reference, or start anew in another --run-dir"
            )

    def explore(self, tell: Callable[[Cut | Note], None] = lambda found: None) -> Probe:
        """Find how far cuts alone go, how to train and how long; the cuts are the first trial.

        tell: called with each cut, and with what is being done, where that takes long.
        """
        run = self.run
        budget = self.target.density is None
        cutter = Cutter(
            run, self.data, lambda density: goals(list(run.surgery), self.sparsity, density),
            self.first, Patience(tell),
        )  # fmt: skip
        prober = Prober(
            cutter, self.heldout, self.budget.holds if budget else None, self.highest,
            self.budget.worth, not nearly_perfect(run.objective.metric, self.original), self.apart,
        )  # fmt: skip
        asked = None if self.target.density is None else 1.0 / self.target.density
        found = prober.find(asked, tell)
        self.config = found.applied(self.config)
        if found.teacher:
            run.objective = run.objective.sharing(found.teacher)
        if budget:
            for cuts in untrained(found.cuts)[len(self.trials) :]:
                cutter.repeat(cuts)
                self._record(self._untrained(cuts))
        put_back(run, self.first)
        return found

    def _untrained(self, cuts: Sequence[Cut]) -> Trial:
        """The trial that was cut so, and not trained."""
        number, fitted = len(self.trials), any(cut.fitted for cut in cuts)
        plan = Plan(cuts[-1].ratio if cuts else 1.0, None, fitted=fitted)
        run = self._run(plan, number)
        run.config = run.config.model_copy(
            update={"train": run.config.train.model_copy(update={"iterations": 0})}
        )
        if distributed.is_main():
            run.folder.mkdir(parents=True, exist_ok=True)
            _save(run, run.folder)
        metric = run.score(self.heldout)
        held = self.budget.holds(metric)  # with a margin, the judge of cuts has told
        note = f"cut{' and fitted' if fitted else ''}, not trained"
        if cuts and cuts[-1].together is not None:
            note += "; teaching rows judged, too"
        return self._trial(number, plan, run, metric, held, note, self.doubt(run))

    def find(self, observe: Observer, tell: Callable[[Trial], None]) -> Trial:
        """Search to the end; the model is then the smallest one within the budget.

        tell: called with each finished trial.
        Raises BudgetMissed where no trial was within the budget.
        """
        while (plan := next_plan(self.trials, self.target, self.highest)) is not None:
            trial = self._try(plan, observe)
            self._record(trial)
            tell(trial)
        best = smallest(self.trials)
        if best is None or best.kept == best.size:
            raise BudgetMissed(self._nothing_found())
        self.take(best.trial)
        return best

    def take(self, number: int) -> Trial:
        """Put a finished trial's weights and masks into the model."""
        chosen = [t for t in self.trials if t.trial == number]
        if not chosen:
            raise ConfigError(
                f"trial {number}: expected one of {[t.trial for t in self.trials]} (see {TRIALS})"
            )
        put_back(self.run, load_file(self._folder(number) / RESULT))
        return chosen[0]

    def _try(self, plan: Plan, observe: Observer) -> Trial:
        number = len(self.trials)
        parent = self.first
        if plan.parent is not None:
            parent = load_file(self._folder(plan.parent) / RESULT)
        put_back(self.run, parent)
        run = self._run(plan, number)
        torch.manual_seed(run.config.seed)  # draws of this trial, whatever ran before it here
        run.resume()
        try:
            outcome = run.train(self.data, self.heldout, observe)
        except Diverged as error:
            gentler = plan.gentle < GENTLER and "; rolled back, and tried again more gently"
            return self._trial(number, plan, run, None, False, f"{error}{gentler or ''}")
        metric = outcome.best_metric
        if metric is None:
            metric = run.score(self.heldout)
        if distributed.is_main():
            _save(run, self._folder(number))
        doubt = self.doubt(run)
        return self._trial(number, plan, run, metric, self.budget.holds(metric, doubt), "", doubt)

    def _run(self, plan: Plan, number: int) -> Run:
        """The run of one trial, from the weights and masks that the model has now."""
        config = trial_config(self.config, plan, number)
        layers = list(self.run.surgery)
        surgery = TargetSurgery(
            layers, config.seed, goals(layers, self.sparsity, 1.0 / plan.ratio), descent(config),
            drawn=not self.run.objective.has_labels, by_entry=self.target.curvature == "entry",
        )  # fmt: skip
        fingerprint = {**self.run.fingerprint, "plan": asdict(plan), "trial": number}
        return self.run.again(surgery, config, self._folder(number), fingerprint)

    def _trial(
        self, number: int, plan: Plan, run: Run, metric: float | None, accepted: bool, note: str,
        error: float = 0.0,
    ) -> Trial:  # fmt: skip
        measure: Metric = run.objective.metric
        surgery, reference = run.surgery, self.reference.metric
        kept, size = surgery.kept(), surgery.size()
        drop = None if metric is None else measure.drop(reference, metric)
        if metric is not None and drop is not None and error:
            error = measure.drop(reference, measure.worse(metric, error)) - drop
        return Trial(
            number, plan, size / max(kept, 1), kept, size, metric, measure.name, self.original,
            reference, drop, accepted,
            run.config.train.iterations, run.seconds, run.config.model_dump(mode="json"), note,
            {layer.key: layer.kept() for layer in surgery}, surgery.thresholds(), error,
        )  # fmt: skip

    def _nothing_found(self) -> str:
        finished = [t for t in self.trials if t.drop is not None]
        nearest = min(finished, key=lambda t: t.drop or 0.0, default=None)
        got = "none finished"
        if nearest is not None:
            got = f"the nearest had a drop of {nearest.drop:.3g} at {nearest.ratio:.3g}x"
            got += f", standard error {nearest.error:.2g}" if nearest.error else ""
        less = "a smaller --margin, " if self.target.margin else ""
        return (
            f"search: expected a trial within the budget, {got}; allow a larger --max-drop, {less}"
            f"more --iterations, or a lower solver.lr; all trials stand in {self.folder / TRIALS}"
        )

    # ------------------------------------------------------------------ the run folder

    def _folder(self, number: int) -> Path:
        return self.folder / f"trial-{number:03d}"

    def _record(self, trial: Trial) -> None:
        """Append to trials.jsonl; the trial's checkpoints are not needed any more."""
        self.trials.append(trial)
        if not distributed.is_main():
            return distributed.wait()
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / TRIALS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(trial)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        checkpoint.remove(self._folder(trial.trial))
        distributed.wait()

    def start_fresh(self) -> None:
        """Clear the folder of a finished search; refuse to touch one that could still go on.

        Raises CheckpointError.
        """
        if not distributed.is_main():
            return distributed.wait()
        found = read_trials(self.folder)
        folders = sorted(self.folder.glob("trial-*"))
        twins = list(twin_folders(self.folder))
        begun = len(folders) > len(found) or any(checkpoint.latest(t) is not None for t in twins)
        if begun or (found and next_plan(found, target_of(found[-1]), self.highest) is not None):
            raise CheckpointError(
                f"{self.folder}: holds an unfinished search of {len(found)} trials; go on with "
                "--resume, choose another --run-dir, or remove the folder"
            )
        for folder in folders:
            shutil.rmtree(folder)
        for folder in (*twins, *self.folder.glob("probe-*")):
            shutil.rmtree(folder, ignore_errors=True)
        for name in (TRIALS, REFERENCE, PACE, PROBE):
            (self.folder / name).unlink(missing_ok=True)
        distributed.wait()

    def resume(self) -> int:
        """Take up the trials that are finished; returns how many.

        Raises CheckpointError where they belong to another search.
        """
        if distributed.is_main():
            self.trials = read_trials(self.folder)  # before others look: it may mend the file
        distributed.wait()
        if not distributed.is_main():
            self.trials = read_trials(self.folder)
        for trial in self.trials:
            if trial.original_metric != self.original:
                raise CheckpointError(
                    f"{self.folder / TRIALS}: belongs to another model or other data; "
                    "start anew in another --run-dir"
                )
        return len(self.trials)


def _save(run: Run, folder: Path) -> None:
    draft = folder / f".{RESULT}.draft"
    save_file(taken(run), draft)
    os.replace(draft, folder / RESULT)
