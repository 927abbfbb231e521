"""Metrics on their way: objects that take in outputs and targets, batch by batch, in NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from dns_onnx.errors import ConfigError, DataError

Array = NDArray[Any]
IGNORED = -100  # the label that counts nowhere unless another is named, as in PyTorch


class Meter(Protocol):
    """A metric on its way: fed batch by batch, read at the end."""

    def update(self, outputs: Sequence[Array], targets: Sequence[Array]) -> None:
        """Take in a batch: the model's outputs [N, ...] and a target for each."""
        ...

    def value(self) -> float:
        """The metric over all that was taken in."""
        ...


@runtime_checkable
class Mergeable(Meter, Protocol):
    """A meter that can take in what another of its kind has seen."""

    def merge(self, other: Self) -> None:
        """As if the other's batches had come here, too."""
        ...


# ------------------------------------------------------------------ classes


def predicted(output: Array, axis: int, threshold: float = 0.0) -> Array:
    """Class numbers: where the highest score lies; for a single score, whether it says yes.

    output: scores with classes along `axis`, [N, C] with any trailing ones, or class numbers.
    """
    if output.dtype.kind in "iub":
        return output
    flat = _flat(output)
    if flat.ndim == 1 or flat.shape[axis] == 1:
        return (flat.squeeze(axis if flat.ndim > 1 else ()) > threshold).astype(np.int64)
    return np.asarray(flat.argmax(axis))


def _flat(output: Array) -> Array:
    """[N, C] for [N, C, 1, 1] and the like."""
    if output.ndim > 2 and set(output.shape[2:]) == {1}:
        return output.reshape(output.shape[:2])
    return output


def _class_numbers(labels: Array, output: Array, axis: int, ignore: int) -> Array:
    """Labels as int64, IGNORED where they do not count, checked against the scores they are for.

    Raises DataError.
    """
    flat, made = _flat(output), output.dtype.kind in "iub"  # made: the model gives class numbers
    single = not made and (flat.ndim == 1 or flat.shape[axis] == 1)
    shape = flat.shape if made or flat.ndim == 1 else tuple(np.delete(flat.shape, axis))
    if single and labels.size == flat.size:
        labels = labels.reshape(shape)
        if labels.dtype.kind == "f":  # yes and no as 1.0 and 0.0
            labels = (labels > 0.5).astype(np.int64)
    if labels.dtype.kind not in "iub" or labels.shape != shape:
        wanted = ", ".join(["N", *map(str, shape[1:])])
        raise DataError(
            f"labels: expected class numbers of shape [{wanted}], "
            f"got {labels.dtype} {list(labels.shape)}"
        )
    numbers = labels.astype(np.int64)
    numbers = np.where(numbers == ignore, IGNORED, numbers)
    classes = 2 if single else math.inf if made else flat.shape[axis]
    counted = numbers[numbers != IGNORED]
    if counted.size and not 0 <= counted.min() <= counted.max() < classes:
        raise DataError(
            f"labels: expected 0 to {classes - 1} (the model has {classes} classes), "
            f"got {counted.min()} to {counted.max()}"
        )
    return numbers


class Accuracy:
    """Fraction of labels that are among the k highest scores."""

    def __init__(
        self, k: int = 1, axis: int = 1, ignore: int = IGNORED, threshold: float = 0.0
    ) -> None:
        self.k, self.axis, self.ignore, self.threshold = k, axis, ignore, threshold
        self.right = self.seen = 0

    def update(self, outputs: Sequence[Array], targets: Sequence[Array]) -> None:
        output = outputs[0]
        labels = _class_numbers(targets[0], output, self.axis, self.ignore)
        counts = labels != IGNORED
        if self.k == 1:
            hit = predicted(output, self.axis, self.threshold) == labels
        else:
            scores = np.moveaxis(_flat(output), self.axis, -1)
            k = min(self.k, scores.shape[-1])
            best = np.argpartition(-scores, k - 1, axis=-1)[..., :k]
            hit = (best == labels[..., None]).any(-1)
        self.right += int((hit & counts).sum())
        self.seen += int(counts.sum())

    def merge(self, other: Self) -> None:
        self.right += other.right
        self.seen += other.seen

    def value(self) -> float:
        return self.right / max(self.seen, 1)


class _Confusion:
    """Counts of (label, prediction) pairs over all batches."""

    def __init__(self, axis: int = 1, threshold: float = 0.0, ignore: int = IGNORED) -> None:
        self.axis, self.threshold, self.ignore = axis, threshold, ignore
        self.counts = np.zeros((0, 0), np.int64)
        self.single = False

    def update(self, outputs: Sequence[Array], targets: Sequence[Array]) -> None:
        output = outputs[0]
        labels = _class_numbers(targets[0], output, self.axis, self.ignore)
        guess = predicted(output, self.axis, self.threshold)
        flat = _flat(output)
        self.single = flat.ndim == 1 or flat.shape[self.axis] == 1
        kept = labels != IGNORED
        self._grow(2 if self.single else flat.shape[self.axis])
        np.add.at(self.counts, (labels[kept], guess[kept]), 1)

    def merge(self, other: Self) -> None:
        self._grow(len(other.counts))
        self.counts[: len(other.counts), : len(other.counts)] += other.counts
        self.single |= other.single

    def _grow(self, size: int) -> None:
        """To so many classes, where there are fewer."""
        if size > len(self.counts):
            grown = np.zeros((size, size), np.int64)
            grown[: len(self.counts), : len(self.counts)] = self.counts
            self.counts = grown

    def _of_each(self, weight: float) -> Array:
        """Hits / (hits + weight * misses) of each class that occurs."""
        hits = np.diag(self.counts).astype(np.float64)
        misses = self.counts.sum(0) + self.counts.sum(1) - 2 * hits
        occurs = hits + misses > 0
        return np.asarray((hits / np.where(occurs, hits + weight * misses, 1))[occurs])


class F1(_Confusion):
    """F1 of the class 1 for single scores, the mean over the classes that occur otherwise."""

    def value(self) -> float:
        if self.single:
            hits = float(self.counts[1, 1])
            missed = float(self.counts[0, 1] + self.counts[1, 0])
            return hits / (hits + 0.5 * missed) if hits + missed else 1.0
        return float(self._of_each(0.5).mean()) if self.counts.any() else 0.0


class MeanIou(_Confusion):
    """Intersection over union, the mean over the classes that occur."""

    def value(self) -> float:
        return float(self._of_each(1.0).mean()) if self.counts.any() else 0.0


class Agreement:
    """Fraction of places where two models put the same class first."""

    def __init__(self, axis: int = 1, threshold: float = 0.0) -> None:
        self.axis, self.threshold = axis, threshold
        self.same = self.seen = 0

    def update(self, outputs: Sequence[Array], targets: Sequence[Array]) -> None:
        for output, target in zip(outputs, targets, strict=True):
            a, b = (predicted(x, self.axis, self.threshold) for x in (output, target))
            self.same += int((a == b).sum())
            self.seen += a.size

    def merge(self, other: Self) -> None:
        self.same += other.same
        self.seen += other.seen

    def value(self) -> float:
        return self.same / max(self.seen, 1)


# ------------------------------------------------------------------ numbers


def _differences(output: Array, target: Array) -> tuple[Array, Array]:
    """(output - target, target), [N, values] in float64."""
    if output.size != target.size:
        raise DataError(
            f"targets: expected the output's shape {list(output.shape)}, got {list(target.shape)}"
        )
    rows = len(output) if output.ndim else 1
    wanted = target.astype(np.float64).reshape(rows, -1)
    return output.astype(np.float64).reshape(rows, -1) - wanted, wanted


class MeanSquaredError:
    """Mean of (output - target)^2 over all numbers."""

    def __init__(self) -> None:
        self.sum, self.count = 0.0, 0

    def update(self, outputs: Sequence[Array], targets: Sequence[Array]) -> None:
        for output, target in zip(outputs, targets, strict=True):
            difference, _ = _differences(output, target)
            self.sum += float((difference**2).sum())
            self.count += difference.size

    def merge(self, other: Self) -> None:
        self.sum += other.sum
        self.count += other.count

    def value(self) -> float:
        return self.sum / max(self.count, 1)


class Psnr:
    """Peak signal-to-noise ratio in dB, the mean over rows.

    The peak is the range of all targets, so that images of any scale can be judged.
    """

    def __init__(self) -> None:
        self.decibels, self.rows = 0.0, 0
        self.low, self.high = math.inf, -math.inf

    def update(self, outputs: Sequence[Array], targets: Sequence[Array]) -> None:
        for output, target in zip(outputs, targets, strict=True):
            difference, wanted = _differences(output, target)
            errors = np.maximum((difference**2).mean(1), 1e-20)
            self.decibels -= float(10 * np.log10(errors).sum())
            self.rows += len(errors)
            self.low = min(self.low, float(wanted.min()))
            self.high = max(self.high, float(wanted.max()))

    def merge(self, other: Self) -> None:
        self.decibels += other.decibels
        self.rows += other.rows
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    def value(self) -> float:
        if not self.rows:
            return 0.0
        return self.decibels / self.rows + 20 * math.log10(max(self.high - self.low, 1e-10))


class RelativeError:
    """||y - y0|| / ||y0|| over all rows, of the output where it is largest.

    Numbers that are not finite in y0 do not count.
    """

    def __init__(self) -> None:
        self.off: dict[int, float] = {}
        self.size: dict[int, float] = {}

    def update(self, outputs: Sequence[Array], targets: Sequence[Array]) -> None:
        for i, (output, target) in enumerate(zip(outputs, targets, strict=True)):
            difference, wanted = _differences(output, target)
            finite = np.isfinite(wanted)
            self.off[i] = self.off.get(i, 0.0) + float((difference[finite] ** 2).sum())
            self.size[i] = self.size.get(i, 0.0) + float((wanted[finite] ** 2).sum())

    def merge(self, other: Self) -> None:
        for i in other.off:
            self.off[i] = self.off.get(i, 0.0) + other.off[i]
            self.size[i] = self.size.get(i, 0.0) + other.size[i]

    def value(self) -> float:
        return max((_share(self.off[i], self.size[i]) for i in self.off), default=0.0)


def _share(off: float, size: float) -> float:
    if size == 0:
        return 0.0 if off == 0 else math.inf
    return math.sqrt(off / size)


class Averaged:
    """The mean of a user's function over batches, each counted by its rows."""

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        self.function = function
        self.sum, self.rows = 0.0, 0

    def update(self, outputs: Sequence[Array], targets: Sequence[Array]) -> None:
        try:
            one = len(outputs) == 1
            found = self.function(*((outputs[0], targets[0]) if one else (outputs, targets)))
            self.sum += float(found) * len(outputs[0])
        except Exception as error:  # the user's own code: whatever it raises is told, not traced
            raise ConfigError(f"metric: {type(error).__name__}: {error}") from error
        self.rows += len(outputs[0])

    def merge(self, other: Self) -> None:
        self.sum += other.sum
        self.rows += other.rows

    def value(self) -> float:
        return self.sum / max(self.rows, 1)


class LabelErrorRate:
    """Edits from the best path to the labels, over the number of labels (CTC, blank 0).

    outputs: scores [N, T, C].  targets: labels [N, L], filled up with values below 1.
    """

    def __init__(self) -> None:
        self.edits = self.labels = 0

    def update(self, outputs: Sequence[Array], targets: Sequence[Array]) -> None:
        if outputs[0].ndim != 3 or targets[0].ndim != 2:
            raise DataError(
                f"labels: expected [N, L] for scores [N, T, C], got {list(targets[0].shape)} for "
                f"{list(outputs[0].shape)}"
            )
        for path, labels in zip(outputs[0].argmax(-1), targets[0], strict=True):
            first = np.concatenate([[True], path[1:] != path[:-1]])
            wanted = labels[labels > 0].tolist()
            self.edits += _edits(path[first & (path != 0)].tolist(), wanted)
            self.labels += len(wanted)

    def merge(self, other: Self) -> None:
        self.edits += other.edits
        self.labels += other.labels

    def value(self) -> float:
        return self.edits / max(self.labels, 1)


def _edits(a: list[int], b: list[int]) -> int:
    """Levenshtein distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]
