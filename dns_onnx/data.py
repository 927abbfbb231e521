"""Rows of training and evaluation data: checked, parted, cut into batches.

Everything here is NumPy, so that the torch graph and ONNX Runtime are fed the same arrays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dns_onnx.config import Preprocess
from dns_onnx.errors import DataError
from dns_onnx.preprocess import InputSpec, prepare

Array = NDArray[Any]
LABELS = "labels"


@dataclass(frozen=True)
class Batch:
    """Model inputs by name, [N, ...] each, and the targets that came with them, [N, ...] too.

    An input that is whole is [1, ...] where one value serves all rows.
    """

    inputs: dict[str, Array]
    targets: dict[str, Array]

    def __len__(self) -> int:
        return max(len(x) for x in self.inputs.values())

    @property
    def labels(self) -> Array | None:
        """The target of that name, where there is one."""
        return self.targets.get(LABELS)


class Dataset(Protocol):
    """Random access to rows; `take` returns them ready for the model."""

    def __len__(self) -> int: ...

    def take(self, rows: NDArray[np.int64]) -> Batch:
        """The given rows, preprocessed, in the model's dtypes and shapes."""
        ...


class ArrayDataset:
    """Rows of arrays that are in memory (or memory-mapped).

    arrays: one a model input, each [N, ...]; a whole input may also be given once, as it is.
    targets: what the model should say, by name, each [N, ...]; an array is the `labels`.
    """

    def __init__(
        self, specs: Sequence[InputSpec], arrays: Mapping[str, Array],
        targets: Mapping[str, Array] | Array | None, preprocess: Preprocess, where: str,
    ) -> None:  # fmt: skip
        if len(specs) == len(arrays) == 1:  # one array for one input: the name says nothing more
            arrays = dict(zip([specs[0].name], arrays.values(), strict=True))
        if any(s.name not in arrays for s in specs):
            raise DataError(
                f"{where}: expected arrays named {[s.name for s in specs]}, got {sorted(arrays)}; "
                "name each array after a model input"
            )
        if targets is None or not isinstance(targets, Mapping):
            targets = {} if targets is None else {LABELS: targets}
        self.specs = list(specs)
        self.arrays = {s.name: _as_rows(arrays[s.name], s, where) for s in specs}
        self.targets = {n: _numbers(t, n, where) for n, t in targets.items()}
        lengths = {n: len(x) for n, x in {**self.arrays, **self.targets}.items()}
        self.rows = max(lengths.values())
        uneven = [s.name for s in specs if s.axis is not None or lengths[s.name] != 1]
        if len({lengths[n] for n in [*uneven, *targets]}) > 1 or 0 in lengths.values():
            raise DataError(f"{where}: expected equally many rows, at least one, got {lengths}")
        self.preprocess = preprocess
        self.where = where
        for spec in specs:
            _refuse_nonfinite(self.arrays[spec.name], f"{where}: '{spec.name}'")

    def __len__(self) -> int:
        return self.rows

    def take(self, rows: NDArray[np.int64]) -> Batch:
        raw = {s.name: self._rows_of(s, rows) for s in self.specs}
        targets = {n: t[rows] for n, t in self.targets.items()}
        return Batch(prepare(raw, self.specs, self.preprocess, self.where), targets)

    def _rows_of(self, spec: InputSpec, rows: NDArray[np.int64]) -> Array:
        array = self.arrays[spec.name]
        return array if spec.axis is None and len(array) == 1 else array[rows]


class LazyDataset:
    """Rows of anything with `len` and `[i]` (a torch Dataset), read when they are wanted.

    A row is a mapping with the model's input names and the targets, or a tuple in graph-input order
    with the label last.
    """

    def __init__(
        self, specs: Sequence[InputSpec], source: Any, preprocess: Preprocess, where: str
    ) -> None:
        self.specs, self.source, self.preprocess, self.where = specs, source, preprocess, where
        if len(source) == 0:
            raise DataError(f"{where}: expected at least one row, got none")

    def __len__(self) -> int:
        return len(self.source)

    def take(self, rows: NDArray[np.int64]) -> Batch:
        columns = [by_name(self.source[int(r)], self.specs, self.where) for r in rows]
        raw = {k: _stacked([np.asarray(c[k]) for c in columns], k, self.where) for k in columns[0]}
        wanted = {s.name for s in self.specs}
        targets = {n: raw.pop(n) for n in list(raw) if n not in wanted}
        for spec in self.specs:
            _refuse_nonfinite(raw[spec.name], f"{self.where}: '{spec.name}'", rows)
            if spec.axis is None:
                raw[spec.name] = _shared(raw[spec.name])
        return Batch(prepare(raw, self.specs, self.preprocess, self.where), targets)


def _as_rows(array: Array, spec: InputSpec, where: str) -> Array:
    """An input's array with rows in front; [1, ...] where one value serves all of them."""
    array = np.asarray(array)
    if spec.axis is not None:
        return _numbers(array, spec.name, where)
    once = array.ndim == len(spec.row)
    rows = _numbers(array[None] if once else array, spec.name, where)
    return rows if once else _shared(rows)


def _numbers(array: Array, name: str, where: str) -> Array:
    """Rows of numbers, or DataError."""
    array = np.asarray(array)
    if array.ndim == 0 or array.dtype.kind not in "fiub":
        raise DataError(
            f"{where}: '{name}': expected rows of numbers, "
            f"got {array.dtype} of shape {list(array.shape)}"
        )
    return array


def _shared(rows: Array) -> Array:
    """The first row alone, where all others are the same."""
    return rows[:1] if len(rows) > 1 and bool((rows == rows[:1]).all()) else rows


def _stacked(values: list[Array], name: str, where: str) -> Array:
    shapes = {v.shape for v in values}
    if len(shapes) > 1:
        raise DataError(
            f"{where}: '{name}': expected rows of one shape in a batch, got "
            f"{sorted(map(list, shapes))[:4]}; set data.batch = 1, or pad them"
        )
    return np.stack(values)


@dataclass(frozen=True)
class Subset:
    """Some rows of another dataset."""

    base: Dataset
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: NDArray[np.int64]) -> Batch:
        return self.base.take(self.rows[rows])


def split(data: Dataset, holdout: float, seed: int) -> tuple[Dataset, Dataset | None]:
    """(teaching rows, held-out rows), drawn by `seed`.

    holdout: a fraction below 1, or a number of rows.
    """
    count = round(holdout * len(data)) if holdout < 1 else int(holdout)
    if count == 0:
        return data, None
    if count >= len(data):
        raise DataError(f"holdout: expected fewer than the {len(data)} training rows, got {count}")
    order = np.random.default_rng([seed, 0x5117]).permutation(len(data))
    return Subset(data, np.sort(order[count:])), Subset(data, np.sort(order[:count]))


def batch_rows(rows: int, size: int, iteration: int, seed: int | None) -> NDArray[np.int64]:
    """Row numbers of an iteration's batch.

    seed: None reads the rows in order, again and again; a number draws a new order each epoch.
    The batch is a function of its arguments alone, so that there is no position to lose.
    """
    flat = np.arange(iteration * size, (iteration + 1) * size)
    if seed is None:
        return flat % rows
    epoch = flat // rows
    order = np.empty(size, np.int64)
    for e in np.unique(epoch):
        here = epoch == e
        order[here] = _permutation(rows, seed, int(e))[flat[here] % rows]
    return order


_LAST_ORDERS: dict[tuple[int, int, int], NDArray[np.int64]] = {}


def _permutation(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of an epoch; the two latest are kept."""
    key = (rows, seed, epoch)
    if key not in _LAST_ORDERS:
        while len(_LAST_ORDERS) > 1:
            _LAST_ORDERS.pop(next(iter(_LAST_ORDERS)))
        _LAST_ORDERS[key] = np.random.default_rng([seed, 0, epoch]).permutation(rows)
    return _LAST_ORDERS[key]


def batches(data: Dataset, size: int, limit: int | None = None) -> Iterator[Batch]:
    """All rows in order (the first `limit` of them), `size` at a time; the last may be smaller."""
    stop = len(data) if limit is None else min(limit, len(data))
    for start in range(0, stop, size):
        yield data.take(np.arange(start, min(start + size, stop)))


def _refuse_nonfinite(x: Array, where: str, rows: NDArray[np.int64] | None = None) -> None:
    """NaN and infinity in data are an error that names the first bad row."""
    if x.dtype.kind != "f":
        return
    step = max(1, (16 << 20) // max(x[:1].nbytes, 1))  # 16 MiB at a time: x may be memory-mapped
    for start in range(0, len(x), step):
        bad = ~np.isfinite(x[start : start + step])
        if bad.any():
            row = start + int(np.argwhere(bad)[0][0])
            row = row if rows is None else int(rows[row])
            raise DataError(
                f"{where}: expected finite numbers, got NaN or infinity in row {row}; "
                "clean or drop that row"
            )


def check_labels(
    labels: Array | None, classes: int, where: str, ignore: int, maps: bool = False
) -> None:
    """Labels must be whole numbers from 0 to classes - 1, or the one that is ignored.

    maps: of any shape, one for each place.
    Raises DataError, naming the first label that is not.
    """
    if labels is None:
        raise DataError(f"{where}: expected an array `{LABELS}`, got none; add class numbers [N]")
    if (labels.ndim != 1 and not maps) or labels.dtype.kind not in "iub":
        raise DataError(
            f"{where}: labels: expected whole numbers of shape [N], "
            f"got {labels.dtype} {list(labels.shape)}"
        )
    bad = np.argwhere((labels != ignore) & ((labels < 0) | (labels >= classes)))
    if len(bad):
        raise DataError(
            f"{where}: labels: expected 0 to {classes - 1} (the model has {classes} classes), "
            f"got {labels[tuple(bad[0])]} in row {bad[0][0]}; train.ignore_label names the one "
            "that counts nowhere"
        )


def all_labels(data: Dataset, name: str = LABELS) -> Array | None:
    """The labels of every row [N], or another target of this name; None where the data have none.

    Only lazily read data are read for it.
    """
    if isinstance(data, Subset):
        base = all_labels(data.base, name)
        return None if base is None else base[data.rows]
    if isinstance(data, ArrayDataset):
        return data.targets.get(name)
    parts = [batch.targets.get(name) for batch in batches(data, 256)]
    return (
        np.concatenate([p for p in parts if p is not None])
        if all(p is not None for p in parts)
        else None
    )


def by_name(row: Any, specs: Sequence[InputSpec], where: str) -> dict[str, Any]:
    """A row or batch, given as mapping or tuple, as a mapping with the model's names."""
    if isinstance(row, Mapping):
        missing = [s.name for s in specs if s.name not in row]
        if missing:
            raise DataError(f"{where}: expected the keys {missing}, got {sorted(map(str, row))}")
        return dict(row)
    values = list(row) if isinstance(row, (tuple, list)) else [row]
    names = [s.name for s in specs]
    if len(values) == len(names) + 1:
        names.append(LABELS)
    if len(values) != len(names):
        raise DataError(
            f"{where}: expected {len(specs)} inputs {[s.name for s in specs]} and a label, "
            f"got {len(values)} values"
        )
    return dict(zip(names, values, strict=True))
