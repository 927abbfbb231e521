"""What training minimises: distances of the model's values from labels, or from a teacher's.

A loss takes the values at the heads of a `TrainingGraph` and the targets by name, and returns a
scalar.  The rows of every value are in front.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dns_onnx.converters.heads import Head
from dns_onnx.entry import is_entry_point, load_entry_point
from dns_onnx.errors import ConfigError, DataError
from dns_onnx.runtime.metrics import aligned

Targets = Mapping[str, Tensor]
Loss = Callable[[Sequence[Tensor], Targets], Tensor]
BY_LABELS = "cross-entropy, binary, mse, l1, ctc"
BY_TEACHER = "kl, binary, mse, l1, cosine"


def labels_loss(name: str, heads: Sequence[Head], ignore: int) -> Loss:
    """The loss of a name (BY_LABELS), or of a `package.module:function`, against labels.

    heads: the ends of the model; only mse, l1 and functions take several.  ignore: the class
    number that cross-entropy leaves out.
    Raises ConfigError, naming what there is.
    """
    if is_entry_point(name):
        return _of_function(name)
    known: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "cross-entropy": lambda y, t: cross_entropy(y, t, heads[0].axis, ignore),
        "binary": binary,
        "mse": lambda y, t: F.mse_loss(y.float(), _like(t, y)),
        "l1": lambda y, t: F.l1_loss(y.float(), _like(t, y)),
    }
    if name == "ctc":
        return ctc
    if name not in known:
        raise ConfigError(
            f"train.loss: expected {BY_LABELS} or package.module:function, got '{name}'"
        )
    names, one = [h.output for h in heads], known[name]

    def loss(outputs: Sequence[Tensor], targets: Targets) -> Tensor:
        wanted = aligned(targets, names)
        return _summed([one(y, t) for y, t in zip(outputs, wanted, strict=True)])

    return loss


def teacher_loss(
    name: str, heads: Sequence[Head], temperature: float, scales: Mapping[str, float]
) -> Loss:
    """The loss of a name (BY_TEACHER), or of a function, against the teacher's values by name.

    name: `auto` takes kl for class scores, binary for yes-or-no scores, mse for other numbers.
    scales: the root mean square of the teacher's values; mse and l1 count differences in it, so
        that outputs of all sizes weigh the same.
    Raises ConfigError, naming what there is.
    """
    if is_entry_point(name):
        return _of_function(name)
    known: dict[str, Callable[[Tensor, Tensor, Head], Tensor]] = {
        "kl": lambda y, t, h: divergence(y, t, h.axis, temperature),
        "binary": lambda y, t, h: binary_divergence(y, t, temperature),
        "mse": lambda y, t, h: F.mse_loss(y.float(), t.float()) / scales[h.value] ** 2,
        "l1": lambda y, t, h: F.l1_loss(y.float(), t.float()) / scales[h.value],
        "cosine": lambda y, t, h: cosine(y, t),
    }
    if name not in (*known, "auto"):
        raise ConfigError(
            f"distill.loss: expected auto, {BY_TEACHER} or package.module:function, got '{name}'"
        )
    auto = {"classes": "kl", "probabilities": "binary", "values": "mse"}
    chosen = [known[auto[h.kind] if name == "auto" else name] for h in heads]

    def loss(outputs: Sequence[Tensor], targets: Targets) -> Tensor:
        return _summed([
            one(y, targets[h.value], h) for one, y, h in zip(chosen, outputs, heads, strict=True)
        ])  # fmt: skip

    return loss


def _summed(terms: list[Tensor]) -> Tensor:
    return terms[0] if len(terms) == 1 else torch.stack(terms).sum()


# ------------------------------------------------------------------ against labels


def cross_entropy(scores: Tensor, labels: Tensor, axis: int = 1, ignore: int = -100) -> Tensor:
    """Mean cross-entropy of class scores (logits) with class numbers.

    scores: [N, C] with any trailing ones and labels [N], or [N, C, ...] (classes along `axis`) and
    label maps [N, ...].
    """
    if scores.ndim < 2:
        raise ConfigError(
            f"train.output: expected class scores [N, C], got {list(scores.shape)}; "
            "name another value of the graph"
        )
    scores = scores.flatten(1) if labels.ndim == 1 else scores.movedim(axis, 1)
    return F.cross_entropy(scores.float(), labels.long(), ignore_index=ignore)


def binary(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean binary cross-entropy of scores (before a Sigmoid) with labels from 0 to 1."""
    return F.binary_cross_entropy_with_logits(scores.float(), _like(labels, scores))


def ctc(outputs: Sequence[Tensor], targets: Targets) -> Tensor:
    """Connectionist temporal classification: scores [N, T, C] with labels [N, L], blank 0.

    The array `label_lengths` [N] says how many labels of each row count (default: those above 0),
    `input_lengths` [N] how many of the T steps do (default: all).
    """
    scores, labels = outputs[0], targets.get("labels")
    if scores.ndim != 3 or labels is None or labels.ndim != 2:
        raise DataError(
            f"train.loss ctc: expected scores [N, T, C] and labels [N, L], got "
            f"{list(scores.shape)} and {None if labels is None else list(labels.shape)}"
        )
    rows, steps = scores.shape[:2]
    full = torch.full((rows,), steps, device=scores.device)
    return F.ctc_loss(
        scores.float().log_softmax(-1).transpose(0, 1), labels.long(),
        targets.get("input_lengths", full).long(),
        targets.get("label_lengths", (labels > 0).sum(1)).long(), zero_infinity=True,
    )  # fmt: skip


def _like(target: Tensor, output: Tensor) -> Tensor:
    """The target in the output's shape, where that only adds, drops or merges axes."""
    if target.numel() != output.numel():
        raise DataError(
            f"labels: expected the shape {list(output.shape)} of the output, "
            f"got {list(target.shape)}"
        )
    return target.reshape(output.shape).float()


def _of_function(name: str) -> Loss:
    """A function of the user's, called with (outputs, targets).

    outputs: one tensor, or a list.  targets: the only one as it is, several by name.
    """
    function = load_entry_point(name, ConfigError)

    def loss(outputs: Sequence[Tensor], targets: Targets) -> Tensor:
        several = len(targets) > 1
        found: Any = function(
            outputs[0] if len(outputs) == 1 else list(outputs),
            dict(targets) if several else next(iter(targets.values())),
        )
        if not isinstance(found, Tensor) or found.numel() != 1:
            raise ConfigError(f"{name}: expected a loss of one number in a tensor, got {found!r}")
        return found.reshape(())

    return loss


# ------------------------------------------------------------------ against a teacher


def divergence(scores: Tensor, wanted: Tensor, axis: int, temperature: float) -> Tensor:
    """Mean Kullback-Leibler divergence from a teacher's class scores, softened, times T^2.

    Source: Hinton, Vinyals, Dean 2015, section 2.
    """
    student, teacher = (
        x.float().movedim(axis, -1).div(temperature).log_softmax(-1).flatten(0, -2)
        for x in (scores, wanted)
    )
    loss = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return loss * temperature**2


def binary_divergence(scores: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """The same for yes-or-no scores before a Sigmoid."""
    student, teacher = (x.float() / temperature for x in (scores, wanted))
    soft = teacher.sigmoid()
    cross = F.binary_cross_entropy_with_logits(student, soft)
    own = F.binary_cross_entropy_with_logits(teacher, soft)
    return (cross - own) * temperature**2


def cosine(values: Tensor, wanted: Tensor) -> Tensor:
    """1 minus the cosine between the rows of both, averaged."""
    a, b = values.float().flatten(1), wanted.float().flatten(1)
    return 1 - F.cosine_similarity(a, b).mean()
