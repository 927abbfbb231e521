"""The training loop: surgery, forward, backward, update; now and then a look and a checkpoint."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dns_onnx import checkpoint, distributed
from dns_onnx.attach import TrainingGraph
from dns_onnx.config import Config
from dns_onnx.curvature import drawn_loss, put_gradients
from dns_onnx.data import Dataset, batches
from dns_onnx.errors import CheckpointError, Diverged, Interrupted
from dns_onnx.feed import Feed
from dns_onnx.interrupt import interruptible
from dns_onnx.journal import Journal, Observer, Progress
from dns_onnx.masks import Masked, holders, whole
from dns_onnx.objective import Objective
from dns_onnx.precision import Precision
from dns_onnx.runtime.meters import Meter
from dns_onnx.solver import Optimizer
from dns_onnx.surgery import Surgery

EVAL_BATCH = 256  # rows that are evaluated at a time, at most
EVAL_TIMES = 4  # times those of a step, which keeps all that its gradients need in memory
SOLVER_STATE = {"momentum_buffer", "exp_avg", "exp_avg_sq", "step"}  # what SGD and Adam remember


def eval_batch(config: Config) -> int:
    """Rows that are evaluated at a time; one where rows may differ in length (data.batch = 1).

    Whoever lowers data.batch for want of memory has enough for these, too.
    """
    batch = config.data.batch
    return 1 if batch == 1 else min(EVAL_TIMES * batch, EVAL_BATCH)


@dataclass
class Best:
    """The state that did best on held-out data since the masks froze."""

    metric: float = math.nan
    iteration: int = -1
    weights: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What a finished run was.  best: None where the last state is the result."""

    iterations: int
    seconds: float
    best_metric: float | None
    best_iteration: int


class Run:
    """One compression run: the model under surgery, and all that a checkpoint must hold.

    weights: every holder that is trained, by initializer name.  folder: where checkpoints and the
    log go.  fingerprint: what must be equal for a resume (model, data, settings).  tensorboard:
    where its events go, if anywhere.
    """

    def __init__(
        self, model: TrainingGraph, objective: Objective, weights: dict[str, Masked],
        biases: set[str], surgery: Surgery, config: Config, folder: Path, device: torch.device,
        fingerprint: dict[str, Any], tensorboard: Path | None = None,
    ) -> None:  # fmt: skip
        self.model, self.objective = model, objective
        self.weights, self.biases, self.surgery = weights, biases, surgery
        self.config, self.folder, self.device = config, folder, device
        self.fingerprint = fingerprint
        self.optimizer = Optimizer(
            [w for n, w in weights.items() if n not in biases],
            [w for n, w in weights.items() if n in biases],
            config.solver,
        )
        self.precision = Precision(config.train.precision, device)
        self.best = Best()
        self.iteration = 0
        self.seconds = 0.0
        self.tensorboard = tensorboard
        self.journal = Journal(surgery, folder, device, tensorboard)

    def again(
        self, surgery: Surgery, config: Config, folder: Path, fingerprint: dict[str, Any]
    ) -> Run:
        """Another run of the same model, from the weights and masks that it has now."""
        events = self.tensorboard and self.tensorboard / folder.name
        return Run(
            self.model, self.objective, self.weights, self.biases, surgery, config, folder,
            self.device, fingerprint, events,
        )  # fmt: skip

    # ------------------------------------------------------------------ the loop

    def train(self, data: Dataset, heldout: Dataset | None, observe: Observer) -> Outcome:
        """Run to the last iteration.

        Raises TrainingError when the loss is no longer finite, and Interrupted after SIGINT or
        SIGTERM; both leave a checkpoint to go on from.
        """
        settings, iterations = self.config.train, self.config.train.iterations
        started, saved = time.monotonic() - self.seconds, time.monotonic()
        with interruptible() as stop, self.journal.open():
            self.model.train()
            if settings.compile:
                self.model.graph.compile()
            forward, feed = distributed.parallel(self.model), Feed(data, self.config, self.device)
            while self.iteration < iterations:
                i = self.iteration
                self.surgery.step(i)
                inputs, targets = feed(i)
                if not self.objective.has_labels and self.surgery.listens(i):
                    put_gradients(
                        drawn_loss(self.model(*inputs), self.model.heads), self.weights.values()
                    )
                    self.surgery.listen(i)
                with self.precision.context():
                    loss = self.objective.loss(forward(*inputs), inputs, targets)
                self.optimizer.torch.zero_grad()
                self.precision.backward(loss, self.optimizer.torch)
                if self.objective.has_labels:
                    self.surgery.listen(i)
                rate = self.optimizer.step(i, iterations, self.precision.scaler)
                self.journal.add(loss)
                self.iteration = i + 1

                last = self.iteration == iterations
                every = (settings.log_every, settings.eval_every)
                if last or any(n and self.iteration % n == 0 for n in every):
                    self.seconds = time.monotonic() - started
                    self._look(rate, heldout, observe)
                due = time.monotonic() - saved >= settings.checkpoint_seconds
                stopped, due = distributed.agree(stop.is_set(), due)
                if last or due or stopped:
                    self.seconds = time.monotonic() - started
                    self.save()
                    saved = time.monotonic()
                if stopped and not last:
                    raise Interrupted(
                        f"stopped at iteration {self.iteration} of {iterations}; "
                        f"go on with --resume (checkpoint in {self.folder})"
                    )
        return self._finish()

    def _look(self, rate: float, heldout: Dataset | None, observe: Observer) -> None:
        """Check the loss, read the held-out metric when due, log and report."""
        loss, layers = self.journal.look(self.iteration)
        if not math.isfinite(loss):
            raise Diverged(self._diverged(f"loss {loss}"))
        value = self._read_heldout(heldout) if heldout is not None else None
        kept = sum(change.kept for change in layers.values())
        progress = Progress(
            self.iteration, self.config.train.iterations, loss, rate, kept, self.surgery.size(),
            self.seconds, self.objective.metric.name, value, layers,
        )  # fmt: skip
        self.journal.write(progress)
        observe(progress)

    def _read_heldout(self, heldout: Dataset) -> float | None:
        """The held-out metric, when its turn has come; remembers the best frozen state."""
        every, last = self.config.train.eval_every, self.config.train.iterations
        if not every or (self.iteration % every and self.iteration != last):
            return None
        found = self.score(heldout)
        frozen = self.iteration >= min(self.surgery.frozen_at(), last)
        if frozen and self.objective.metric.better(found, self.best.metric):
            kept = {name: w.weight.detach().clone() for name, w in self.weights.items()}
            self.best = Best(found, self.iteration, kept)
        return found

    def score(self, data: Dataset) -> float:
        """The metric of the model as it is now; of many processes, the first one's."""
        return distributed.from_main(self.meter(data).value())

    def meter(self, data: Dataset) -> Meter:
        """The metric's meter, which has seen the model as it is now on these rows."""
        self.model.eval()
        rows = batches(data, eval_batch(self.config))
        with self.precision.context():
            found = self.objective.meter(self.model, rows, self.device)
        self.model.train()
        return found

    @torch.no_grad()
    def _finish(self) -> Outcome:
        """Put the best state into the model."""
        for name, values in self.best.weights.items():
            self.weights[name].weight.copy_(values)
        distributed.unshard(holders(self.model).values())  # those that are not trained, too
        metric = self.best.metric if self.best.weights else None
        iteration = self.best.iteration if self.best.weights else self.iteration
        self.model.eval()
        return Outcome(self.iteration, self.seconds, metric, iteration)

    def _diverged(self, what: str) -> str:
        good = checkpoint.latest(self.folder)
        at = f"iteration {good.iteration} in {self.folder}" if good else "none yet"
        return (
            f"iteration {self.iteration}: expected a finite loss, got {what}; start anew with a "
            f"lower solver.lr (now {self.config.solver.lr:g}) or c_rate, in another --run-dir; "
            f"last good checkpoint: {at}"
        )

    # ------------------------------------------------------------------ checkpoints

    def start_fresh(self) -> None:
        """Clear the folder of a finished run; refuse to touch one that could still go on.

        Raises CheckpointError.
        """
        if not distributed.is_main():
            return distributed.wait()
        self._clear()
        distributed.wait()

    def _clear(self) -> None:
        found = checkpoint.latest(self.folder)
        if found is None:
            return
        planned = found.state["fingerprint"].get("settings", {}).get("train", {})
        if found.iteration < planned.get("iterations", 0):
            raise CheckpointError(
                f"{self.folder}: holds an unfinished run at iteration {found.iteration}; "
                "go on with --resume, choose another --run-dir, or remove the folder"
            )
        checkpoint.remove(self.folder)

    def save(self) -> None:
        """Write a checkpoint; refuses a state that is no longer finite."""
        tensors: dict[str, Tensor] = {"rng.torch": distributed.gather(torch.get_rng_state())}
        if self.device.type == "cuda":
            tensors["rng.cuda"] = distributed.gather(torch.cuda.get_rng_state(self.device))
        for name, holder in self.weights.items():
            tensors[f"weight.{name}"] = whole(holder.weight)
            if holder.mask is not None:
                tensors[f"mask.{name}"] = whole(holder.mask)
            for key, value in sorted(self.optimizer.torch.state.get(holder.weight, {}).items()):
                if key in SOLVER_STATE:
                    tensors[f"{key}.{name}"] = whole(value)
        if not all(bool(torch.isfinite(tensors[f"weight.{n}"]).all()) for n in self.weights):
            raise Diverged(self._diverged("weights that are not finite"))
        tensors |= {f"best.{name}": whole(w) for name, w in self.best.weights.items()}
        tensors |= self.journal.tensors() | self.surgery.tensors()
        best = {"metric": self.best.metric, "iteration": self.best.iteration}
        state = {
            "fingerprint": self.fingerprint, "surgery": self.surgery.state(),
            "best": best if self.best.weights else None, "seconds": self.seconds,
            "journal": self.journal.state(), "threads": torch.get_num_threads(),
            "scale": self.precision.state(),
        }  # fmt: skip
        if distributed.is_main():
            checkpoint.save(self.folder, self.iteration, tensors, state)

    @torch.no_grad()
    def resume(self) -> int:
        """Take up the newest checkpoint; returns its iteration, 0 where there is none.

        Raises CheckpointError where it belongs to another run.
        """
        found = checkpoint.latest(self.folder)
        if found is None:
            return 0
        for key, value in self.fingerprint.items():
            if found.state["fingerprint"].get(key) != value:
                raise CheckpointError(
                    f"{self.folder}: the checkpoint belongs to a run with another {key}; resume "
                    f"with the same {key}, or start anew in another --run-dir"
                )
        t = found.tensors
        for name, holder in self.weights.items():
            w, mask = holder.weight, holder.mask
            w.copy_(distributed.like(t[f"weight.{name}"], w))
            if mask is not None:
                mask.copy_(distributed.like(t[f"mask.{name}"], mask))
            remembered = {k: t[f"{k}.{name}"] for k in sorted(SOLVER_STATE) if f"{k}.{name}" in t}
            self.optimizer.torch.state[w] = {
                k: distributed.like(v, w) if v.shape == w.shape else v.to(self.device)
                for k, v in remembered.items()
            }
        torch.set_rng_state(distributed.own(t["rng.torch"]))
        if "rng.cuda" in t and self.device.type == "cuda":
            torch.cuda.set_rng_state(distributed.own(t["rng.cuda"]), self.device)
        self.precision.load_state(found.state["scale"])
        torch.set_num_threads(found.state["threads"])
        self.surgery.load_state(found.state["surgery"], t)
        if found.state["best"]:
            weights = {
                n: distributed.like(t[f"best.{n}"], h.weight) for n, h in self.weights.items()
            }
            self.best = Best(**found.state["best"], weights=weights)
        self.iteration, self.seconds = found.iteration, found.state["seconds"]
        self.journal.load(t, found.state["journal"])
        return self.iteration
