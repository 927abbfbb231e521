"""What a search counts drops from: the original's held-out metric, or what it hides.

An original that was trained on the held-out rows knows them by heart, and a drop against what it
reaches there is stricter than it looks.  How much that is, twins tell: the same graph with the
entries of every weight shuffled, so that their scale stays and all that they knew is gone, trained
anew on the teaching rows alone.  What twins lose from the rows that they learned to the held-out
ones, the original would have lost too.  One training differs from the next by as much as the
answer is worth, so a twin that says that there is something to know is followed by others.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dns_onnx import checkpoint, distributed
from dns_onnx.config import Config, Solver
from dns_onnx.data import Dataset, Subset
from dns_onnx.errors import CheckpointError, Diverged
from dns_onnx.journal import Observer, silent
from dns_onnx.pace import in_time
from dns_onnx.runtime.metrics import Metric
from dns_onnx.snapshot import put_back, taken
from dns_onnx.train import Run

REFERENCE = "reference.json"
TWIN = "twin"  # what the folders of their runs begin with
TWINS = 3
PACE, PACE_ITERATIONS = "pace.json", 10  # what an iteration takes, and how many say so
TWIN_SEED = 0x7717
TEACHING_ROWS = 20_000  # that are read, spread evenly: a standard error of 0.02 points at 0.1 %
FEW = 0.01  # mistakes, as a share of the rows, that pass for none
NEAR = 0.005  # how far the twin may stay behind on the teaching rows
MOST = 0.01  # that the reference may lie below the original
SIGMAS = 2.0  # what is beyond sampling noise


@dataclass(frozen=True)
class Reference:
    """What drops are counted from, and why.

    metric: the reference.  original: the original's metric on the held-out rows.  said: in words.
    taught: the original's on teaching rows.  twin_taught, twin: the twins' mean on teaching and on
    held-out rows.  None where it was not read.
    """

    metric: float
    original: float
    said: str
    taught: float | None = None
    twin_taught: float | None = None
    twin: float | None = None

    @property
    def moved(self) -> bool:
        """Whether the budget counts from something else than the original's own metric."""
        return self.metric != self.original


def settle(
    run: Run, data: Dataset, heldout: Dataset, original: float, iterations: int, observe: Observer
) -> Reference:
    """The reference of a search; from the run folder where it stands there.

    run: holds the original's weights, which the caller has to put back afterwards.
    data, heldout: teaching and held-out rows, split from the same.  original: its metric on the
    latter.  iterations: of a twin's training; halved until it fits the time of a trial, unless the
    settings give them.
    Raises CheckpointError where the folder holds that of another model or other data.
    """
    if run.config.target.reference == "original":
        return Reference(original, original, "")
    path = run.folder / REFERENCE
    found = _read(path, run, original) if path.exists() else None
    distributed.wait()  # nobody writes before all have looked
    if found is None:
        found = _found(run, data, heldout, original, iterations, observe)
        if distributed.is_main():
            values = {"of": _key(run, original), "reference": asdict(found)}
            checkpoint.write_json(path, values)
            for folder in twin_folders(run.folder):
                checkpoint.remove(folder)
        distributed.wait()
    return found


def _found(
    run: Run, data: Dataset, heldout: Dataset, original: float, iterations: int, observe: Observer
) -> Reference:
    """The reference, as far as it takes to know it: twins last."""
    objective, plain = run.objective, Reference(original, original, "")
    if objective.by_labels is None:
        return plain  # without labels there is nothing to know by heart
    if not nearly_perfect(objective.metric, original):
        return plain
    some = spread(data, TEACHING_ROWS)
    taught = run.score(some)
    plain = replace(plain, taught=taught)
    if not same((taught, len(some)), (original, len(heldout))):
        return plain  # it has a gap of its own: it does not know the held-out rows
    found, told, start = plain, [], taken(run)
    try:
        if "iterations" not in run.config.train.model_fields_set:
            iterations = in_time(iterations, _pace(run, data))
        for number in range(TWINS):
            put_back(run, start)
            twin = _twin(run, data, iterations, observe, number)
            told.append((twin.score(some), twin.score(heldout)))
            twin_taught, new = (statistics.fmean(part) for part in zip(*told, strict=True))
            found = replace(plain, twin_taught=twin_taught, twin=new)
            found = judged(found, len(some), len(heldout))
            if not found.moved:
                break
    except Diverged:
        return replace(plain, said="a twin trained anew diverged")
    return found


def judged(found: Reference, taught_rows: int, heldout_rows: int) -> Reference:
    """The reference that follows from what the original and its twins reach, all of them shares.

    taught_rows, heldout_rows: how many rows they were read on.
    """
    original, taught, twin_taught, twin = (
        found.original, found.taught, found.twin_taught, found.twin
    )  # fmt: skip
    if taught is None or twin_taught is None or twin is None:
        return found
    gap = twin_taught - twin
    if taught - twin_taught > NEAR:
        why = f"a twin trained anew got no further than {errors(twin_taught)} on teaching rows"
    elif gap <= 0 or same((twin_taught, taught_rows), (twin, heldout_rows)):
        why = "a twin trained anew does as well on rows that are new to it"
    elif original - twin <= twin_taught - original:
        why = f"a twin trained anew has {errors(twin)} on them without knowing them"
    else:
        # chance may have told too much: what is not known must not be spent
        doubt = SIGMAS * math.sqrt(twin * (1 - twin) / heldout_rows)
        hidden = min(gap, original - twin) - doubt
        metric = original - min(max(hidden, 0.0), MOST)
        said = (
            f"the original knows the held-out rows by heart: {errors(original)} there, "
            f"{errors(taught)} on teaching rows; twins trained anew on teaching rows alone have "
            f"{errors(twin)} and {errors(twin_taught)}; the budget counts from {errors(metric)}, "
            "two standard errors less than that tells"
        )
        return replace(found, metric=metric, said=said)
    return replace(found, said=f"the budget counts from the original, {errors(original)}: {why}")


def same(a: tuple[float, int], b: tuple[float, int]) -> bool:
    """Whether two shares differ by no more than sampling noise.

    a, b: (share of the rows, rows).
    Source: the two-proportion z-test.
    """
    share = (a[0] * a[1] + b[0] * b[1]) / (a[1] + b[1])
    noise = math.sqrt(share * (1 - share) * (1 / a[1] + 1 / b[1]))
    return abs(a[0] - b[0]) <= SIGMAS * noise


def is_share_of_rows(metric: Metric) -> bool:
    """Whether the metric counts the rows that are right."""
    return metric.name == "accuracy" or re.fullmatch(r"top\d+", metric.name) is not None


def nearly_perfect(metric: Metric, original: float) -> bool:
    """Whether the original makes so few mistakes that it may know the rows by heart."""
    return is_share_of_rows(metric) and 1 - original < FEW


def errors(share: float) -> str:
    """A share of right rows as the share of wrong ones, to read."""
    return f"{100 * (1 - share):.2f} % errors"


def spread(data: Dataset, rows: int) -> Dataset:
    """At most so many rows, evenly spread."""
    if len(data) <= rows:
        return data
    return Subset(data, np.linspace(0, len(data) - 1, rows).astype(np.int64))


# ---------------------------------------------------------------------- twins


def twin_folders(folder: Path) -> Iterator[Path]:
    """Those of a run's twins, as far as they are there."""
    return folder.glob(f"{TWIN}-*")


def _pace(run: Run, data: Dataset) -> float:
    """Seconds of an iteration, timed once: a search that goes on trains its twins for as long."""
    path = run.folder / PACE
    if not path.exists():
        idle = _idle(run, twin_config(run.config, PACE_ITERATIONS, 0), run.folder / f"{TWIN}-pace")
        outcome = idle.train(data, None, silent)
        if distributed.is_main():
            shutil.rmtree(idle.folder)
            checkpoint.write_json(path, {"seconds": outcome.seconds / outcome.iterations})
        distributed.wait()
    return float(json.loads(path.read_text("utf-8"))["seconds"])


def _twin(run: Run, data: Dataset, iterations: int, observe: Observer, number: int) -> Run:
    """The run that trained a twin, whose weights the model then has."""
    config = twin_config(run.config, iterations, number)
    twin = _idle(run, config, run.folder / f"{TWIN}-{number}")
    forget(run, config.seed)
    torch.manual_seed(config.seed)
    twin.resume()
    twin.train(data, None, observe)
    return twin


def _idle(run: Run, config: Config, folder: Path) -> Run:
    """A run that trains by labels alone, and cuts nothing."""
    fingerprint = {**run.fingerprint, "twin": config.model_dump(mode="json")}
    idle = run.again(run.surgery.idle(config.seed), config, folder, fingerprint)
    # the original teaches nothing: it would pass on what it knows
    idle.objective = replace(run.objective, by_teacher=None, share=0.0)
    return idle


@torch.no_grad()
def forget(run: Run, seed: int) -> None:
    """Shuffle the kept entries of every weight that is trained: same scale, no memory."""
    for i, holder in enumerate(run.weights.values()):
        flat = holder.weight.detach().cpu().flatten().clone()
        kept = torch.ones(flat.shape, dtype=torch.bool)
        if holder.mask is not None:
            kept = holder.mask.cpu().flatten()
        values = flat[kept]
        order = np.random.default_rng([seed, i]).permutation(len(values))
        flat[kept] = values[torch.from_numpy(order)]
        holder.weight.copy_(flat.view(holder.weight.shape))


def twin_config(config: Config, iterations: int, number: int) -> Config:
    """A twin's settings: plain training from the start, without what suits a trained network."""
    draws = np.random.SeedSequence([config.seed, TWIN_SEED, number])
    return config.model_copy(
        update={
            "seed": int(draws.generate_state(1)[0]),
            "data": config.data.model_copy(update={"shift": 0}),
            "train": config.train.model_copy(update={"iterations": iterations, "eval_every": 0}),
            "solver": Solver(tail=iterations // 3),
        }
    )


# ---------------------------------------------------------------------- the run folder


def _key(run: Run, original: float) -> dict[str, Any]:
    """What must be equal for a stored reference to be this search's."""
    return {k: run.fingerprint.get(k) for k in ("model", "data")} | {"original": original}


def _read(path: Path, run: Run, original: float) -> Reference:
    try:
        values = json.loads(path.read_text("utf-8"))
        found = Reference(**values["reference"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: unreadable: {error}; remove it") from error
    if values.get("of") != _key(run, original):
        raise CheckpointError(
            f"{path}: belongs to another model or other data; start anew in another --run-dir"
        )
    return found
