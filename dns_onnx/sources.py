"""Where a DATA argument finds its rows: npz, mnist, folders, Python entry points."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl

import numpy as np
import onnx
from onnx import numpy_helper

from dns_onnx.config import Preprocess, parse_config
from dns_onnx.data import LABELS, Array, ArrayDataset, Dataset, LazyDataset, by_name
from dns_onnx.drawn import ROWS, DrawnDataset
from dns_onnx.entry import is_entry_point, load_entry_point
from dns_onnx.errors import DataError
from dns_onnx.images import ImageFolder, image_files
from dns_onnx.preprocess import InputSpec

RANDOM = "random"
DRAWING = ("rows", "low", "high")
IMAGES_IN_MEMORY = 2 << 30  # bytes of decoded images that are kept rather than decoded again
MEMORY_LIMIT = 8 << 30  # bytes that an iterable may fill before we ask for random access


def load(spec: str, specs: Sequence[InputSpec], preprocess: Preprocess, role: str) -> Dataset:
    """The dataset that a DATA argument names.

    spec: `file.npz`, `mnist:DIR`, a folder of npz shards, ONNX `test_data_set_*` or images,
        `package.module:function`, or `random`; `?scale=..&mean=..&std=..&layout=..` after it says
        the preprocessing, `split=train|test` which part of mnist, and `rows`, `low`, `high` what is
        drawn at random.
    role: "train", "val" or "eval"; mnist takes its training or its test images by it, and has none
        for "val" unless `split` says so.
    Raises DataError.
    """
    place, options = _parted(spec)
    part = options.pop("split", {"train": "train", "eval": "test"}.get(role))
    drawing = {key: options.pop(key) for key in DRAWING if key in options}
    preprocess = _override(preprocess, options, spec)
    if place == RANDOM:
        return _drawn(specs, preprocess, drawing, seed=("train", "eval", "val").index(role))
    if place.startswith("mnist:"):
        if part is None:
            raise DataError(
                f"{spec}: expected ?split=train or ?split=test; without --val some of the training "
                "images are held out"
            )
        return _mnist(Path(place.removeprefix("mnist:")), part, specs, preprocess)
    path = Path(place)
    if path.is_dir():
        return _folder(path, specs, preprocess)
    if path.suffix == ".npz":
        arrays = _npz(path)
    elif is_entry_point(place):
        return _entry_point(place, specs, preprocess)
    else:
        raise DataError(
            f"{spec}: expected an .npz file, a folder, mnist:DIR, package.module:function or "
            f"{RANDOM}; "
            f"{'no such file or folder' if not path.exists() else 'got another kind of file'}"
        )
    return _dataset(arrays, specs, preprocess, str(path))


def is_random(given: Any) -> bool:
    """Whether a DATA argument asks for random inputs."""
    return isinstance(given, str) and _parted(given)[0] == RANDOM


def preprocess_of(spec: str, preprocess: Preprocess) -> Preprocess:
    """The preprocessing that a DATA argument asks for, over the one given."""
    options = _parted(spec)[1]
    for key in ("split", *DRAWING):
        options.pop(key, None)
    return _override(preprocess, options, spec)


def _parted(spec: str) -> tuple[str, dict[str, str]]:
    """(place, options) of a DATA argument."""
    place, _, query = spec.partition("?")
    return place, dict(parse_qsl(query, keep_blank_values=True))


def _override(preprocess: Preprocess, options: Mapping[str, str], where: str) -> Preprocess:
    """Preprocessing with the options of a DATA argument over it."""
    if not options:
        return preprocess
    values: dict[str, Any] = preprocess.model_dump()
    for key, text in options.items():
        try:
            values[key] = _numbers(text) if key in ("mean", "std", "scale") else text
        except ValueError:
            raise DataError(f"{where}: {key}: expected numbers, got '{text}'") from None
    return parse_config({"preprocess": values}, where).preprocess


def _numbers(text: str) -> float | tuple[float, ...]:
    numbers = tuple(float(n) for n in text.split(","))
    return numbers[0] if len(numbers) == 1 else numbers


def _npz(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {k: file[k] for k in file.files}
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except Exception as error:
        raise DataError(f"{path}: expected an .npz archive of plain arrays, got: {error}") from None


def _drawn(
    specs: Sequence[InputSpec], preprocess: Preprocess, options: Mapping[str, str], seed: int
) -> Dataset:
    try:
        rows = int(options.get("rows", ROWS))
        low, high = (float(options[k]) if k in options else None for k in ("low", "high"))
    except ValueError:
        raise DataError(f"{RANDOM}: expected numbers for {DRAWING}, got {dict(options)}") from None
    return DrawnDataset(specs, preprocess, rows=rows, seed=seed, low=low, high=high)


def _folder(path: Path, specs: Sequence[InputSpec], preprocess: Preprocess) -> Dataset:
    """The rows of a folder of npz shards, ONNX test data sets, or images, in order of name."""
    shards = [_npz(f) for f in sorted(path.glob("*.npz"))]
    if shards:
        return _dataset(_concatenated(shards, str(path)), specs, preprocess, str(path))
    sets = [_test_data_set(d, specs) for d in sorted(path.glob("test_data_set_*"))]
    if sets:
        return _from_sets(sets, specs, preprocess, str(path))
    if not image_files(path):
        raise DataError(
            f"{path}: expected .npz files, test_data_set_* folders or images, got none of them"
        )
    images = ImageFolder(path, specs[0])
    lazy = LazyDataset(specs, images, preprocess, str(path))
    size = sum(a.nbytes for a in images[0].values()) * len(images)
    if images.size is None or size > IMAGES_IN_MEMORY:
        return lazy
    rows = [images[i] for i in range(len(images))]
    return _dataset({k: np.stack([r[k] for r in rows]) for k in rows[0]}, specs, preprocess,
                    str(path))  # fmt: skip


def _from_sets(
    sets: list[dict[str, Array]], specs: Sequence[InputSpec], preprocess: Preprocess, where: str
) -> Dataset:
    """Test data sets as rows; they may differ in length (read with a batch of one)."""
    rows = []
    for arrays in sets:
        ready = {s.name: arrays[s.name][None] if s.axis is None
                 else np.moveaxis(arrays[s.name], s.axis, 0) for s in specs}  # fmt: skip
        count = max(len(a) for a in ready.values())
        rows += [{n: a[0 if len(a) == 1 else i] for n, a in ready.items()} for i in range(count)]
    if all(len({r[s.name].shape for r in rows}) == 1 for s in specs):
        arrays = {s.name: np.stack([r[s.name] for r in rows]) for s in specs}
        return ArrayDataset(specs, arrays, None, preprocess, where)
    return LazyDataset(specs, rows, preprocess, where)


def _concatenated(shards: Sequence[Mapping[str, Array]], where: str) -> dict[str, Array]:
    names = sorted(shards[0])
    for shard in shards:
        if sorted(shard) != names:
            raise DataError(f"{where}: expected arrays {names} in every part, got {sorted(shard)}")
    return {k: np.concatenate([np.asarray(s[k]) for s in shards]) for k in names}


def _test_data_set(folder: Path, specs: Sequence[InputSpec]) -> dict[str, Array]:
    arrays = {}
    for i, spec in enumerate(specs):
        file = folder / f"input_{i}.pb"
        try:
            tensor = onnx.load_tensor(file)
            arrays[spec.name] = numpy_helper.to_array(tensor)
        except Exception as error:
            raise DataError(f"{file}: expected an ONNX tensor, got: {error}") from None
    return arrays


def _mnist(folder: Path, part: str, specs: Sequence[InputSpec], preprocess: Preprocess) -> Dataset:
    prefixes = {"train": "train", "test": "t10k"}
    if part not in prefixes:
        raise DataError(f"mnist:{folder}: split: expected train or test, got '{part}'")
    images = _idx(folder, f"{prefixes[part]}-images-idx3-ubyte")[:, None]
    labels = _idx(folder, f"{prefixes[part]}-labels-idx1-ubyte").astype(np.int64)
    return ArrayDataset(specs, {specs[0].name: images}, labels, preprocess, f"mnist:{folder}")


def _idx(folder: Path, name: str) -> Array:
    """An idx file of bytes, plain or gzipped.  Source: yann.lecun.com/exdb/mnist, file format."""
    plain, zipped = folder / name, folder / f"{name}.gz"
    try:
        data = plain.read_bytes() if plain.exists() else gzip.decompress(zipped.read_bytes())
        shape = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(data[3])]
        return np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)
    except FileNotFoundError:
        raise DataError(f"{folder}: expected {name} or {name}.gz there") from None
    except Exception as error:
        raise DataError(f"{folder / name}: expected an idx file of bytes, got: {error}") from None


def _entry_point(name: str, specs: Sequence[InputSpec], preprocess: Preprocess) -> Dataset:
    """The dataset or iterable of batches that a Python function returns."""
    target = load_entry_point(name, DataError)
    try:
        rows = isinstance(target, type) or not hasattr(target, "__getitem__")
        source = target() if callable(target) and rows else target
    except Exception as error:  # the user's own code: whatever it raises is told, not traced
        raise DataError(f"{name}: raised {type(error).__name__}: {error}") from error
    return wrap(source, specs, preprocess, name)


def wrap(source: Any, specs: Sequence[InputSpec], preprocess: Preprocess, name: str) -> Dataset:
    """A torch Dataset, or an iterable of batches, as a dataset of ours (which stays as it is).

    Raises DataError for anything else.
    """
    if hasattr(source, "take"):
        return cast(Dataset, source)
    indexable = hasattr(source, "__getitem__") and hasattr(source, "__len__")
    if indexable and not isinstance(source, list):
        return LazyDataset(specs, source, preprocess, name)
    if not isinstance(source, Iterable):
        raise DataError(f"{name}: expected a torch Dataset or batches, got {source!r}")
    return _from_batches(source, specs, preprocess, name)


def _from_batches(
    source: Iterable[Any], specs: Sequence[InputSpec], preprocess: Preprocess, where: str
) -> Dataset:
    parts, filled = [], 0
    for batch in source:
        part = {k: np.asarray(v) for k, v in by_name(batch, specs, where).items()}
        filled += sum(a.nbytes for a in part.values())
        if filled > MEMORY_LIMIT:
            raise DataError(
                f"{where}: expected batches of at most {MEMORY_LIMIT >> 30} GiB in all, got more; "
                "return an object with len() and [i] (a torch Dataset), which is read row by row"
            )
        parts.append(part)
    if not parts:
        raise DataError(f"{where}: expected at least one batch, got none")
    arrays = _concatenated(parts, where)
    return _dataset(arrays, specs, preprocess, where)


def _dataset(
    arrays: dict[str, Array], specs: Sequence[InputSpec], preprocess: Preprocess, where: str
) -> ArrayDataset:
    """Arrays divided into inputs and targets."""
    names = {s.name for s in specs}
    if len(specs) == 1 and len(arrays.keys() - {LABELS}) == 1:
        names = arrays.keys() - {LABELS}  # the only array can be nothing but the only input
    # text beside the inputs is no target (names, say), unless it is called one
    targets = {n: a for n, a in arrays.items()
               if n not in names and (n == LABELS or a.dtype.kind in "fiub")}  # fmt: skip
    inputs = {n: a for n, a in arrays.items() if n in names}
    found = inputs if len(inputs) == len(specs) else arrays  # all that there are, for the error
    return ArrayDataset(specs, found, targets, preprocess, where)
