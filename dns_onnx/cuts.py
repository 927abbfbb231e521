"""How far a network can be cut before it has to be trained: a bit at a time, each bit fitted.

The original is cut at the prices of `targets`, a little more each time.  Where that breaks the
budget, what stays of each layer is fitted to what the layer gave before (`reconstruct`), and it is
cut on from there; a step that breaks the budget even so is taken back, and a smaller one tried.

Held-out rows are few, and the furthest cut that keeps a budget on them is in part a lucky one.  But
what was not trained has learned no answers, of no row: where answers are counted, the teaching rows
judge cuts as well as those that are held out, and a cut holds where both together keep the budget,
too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dns_onnx.attach import to_device
from dns_onnx.curvature import drawn_loss, put_gradients
from dns_onnx.data import Dataset
from dns_onnx.doubt import Doubt, joint
from dns_onnx.feed import Feed
from dns_onnx.fit.reconstruct import Reconstruction, enough_rows
from dns_onnx.reference import same, spread
from dns_onnx.snapshot import put_back, taken
from dns_onnx.targets import DRAWN_EVERY, Descent, Goal, TargetSurgery
from dns_onnx.train import Run

READINGS = 16  # batches whose gradients say what an entry is worth
FIRST, FINE, LARGEST = 1.25, 1.03, 4.0  # factors from one cut to the next: first, last, any
MOST = 32  # cuts that are tried
WITNESSES = 4  # times as many teaching rows as held-out ones judge, at most


@dataclass(frozen=True)
class Cut:
    """A cut that was tried.

    metric: on held-out rows.  fitted: the layers were, after it.  together: what the metric on
    held-out rows would be by what teaching rows say, too; None where they were not asked.
    error: the standard error of the metric that decided; 0 without a margin.
    """

    ratio: float
    metric: float
    fitted: bool
    held: bool
    together: float | None = None
    error: float = 0.0


def untrained(cuts: Sequence[Cut]) -> list[list[Cut]]:
    """What cuts alone came to: those that held unfitted, and all that held where some were fitted.

    One of them at least; without cuts, where nothing held.
    """
    held = [cut for cut in cuts if cut.held]
    plain = list(itertools.takewhile(lambda cut: not cut.fitted, held))
    found = [plain] if plain else []
    return ([*found, held] if len(held) > len(plain) else found) or [[]]


class Judge:
    """Whether what was cut holds.

    run: holds the original when this is made.  within: of a metric on held-out rows, and its
    standard error.  teaching: rows that judge, too, if the original does no better there; None
    where no answers are counted, or where held-out rows are of another kind.
    """

    def __init__(
        self, run: Run, heldout: Dataset, within: Callable[[float, float], bool],
        teaching: Dataset | None = None,
    ) -> None:  # fmt: skip
        self.run, self.heldout, self.within = run, heldout, within
        self.doubts = [Doubt(run, heldout)]
        self.witnesses, self.share, self.gap = None, 0.0, 0.0
        if teaching is not None:
            witnesses = spread(teaching, WITNESSES * len(heldout))
            theirs, ours = run.score(witnesses), run.score(heldout)
            if same((theirs, len(witnesses)), (ours, len(heldout))):
                self.witnesses, self.gap = witnesses, ours - theirs
                self.share = len(witnesses) / (len(witnesses) + len(heldout))
                self.doubts.append(Doubt(run, witnesses))

    def __call__(self, ratio: float, fitted: bool) -> Cut:
        """The verdict on the model as it is."""
        run, metric = self.run, self.run.score(self.heldout)
        if not self.within(metric, 0.0):
            return Cut(ratio, metric, fitted, False)
        error = self.doubts[0](run)
        if self.witnesses is None:
            return Cut(ratio, metric, fitted, self.within(metric, error), None, error)
        error = joint(self.share, error, self.doubts[1](run))  # all that judge share the margin
        theirs = run.score(self.witnesses) + self.gap  # as if they were held out
        together = (1 - self.share) * metric + self.share * theirs
        return Cut(ratio, metric, fitted, self.within(together, error), together, error)


@dataclass
class Cutter:
    """Cuts a run's model without training it.

    run: holds the original.  data: teaching rows.  goals: by density.  original: its weights and
    masks, as `taken`.  doing: called with what is being done.
    """

    run: Run
    data: Dataset
    goals: Callable[[float], list[Goal]]
    original: dict[str, Tensor]
    doing: Callable[[str], None] = lambda said: None
    _fisher: dict[str, Tensor] | None = field(init=False, default=None)
    _fit: Reconstruction | None = field(init=False, default=None)

    def restore(self) -> None:
        """Put the original back."""
        put_back(self.run, self.original)

    def cut(self, ratio: float) -> None:
        """Cut what there is now to a compression at once; what is dearer by now comes back."""
        if self._fisher is None:
            self._fisher = self._curvature()
        surgery = self._surgery(1.0 / ratio, 1)
        surgery.fisher.update(self._fisher)
        surgery.at_once()

    def fit(self) -> None:
        """Fit what stays of each layer."""
        if self._fit is None:
            now = taken(self.run)
            self.restore()
            self._fit = self._reconstruction()
            put_back(self.run, now)
        self._fit()

    def furthest(
        self, judge: Callable[[float, bool], Cut], highest: float, tell: Callable[[Cut], None]
    ) -> list[Cut]:
        """Cut the original as far as the budget lets it; the model is then the furthest that held.

        judge: gives the verdict on the model as it is.  highest: the compression at which nothing
        is left to cut.  tell: called with each cut.  Gives all that were tried.
        """
        self.restore()
        best, low, factor = self.original, 1.0, FIRST
        tried: list[Cut] = []
        while factor > FINE and low < highest and len(tried) < MOST:
            ratio = min(low * factor, highest)
            self.doing(f"Cutting to {ratio:.3g}x")
            self.cut(ratio)
            found = judge(ratio, False)
            if not found.held:
                self.doing(f"Fitting the layers at {ratio:.3g}x")
                self.fit()
                found = judge(ratio, True)
            tried.append(found)
            tell(found)
            if found.held:
                best, low = taken(self.run), ratio
                if all(cut.held and not cut.fitted for cut in tried):
                    factor = min(factor**2, LARGEST)
            else:
                put_back(self.run, best)
                factor = math.sqrt(factor)
        return tried

    def repeat(self, cuts: Sequence[Cut]) -> None:
        """Cut the original again as it was cut before, by the cuts that held."""
        self.restore()
        for cut in cuts:
            if cut.held:
                self.cut(cut.ratio)
                if cut.fitted:
                    self.fit()

    def _curvature(self) -> dict[str, Tensor]:
        """F_l of each layer of the original, which is what the first cut begins from."""
        run, has_labels = self.run, self.run.objective.has_labels
        surgery = self._surgery(1.0, READINGS * DRAWN_EVERY)
        feed = Feed(self.data, run.config, run.device)
        torch.manual_seed(run.config.seed)
        for i in range(READINGS):
            self.doing(f"Reading the curvature, batch {i + 1} of {READINGS}")
            inputs, targets = feed(i)
            outputs = run.model(*inputs)
            loss = run.objective.loss(outputs, inputs, targets) if has_labels else None
            put_gradients(
                drawn_loss(outputs, run.model.heads) if loss is None else loss,
                run.weights.values(),
            )
            surgery.listen(i * DRAWN_EVERY)
        run.optimizer.torch.zero_grad()
        return surgery.fisher

    def _reconstruction(self) -> Reconstruction:
        """Of the original, on rows drawn from the teaching ones."""
        run, rows = self.run, len(self.data)
        two, _ = to_device(self.data.take(np.arange(2) % rows), run.device)
        count = min(enough_rows(run.model, run.weights, two), rows)
        drawn = np.random.default_rng(run.config.seed).choice(rows, count, replace=False)
        inputs, _ = to_device(self.data.take(np.sort(drawn)), run.device)
        return Reconstruction(run.model, run.weights, inputs)

    def _surgery(self, density: float, stop: int) -> TargetSurgery:
        run = self.run
        return TargetSurgery(
            list(run.surgery), run.config.seed, self.goals(density), Descent(stop, stop),
            drawn=not run.objective.has_labels,
        )  # fmt: skip
