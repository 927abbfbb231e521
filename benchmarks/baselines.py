"""The ways to prune that the surgery is compared with, as schedules of the training loop."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from sparsegpt import prune_model

from dns_onnx.config import Config
from dns_onnx.data import Dataset
from dns_onnx.prices import keep_dearest
from dns_onnx.surgery import LayerSurgery, Surgery
from dns_onnx.targets import Goal, goals

OURS = "surgery (ours)"
ONE_SHOT = {"SparseGPT-like, one-shot", "onnxsim, one-shot"}  # no training afterwards
METHODS = {
    OURS: ("-",),
    "gradual magnitude": ("global",),
    "one-shot magnitude, fine-tuned": ("global", "layer by layer"),
    "SparseGPT-like, fine-tuned": ("blocks of 128", "one block, uneven"),
    "onnxsim, fine-tuned": ("global", "sparsegpt"),
    "SparseGPT-like, one-shot": ("blocks of 128", "one block, uneven"),
    "onnxsim, one-shot": ("magnitude", "global", "wanda", "sparsegpt"),
}
CALIBRATION_ROWS = 1024
UPDATE_EVERY = 50  # iterations between two cuts of the gradual descent
RATE = 0.02  # of learning, as in this project's own recipes


@dataclass(frozen=True)
class Job:
    """One run: everything that decides its result."""

    net: str
    sparsity: float
    method: str
    variant: str
    seed: int
    iterations: int
    rate: float = RATE

    @property
    def folder(self) -> str:
        """Its name below --runs."""
        words = f"{self.method} {self.variant} {self.iterations} lr{self.rate:g} seed{self.seed}"
        plain = "".join(c if c.isalnum() else "-" for c in words).strip("-")
        return f"{self.net}/{100 * self.sparsity:g}/{plain}"


class FixedMasks(Surgery):
    """Nothing is cut or spliced: the masks are as they were when training began."""

    def step(self, iteration: int) -> list[str]:
        return []

    def frozen_at(self) -> int:
        return 0


class GradualMagnitude(Surgery):
    """Magnitude pruning along a cubic from all entries to the goals; what is cut stays cut.

    goals: one for all layers, or one a layer.  ramp_iters: the goals are reached here.
    Source: Zhu and Gupta, "To prune, or not to prune", 2017, section 3.
    """

    def __init__(
        self, layers: Sequence[LayerSurgery], seed: int, goals: Sequence[Goal], ramp_iters: int
    ) -> None:
        super().__init__(layers, seed)
        self.goals, self.ramp_iters = list(goals), ramp_iters

    @torch.no_grad()
    def step(self, iteration: int) -> list[str]:
        last = iteration == self.ramp_iters - 1
        if iteration >= self.ramp_iters or (iteration % UPDATE_EVERY and not last):
            return []
        for layer in self.layers:
            for holder, mask, _ in layer.parts():
                holder.weight.mul_(mask)  # else what is cut could outgrow what is kept
        left = 0.0 if last else (1.0 - iteration / self.ramp_iters) ** 3
        keep_largest(self.layers, self.goals, left)
        return [layer.name for layer in self.layers]

    def frozen_at(self) -> int:
        return self.ramp_iters


def keep_largest(layers: Sequence[LayerSurgery], goals: Sequence[Goal], left: float = 0.0) -> None:
    """Masks that keep each goal's largest entries, and `left` (0 to 1) of what goes beyond it."""
    one = torch.ones((), dtype=torch.float64)
    for goal in goals:
        chosen = [x for x in layers if x.key in goal.layers]
        size = sum(x.size() for x in chosen)
        wanted = math.floor(goal.kept + (size - goal.kept) * left)
        keep_dearest(chosen, {x.key: one for x in chosen}, wanted)


def per_layer(layers: Sequence[LayerSurgery], kept: Mapping[str, int]) -> list[Goal]:
    """A goal for each layer."""
    return [Goal((x.key,), kept[x.key]) for x in layers]


def pruning(
    job: Job, layers: list[LayerSurgery], config: Config, dense: Path, data: Dataset, tool: Onnxsim
) -> tuple[Surgery, dict[str, Any]]:
    """The schedule of a method, what it prunes in one shot pruned; and what the tool said.

    config: of the run, as a search's trial has it.  data: the teaching rows.
    """
    shared = goals(layers, {}, 1 - job.sparsity)
    even = {x.key: round((1 - job.sparsity) * x.size()) for x in layers}
    wanted: Sequence[Goal] = per_layer(layers, even) if job.variant == "layer by layer" else shared
    if job.method == "gradual magnitude":
        return GradualMagnitude(layers, config.seed, wanted, config.surgery.ramp_iters or 1), {}
    said: dict[str, Any] = {}
    if job.method.startswith("one-shot magnitude"):
        keep_largest(layers, wanted)
    elif job.method.startswith("SparseGPT"):
        if job.variant.endswith("uneven"):  # each layer keeps what global magnitude leaves it
            keep_largest(layers, shared)
            even = {x.key: x.kept() for x in layers}
        block = 128 if job.variant == "blocks of 128" else None
        prune_model(onnx.load(dense), layers, calibration(data, config.seed), even, block)
    else:
        said = tool.prune(layers, dense, calibration(data, config.seed), job.variant,
                          shared[0].kept)  # fmt: skip
    return FixedMasks(layers, config.seed), said


def calibration(data: Dataset, seed: int) -> Any:
    """Rows of the one model input, drawn from the teaching data."""
    rng = np.random.default_rng(seed)
    drawn = np.sort(rng.choice(len(data), CALIBRATION_ROWS, replace=False))
    (rows,) = data.take(drawn).inputs.values()
    return rows


@dataclass(frozen=True)
class Onnxsim:
    """onnxsim in an environment of its own.

    python: its interpreter.  folder: where it leaves its files, which are taken as they are when
    they are there.
    """

    python: Path | None
    folder: Path

    @torch.no_grad()
    def prune(
        self, layers: list[LayerSurgery], dense: Path, rows: Any, kind: str, kept: int
    ) -> dict[str, Any]:
        """Put the weights and masks that its pruning leaves into the layers; what it said."""
        pruned, said = self.folder / f"{kind}.npz", self.folder / f"{kind}.json"
        if not said.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            np.save(self.folder / "rows.npy", rows)
            script = Path(__file__).with_name("onnxsim_prune.py")
            command = [self.python, script, dense, self.folder / "rows.npy", pruned, kind, kept]
            done = subprocess.run(
                [str(part) for part in command], check=True, capture_output=True, text=True
            )
            (self.folder / "rows.npy").unlink()
            said.write_text(done.stdout.splitlines()[-1], "utf-8")
        arrays = np.load(pruned)
        for layer in layers:
            for holder in layer.tensors:
                value = torch.from_numpy(arrays[holder.name])
                holder.weight.copy_(value)
                holder.attach_mask(value != 0)
        told: dict[str, Any] = json.loads(said.read_text("utf-8"))
        return told
