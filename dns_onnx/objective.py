"""What a run is after: the loss that training minimises, and the metric that held-out rows read."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import Tensor, fx

from dns_onnx.attach import TrainingGraph, as_array, to_device
from dns_onnx.config import Config
from dns_onnx.converters.frontier import attachment_points
from dns_onnx.converters.heads import Head, Kind, heads
from dns_onnx.data import LABELS, Batch, Dataset, all_labels, check_labels
from dns_onnx.entry import is_entry_point
from dns_onnx.errors import ConfigError, DataError
from dns_onnx.feed import is_fixed
from dns_onnx.losses import BY_TEACHER, Loss, labels_loss, teacher_loss
from dns_onnx.masks import holders
from dns_onnx.runtime.batching import Feeding
from dns_onnx.runtime.judge import metric_for
from dns_onnx.runtime.meters import IGNORED, Meter
from dns_onnx.runtime.metrics import Metric, aligned
from dns_onnx.teacher import Answered, Teacher, answered, labels_in

Array = NDArray[Any]
SCALE_ROWS = 32  # rows that say how large the teacher's values are
ON_SCORES = ("cross-entropy", "binary", "ctc", "kl", "auto")  # these want what an activation reads
SCORES_OF: dict[str, Kind] = {"cross-entropy": "classes", "binary": "probabilities"}  # say labels
OF_CLASSES = ("accuracy", "f1", "miou")  # metrics that compare class numbers
METRIC_OF = {"cross-entropy": "accuracy", "binary": "accuracy", "mse": "mse", "l1": "mse",
             "ctc": "ler"}  # fmt: skip


@dataclass(frozen=True)
class Objective:
    """The loss of a run, and its metric.

    heads: the ends of the model that it looks at.  by_labels: None where labels do not teach.
    by_teacher: None where the original model cannot; `share` is its part of the loss.
    said: what was chosen, in words.  open: whether the teacher's part is left to the search.
    ignore: the class number that counts nowhere.
    """

    heads: tuple[Head, ...]
    metric: Metric
    by_labels: Loss | None
    by_teacher: Loss | None
    share: float
    teacher: Teacher | None
    said: str
    open: bool = False
    ignore: int = IGNORED

    @property
    def has_labels(self) -> bool:
        """Whether labels teach, alone or beside the original model."""
        return self.by_labels is not None

    def sharing(self, share: float) -> Objective:
        """The same with another part for the original model, beside labels."""
        also = f"; the original model teaches, too (weight {share:g})" if share else ""
        return replace(self, share=share, said=f"{self.said}{also}")

    def loss(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], targets: Mapping[str, Tensor]
    ) -> Tensor:
        """The loss of a batch, a scalar.

        outputs: what the `TrainingGraph` gave for it.  inputs, targets: the batch (`to_device`).
        """
        taught = None
        if self.share and self.by_teacher is not None and self.teacher is not None:
            names = [h.value for h in self.heads]
            said = answered(targets, names)
            wanted = self.teacher(*inputs) if said is None else dict(zip(names, said, strict=True))
            taught = self.by_teacher(outputs, wanted)
        if self.by_labels is None:
            assert taught is not None
            return taught
        labelled = self.by_labels(outputs, labels_in(targets))
        return labelled if taught is None else (1 - self.share) * labelled + self.share * taught

    @torch.no_grad()
    def meter(self, model: TrainingGraph, data: Iterable[Batch], device: torch.device) -> Meter:
        """The metric's meter, which has seen the model, in evaluation mode, over batches."""
        meter = self.metric.make()
        for batch in data:
            outputs = self._read(model, batch, device)
            meter.update(outputs, self._wanted(batch, device))
        return meter

    def counted(self, model: TrainingGraph, data: Dataset, device: torch.device) -> int:
        """How many answers of these rows the metric counts as right or wrong; 0 where it does not.

        The first row speaks for all.
        """
        meter, row = self.metric.make(), data.take(np.arange(1))
        with torch.no_grad():
            meter.update(self._read(model, row, device), self._wanted(row, device))
        return len(data) * int(getattr(meter, "seen", 0))

    def _read(self, model: TrainingGraph, batch: Batch, device: torch.device) -> list[Array]:
        inputs, _ = to_device(batch, device)
        values = self.metric.reads == "values"
        return [as_array(y) for y in (model.read(*inputs) if values else model(*inputs))]

    def _wanted(self, batch: Batch, device: torch.device) -> list[Array]:
        """What the metric compares with."""
        if self.metric.against == "labels":
            return aligned(batch.targets, [h.output for h in self.heads])
        values = self.metric.reads == "values"
        said = answered(batch.targets, [h.output if values else h.value for h in self.heads])
        if said is not None:
            return said
        assert self.teacher is not None
        return self._read(self.teacher.graph, batch, device)

    def remembered(
        self, teaching: Dataset, heldout: Dataset | None, config: Config, device: torch.device
    ) -> tuple[Dataset, Dataset | None]:
        """Both, with the teacher's answers where it would be asked the same again and again."""
        if self.teacher is None or config.data.batch == 1:
            return teaching, heldout
        visits = config.train.iterations * config.data.batch
        often = self.by_teacher is not None and not config.data.pixels and visits > len(teaching)
        asked = self.metric.against == "original"
        return (
            self._with_answers(teaching, device) if often else teaching,
            self._with_answers(heldout, device) if asked and heldout is not None else heldout,
        )

    def _with_answers(self, data: Dataset, device: torch.device) -> Dataset:
        assert self.teacher is not None
        said = self.teacher.answers(data, device) if is_fixed(data) else None
        return data if said is None else Answered(data, said)

    def touched(self, model: TrainingGraph, data: Dataset, device: torch.device) -> set[str]:
        """Names of the weights that get a gradient on the first, middle or last row."""
        names = set[str]()
        held = holders(model.graph)
        for row in sorted({0, len(data) // 2, len(data) - 1}):
            inputs, targets = to_device(data.take(np.array([row])), device)
            loss = self.loss(model(*inputs), inputs, targets)
            if loss.requires_grad:
                loss.backward()
            for name, holder in held.items():
                names |= {name} if holder.weight.grad is not None else set()
                holder.weight.grad = None
        return names

    def refuse_bad_data(
        self, model: TrainingGraph, datasets: Mapping[str, Dataset | None], device: torch.device
    ) -> None:
        """Tell before the first iteration what data would break the loss or the metric.

        datasets: by the name that errors call them.
        Raises DataError.
        """
        for name, data in datasets.items():
            if data is None:
                continue
            first = data.take(np.arange(1))
            inputs, targets = to_device(first, device)
            if self.metric.against == "labels" and not targets:
                raise DataError(
                    f"{name} data: expected an array `labels` for the metric "
                    f"{self.metric.name}, got none; add class numbers [N]"
                )
            with torch.no_grad():
                outputs = model(*inputs)
            if targets:
                self._refuse_bad_labels(data, first.targets, outputs[0], f"{name} data")
            try:
                self.metric.make().update(
                    self._read(model, first, device), self._wanted(first, device)
                )
                self.loss(outputs, inputs, targets)
            except DataError as error:
                raise DataError(f"{name} data: {error}") from error

    def _refuse_bad_labels(
        self, data: Dataset, one: Mapping[str, Array], scores: Tensor, where: str
    ) -> None:
        """Class numbers must be classes of the model.

        one, scores: the targets of a row, and what the model gives for it.
        Raises DataError.
        """
        head = self.heads[0]
        if self.metric.name not in OF_CLASSES or head.kind == "probabilities" or scores.ndim < 2:
            return  # no classes, or yes or no each
        called = LABELS if LABELS in one else head.output
        maps = called in one and one[called].ndim > 1 and self.metric.name != "accuracy"
        if maps and not (is_fixed(data) and one[called].dtype.kind in "iu"):
            return  # too much to read, or another way to say it
        classes = scores.shape[head.axis] if maps else scores.flatten(1).shape[1]
        if classes > 1:
            check_labels(all_labels(data, called), classes, where, self.ignore, maps)


def prepare_objective(
    model: ModelProto, graph: fx.GraphModule, config: Config, feeding: Feeding, data: Dataset,
    device: torch.device,
) -> tuple[TrainingGraph, Objective]:  # fmt: skip
    """The graph to train and what it is trained for.

    graph: the imported model, without masks yet.  data: the teaching rows; they say whether there
        are labels, of what kind, and how large the teacher's values are.
    Raises ConfigError and DataError.
    """
    sample = data.take(np.arange(1))
    labelled = bool(sample.targets)
    share = config.distill.weight
    share = (0.0 if labelled else 1.0) if share is None else share
    if not labelled and (share < 1 or config.train.loss in ("cross-entropy", "ctc")):
        raise DataError("training data: expected an array `labels`, got none; add one, or leave "
                        "train.loss and distill.weight alone: then the model teaches")  # fmt: skip
    found = tuple(_heads(model, graph, config, sample.targets))
    names = _loss_names(config, graph, found, feeding, sample, device)
    if not all(n in ON_SCORES for n in names):
        found = tuple(replace(h, value=h.output, kind="values") for h in found)
    training = TrainingGraph(graph, found, feeding)
    by_labels = labels_loss(names[0], found, config.train.ignore_label) if share < 1 else None
    judge = _metric(config, found, names[0], sample)
    left_open = labelled and names[0] == "cross-entropy" and _is_open(config)
    taught = read_by(names[0], found)
    teacher = by_teacher = None
    if share > 0 or left_open or judge.against == "original":
        teacher = Teacher(TrainingGraph(copy.deepcopy(graph), found, feeding)).to(device)
    if (share > 0 or left_open) and teacher is not None:
        rows = np.unique(np.linspace(0, len(data) - 1, SCALE_ROWS).astype(np.int64))
        scales = teacher.scales((data.take(rows[i : i + 1]) for i in range(len(rows))), device)
        by_teacher = teacher_loss(names[1], taught, config.distill.temperature, scales)
    said = _said(names, taught, share, judge)
    return training, Objective(
        found, judge, by_labels, by_teacher, share, teacher, said, left_open,
        config.train.ignore_label,
    )  # fmt: skip


def read_by(loss: str, found: Sequence[Head]) -> tuple[Head, ...]:
    """The ends as the loss against labels reads them, where their names do not tell."""
    return tuple(replace(h, kind=SCORES_OF.get(loss, h.kind)) for h in found)


def _is_open(config: Config) -> bool:
    """Whether the settings leave it to a search how to train."""
    told = {"type", "lr"} & config.solver.model_fields_set or config.distill.model_fields_set
    return not config.has_thresholds and not told


def _heads(
    model: ModelProto, graph: fx.GraphModule, config: Config, targets: Mapping[str, Array]
) -> list[Head]:
    """The ends that were asked for; the first output for labels, all that can learn without.

    Of several outputs, an only target may name the one that it is for.
    """
    given = config.train.outputs
    if not given and not targets:
        given = attachment_points(graph)
    elif not given and LABELS not in targets:
        named = [o.name for o in model.graph.output if o.name in targets]
        given = named if len(named) == 1 else given
    return heads(model, given)


def _loss_names(
    config: Config, graph: fx.GraphModule, found: Sequence[Head], feeding: Feeding, sample: Batch,
    device: torch.device,
) -> tuple[str, str]:  # fmt: skip
    """(loss against labels, loss against the teacher)."""
    told, taught = config.train.loss, config.distill.loss
    if taught == "auto" and not sample.targets and (told in BY_TEACHER or is_entry_point(told)):
        taught = told
    if told != "auto" or not sample.targets:
        return told, taught
    labels = aligned(sample.targets, [h.output for h in found])[0]
    if found[0].kind == "probabilities":
        return "binary", taught
    if labels.dtype.kind == "f":
        _refuse_classes(labels, found[0])
        return "mse", taught
    inputs, _ = to_device(sample, device)
    with torch.no_grad():
        scores = TrainingGraph(graph, found, feeding)(*inputs)[0]
    return ("binary" if scores.numel() == labels.size else "cross-entropy"), taught


def _refuse_classes(labels: Array, head: Head) -> None:
    """Fractions teach numbers; class numbers, or one-hot rows for class scores, mean another thing.

    Raises DataError.
    """
    one_hot = labels.ndim == 2 and labels.shape[1] > 1 and labels.sum() == labels.max() == 1
    if head.kind == "classes" and (one_hot or labels.ndim == 1):
        remedy = "labels.argmax(1)" if one_hot else "labels.astype(int)"
        raise DataError(
            f"training data: labels: expected whole numbers for class scores, got {labels.dtype} "
            f"{'one-hot rows' if one_hot else list(labels.shape)}; give {remedy}, or name a loss "
            "(train.loss)"
        )


def _metric(config: Config, found: Sequence[Head], loss: str, sample: Batch) -> Metric:
    """The metric that was asked for, or the one that goes with the loss."""
    name = config.train.metric
    labels = aligned(sample.targets, [h.output for h in found])[0] if sample.targets else None
    if name == "auto" and labels is not None and loss != "auto":
        if loss not in METRIC_OF:
            raise ConfigError(f"train.metric: '{loss}' names no metric of its own; give one")
        name = METRIC_OF[loss] if labels.ndim < 3 else name
    return metric_for(name, found, labels, config.train.ignore_label)


def _said(names: tuple[str, str], found: Sequence[Head], share: float, judge: Metric) -> str:
    at = ", ".join(f"'{h.value}'" for h in found)
    parts = []
    if share < 1:
        parts.append(f"{names[0]} with labels")
    if share > 0:
        kinds = names[1] if names[1] != "auto" else "/".join(dict.fromkeys(
            {"classes": "kl", "probabilities": "binary", "values": "mse"}[h.kind] for h in found
        ))  # fmt: skip
        weight = f" (weight {share:g})" if share < 1 else ""
        parts.append(f"{kinds} with the original model as teacher{weight}")
    return f"{' and '.join(parts)}, at {at}; metric: {judge.name}"
