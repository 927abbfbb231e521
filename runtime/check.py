"""Proof that a pruned file is right, small and fast, taken where it will be used: ONNX Runtime."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from dns_onnx.converters.encodings import is_encoded
from dns_onnx.converters.encodings.functions import DOMAIN
from dns_onnx.converters.reader import read_model
from dns_onnx.errors import ModelError
from dns_onnx.runtime.batching import run, session_feeding
from dns_onnx.runtime.bench import Timing, bench
from dns_onnx.runtime.inputs import runnable_inputs
from dns_onnx.runtime.judge import Judge, Judged, Targets
from dns_onnx.runtime.library import library_available
from dns_onnx.runtime.metrics import Metric
from dns_onnx.runtime.session import session
from dns_onnx.runtime.sizes import Sizes, TensorCount, measure

Array = NDArray[Any]
Reference = Callable[[Mapping[str, Array]], Sequence[Any]]
FEW_FAR = 1e-2  # of it, that a few entries may be off where the whole is within ATOL of its norm
SELECTING = {"NonMaxSuppression", "TopK"}  # what they choose, and in which order, rounding can turn
KERNELS = {"CsrGemm", "CsrMatMul", "CsrConv"}  # the operators that the native library computes
RTOL, ATOL = 1e-3, 1e-4  # of the largest magnitude of the output, as ONNX's own backend tests use
ORIGINAL, STOCK, NATIVE = "original", "pruned, ONNX Runtime", "pruned, dns-onnx kernels"


@dataclass(frozen=True)
class OutputError:
    """How far one output of the file is from the masked training graph.  scale: its largest |y|."""

    name: str
    max_abs: float
    scale: float
    equal: bool


@dataclass(frozen=True)
class Check:
    """All that was found about a pruned file; `ok` and `problems` say whether it holds.

    outputs: against the `reference`, on `rows` rows.  metric: None where there are no data.
    tensors, sizes: entries and bytes.  timings: latencies.  words: what else is worth knowing.
    """

    outputs: list[OutputError]
    reference: str
    metric: Judged | None
    rows: int
    tensors: list[TensorCount]
    sizes: Sizes
    timings: list[Timing]
    words: list[str]
    problems: list[str]

    @property
    def ok(self) -> bool:
        return not self.problems

    @property
    def kept(self) -> int:
        return sum(t.nnz for t in self.tensors)

    @property
    def total(self) -> int:
        return sum(t.size for t in self.tensors)

    @property
    def ratio(self) -> float:
        """Parameters of the original over nonzeros of the file, biases counted in both."""
        return self.total / max(self.kept, 1)

    def to_json(self) -> dict[str, Any]:
        """The whole check as plain JSON values."""
        return {**asdict(self), "ok": self.ok, "kept": self.kept, "total": self.total,
                "ratio": self.ratio}  # fmt: skip


def check(
    original: str | Path,
    pruned: str | Path,
    data: Iterable[tuple[Mapping[str, Array], Targets]] | None = None,
    *,
    reference: Reference | None = None,
    metric: Metric | str = "auto",
    outputs: Sequence[str] = (),
    max_drop: float | None = None,
    seconds: float = 1.0,
    threads: int = 1,
) -> Check:
    """Compare a pruned file with the model it came from.

    data: batches of (inputs by name, targets by name; `labels`, an array of those, or None), read
        once; random inputs where there are none.
    reference: computes all outputs of the masked training graph in graph order; the pruned file is
        held against it output by output.  Without it, against the plain dense form of the file.
    metric: what both files are judged by; `auto` takes what the labels suggest (accuracy for class
        numbers), and without labels how far the outputs are from the original's.
    outputs: the values of the graph that the metric reads; default: the first float output, without
        labels all of them.
    max_drop: largest allowed drop of the metric, in the unit of `Metric.drop`.
    seconds: how long each contender is timed.
    Raises ModelError for files that do not run or have other inputs and outputs, DataError and
    ConfigError for data or a metric that do not fit.
    """
    before = session(original, native=False, threads=threads)
    after = session(pruned, native=False, threads=threads)
    _expect_same_interface(before, after, original, pruned)
    dense = read_model(pruned)
    batches = iter(data or ())
    first = next(batches, None)
    how = session_feeding(before)
    sample = dict(first[0]) if first is not None else how.rows(runnable_inputs(before))
    against = "the masked training graph"
    if reference is None:
        plain = session(dense.SerializeToString(), native=False, threads=threads)
        reference, against = (lambda x: run(plain, x)), "the dense form of the file"
    found = compare(after, sample, reference)
    fell, chosen = [], _selected(dense)
    if any(not o.equal and o.name in chosen for o in found):
        plain = session(dense.SerializeToString(), native=False, threads=threads)
        pairs = list(zip(found, compare(after, sample, lambda x: run(plain, x)), strict=True))
        fell = [a.name for a, b in pairs if b.equal and not a.equal and a.name in chosen]
        found = [b if a.name in fell else a for a, b in pairs]
    judged, rows = None, 0
    if first is not None:
        judge = Judge(original, pruned, metric, outputs, threads)
        for inputs, targets in itertools.chain([first], batches):
            judge.update(inputs, targets)
        judged, rows = judge.judged(), judge.rows
    sizes, tensors = measure(original, pruned, dense)
    one = how.first(sample, [i.name for i in before.get_inputs()])
    timings = _race(original, pruned, one, seconds, threads)
    problems = [
        f"output '{o.name}' differs from {against} by {o.max_abs:.3g} at scale {o.scale:.3g}"
        for o in found
        if not o.equal
    ]
    if max_drop is not None:
        problems += _missed(judged, max_drop)
    words = _in_words(sizes, timings, threads, is_encoded(_structure(pruned)))
    words += [
        f"Output '{name}' is as in the dense form of the file; what is selected there "
        f"(NonMaxSuppression, TopK) differs from {against}: scores are nearly equal."
        for name in fell
    ]
    return Check(found, against, judged, rows, tensors, sizes, timings, words, problems)


def _expect_same_interface(
    before: ort.InferenceSession,
    after: ort.InferenceSession,
    original: str | Path,
    pruned: str | Path,
) -> None:
    """Raises ModelError unless both files have the same inputs and outputs."""
    for kind in ("inputs", "outputs"):
        wanted, got = (
            {i.name: i.type for i in getattr(s, f"get_{kind}")()} for s in (before, after)
        )
        if wanted != got:
            raise ModelError(
                f"{pruned}: expected the {kind} of {original}, {wanted}, got {got}; "
                "name a model and the pruned file that was made from it"
            )


def _selected(model: onnx.ModelProto) -> set[str]:
    """Values that depend on which entries were chosen by their values, and in which order."""
    found = set[str]()
    for node in model.graph.node:
        if node.op_type in SELECTING or not found.isdisjoint(node.input):
            found |= set(node.output)
    return found


def _missed(judged: Judged | None, max_drop: float) -> list[str]:
    """What is wrong with a drop, or with there being none."""
    if judged is None:
        return ["there are no data to judge the drop of the metric on: name some"]
    if judged.drop <= max_drop + 1e-9:
        return []
    return [f"{judged.name} got worse by {judged.said[2]}, more than the {max_drop:g} allowed"]


def compare(
    sess: ort.InferenceSession, inputs: Mapping[str, Array], reference: Reference
) -> list[OutputError]:
    """Every output of the session against the reference's, on one batch."""
    wanted = list(reference(inputs))
    got = run(sess, inputs)
    return [
        _output_error(o.name, w, g) for o, w, g in zip(sess.get_outputs(), wanted, got, strict=True)
    ]


def _output_error(name: str, want: Any, got: Any) -> OutputError:
    if not isinstance(got, np.ndarray) or got.dtype.kind not in "fiub":
        same = _alike(want, got)
        return OutputError(name, 0.0 if same else float("inf"), 1.0, same)
    want = np.asarray(want)
    if want.shape != got.shape:
        return OutputError(name, float("inf"), 0.0, False)
    if got.size == 0:
        return OutputError(name, 0.0, 0.0, True)
    w, g = want.astype(np.float64), got.astype(np.float64)
    if got.dtype.kind != "f":
        return OutputError(name, float(np.abs(g - w).max()), 1.0, bool(np.array_equal(w, g)))
    finite = np.isfinite(w)
    scale = float(np.abs(w[finite]).max(initial=0.0))
    distance = float(np.abs(g - w)[finite].max(initial=0.0))
    loose = 20.0 if got.dtype == np.float16 else 1.0
    equal = np.allclose(
        g, w, rtol=RTOL * loose, atol=ATOL * loose * max(scale, 1e-6), equal_nan=True
    )
    return OutputError(name, distance, scale, bool(equal) or _close_on_the_whole(g, w, loose))


def _close_on_the_whole(got: Array, want: Array, loose: float) -> bool:
    """Whether few entries differ, and not by much: states and gates can amplify rounding there."""
    finite = np.isfinite(want)
    if not np.array_equal(got[~finite], want[~finite], equal_nan=True):
        return False
    off, size = np.abs(got - want)[finite], np.abs(want[finite])
    worst = FEW_FAR * loose * size.max(initial=0.0)
    return bool(np.linalg.norm(off) <= ATOL * loose * np.linalg.norm(size) and (off <= worst).all())


def _alike(want: Any, got: Any) -> bool:
    """Whether strings, maps and sequences are equal, numbers in them within tolerance."""
    if isinstance(want, np.ndarray) or isinstance(got, np.ndarray):
        return _alike(np.asarray(want).tolist(), np.asarray(got).tolist())
    if isinstance(want, dict) and isinstance(got, dict):
        return want.keys() == got.keys() and all(_alike(want[k], got[k]) for k in want)
    if isinstance(want, (list, tuple)) and isinstance(got, (list, tuple)):
        return len(want) == len(got) and all(map(_alike, want, got))
    if isinstance(want, float) and isinstance(got, float):
        return bool(np.isclose(got, want, rtol=RTOL, atol=ATOL, equal_nan=True))
    return bool(want == got)


def _race(
    original: str | Path, pruned: str | Path, one: Mapping[str, Array], seconds: float, threads: int
) -> list[Timing]:
    """Original and pruned in turn, and the pruned with our kernels where it has any."""
    runners: dict[str, str | Path] = {ORIGINAL: original, STOCK: pruned}
    if _has_kernels(pruned):
        runners[NATIVE] = pruned
    return bench(runners, one, seconds=seconds, threads=threads, native=[NATIVE])


def _structure(path: str | Path) -> onnx.ModelProto:
    return onnx.load(os.fspath(path), load_external_data=False)


def _has_kernels(path: str | Path) -> bool:
    nodes = _structure(path).graph.node
    return library_available() and any(n.domain == DOMAIN and n.op_type in KERNELS for n in nodes)


def _in_words(sizes: Sizes, timings: Sequence[Timing], threads: int, encoded: bool) -> list[str]:
    """What is smaller and faster where, and what is not."""
    where = f"batch of one row, {threads} thread{'s' if threads > 1 else ''}"
    words = [
        f"On disk the file is {sizes.original / sizes.file:.1f} times smaller than the original"
        if sizes.file < sizes.original
        else "On disk the file is not smaller than the original",
        f"({sizes.file:,} against {sizes.original:,} bytes; "
        f"the same weights dense and gzipped take {sizes.dense_gzip:,}).",
    ]
    lines = [" ".join(words)]
    by_name = {t.name: t for t in timings}
    stock = by_name[STOCK].ratio
    verdict = (
        "as fast as" if 0.95 <= stock <= 1.05 else "faster than" if stock > 1 else "slower than"
    )
    lines.append(
        f"In plain ONNX Runtime it is {verdict} the original "
        f"({stock:.2f} times its speed; {where})"
        + (": there the sparse weights are made dense once, at load." if encoded else ".")
    )
    if NATIVE in by_name:
        speed = by_name[NATIVE].ratio
        lines.append(
            f"With the dns-onnx kernels it runs at {speed:.2f} times the original's speed "
            f"({where})."
            + ("" if speed >= 1 else "  Here the kernels do not pay; use plain ONNX Runtime.")
        )
    else:
        lines.append(
            "The dns-onnx kernels were not timed: the file has no layer for them, the native "
            "library is not built, or the session runs on another device than the CPU."
        )
    load, before = by_name[STOCK].load_ms, by_name[ORIGINAL].load_ms
    lines.append(
        f"Loading takes {load:.1f} ms, {load / before:.1f} times as long as loading the original."
    )
    return lines
