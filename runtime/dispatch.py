"""Dense or sparse, layer by layer, for the machine at hand.

Export chose by a cost model of common machines.  Here the machine is known: each layer whose kernel
would lose runs dense, and each that export left dense but stored sparse becomes a sparse one where
that wins.  What a layer gains alone, the net can lose at the seams (dense nodes keep their maps in
blocks, and fuse with each other), so the result is measured in turn with the all-dense net, and
runs only where it gains.
"""

from __future__ import annotations

import hashlib
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime as ort
from onnx import TensorProto

from dns_onnx.runtime.crossing import machine, recall, remember, thresholds
from dns_onnx.runtime.forms import Form, Forms
from dns_onnx.runtime.inputs import Array, random_inputs, shapes_are_known
from dns_onnx.runtime.sites import DEPTHWISE, DOMAIN, STEM, SparseLayer, graphs
from dns_onnx.runtime.substitute import may_substitute, substitute

SURE = 0.15  # below this density the sparse kernel wins on every machine
SMALL = 1 << 16  # entries of a dense weight below which a layer's density tells nothing
GAIN = 0.97  # of the dense net's time, that the sparse one must stay below
MARGIN = 0.75  # of the crossing density, where the net itself cannot be measured
_SECONDS, _ROUNDS, _MOST_ROUNDS = 1.0, 9, 100  # of measuring: at least both of the first two
_TURN = 2e-3  # seconds of a session's turn at least
_REST = 0.1  # seconds for which a session's threads wait awake for more work, twice what was seen

Open = Callable[[bytes], ort.InferenceSession]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Choice:
    """Which form of a model runs.

    data: the model, or None where the file as it is does.  folded: sparse layers that run dense.
    unfolded: layers stored sparse before a dense node that run on a sparse kernel.
    substituted: standard nodes on kernels of ours.  reason: in words.
    """

    data: bytes | None
    folded: tuple[str, ...] = ()
    unfolded: tuple[str, ...] = ()
    substituted: tuple[str, ...] = ()
    reason: str = ""


def choose(
    data: bytes, folder: Path | None, threads: int, open_: Open | None, *, substitutes: bool = True
) -> Choice:
    """The fastest form of a model on this machine.

    data: serialized.  folder: where its external data lie.  threads: of the session, 0 for ONNX
    Runtime's default.  open_: makes a session like the one wanted; None forbids measuring nets.
    substitutes: whether standard nodes may run on kernels of ours (substitute.py).
    """
    forms = Forms(data, folder, substitutes=substitutes) if DOMAIN.encode() in data else None
    if forms is None or not forms.layers:
        return _without_sparse(data, folder, substitutes)
    layers = forms.layers
    wanted = _wanted(layers, threads)
    if not any(wanted):
        return _chosen(forms.form(wanted), "every layer is faster dense")
    if _surely_wins(data, layers):
        return _chosen(forms.form(wanted), "by the layers' densities")
    return _measured(data, forms, _candidates(layers, wanted), threads, open_)


def _without_sparse(data: bytes, folder: Path | None, substitutes: bool) -> Choice:
    """A model without sparse layers: the file as it is, but for its substitutes."""
    reason = "no sparse layer"
    if not (substitutes and may_substitute(data)):
        return Choice(None, reason=reason)
    model = onnx.load_from_string(data)
    names = substitute(model, folder)
    form = model.SerializeToString() if names else None
    return Choice(form, substituted=names, reason=reason)


def _wanted(layers: Sequence[SparseLayer], threads: int, margin: float = 1.0) -> list[bool]:
    """For each layer whether its sparse kernel wins; margin: on the crossing densities."""
    limits: Mapping[str, float] | None = None
    wanted = []
    for layer in layers:
        if layer.kind in (DEPTHWISE, STEM):
            wanted.append(layer.kind == STEM and layer.reader is None)
        elif layer.density <= SURE or layer.size < SMALL:
            wanted.append(layer.reader is None or layer.density <= SURE)
        else:
            limits = limits or thresholds(threads)
            wanted.append(layer.density <= margin * limits[layer.kind])
    return wanted


def _surely_wins(data: bytes, layers: Sequence[SparseLayer]) -> bool:
    """Whether the layers are sparse enough, and enough of the net, for it to win anyway."""
    if any(layer.density > SURE or layer.kind == STEM for layer in layers):
        return False
    rest = sum(
        math.prod(tensor.dims)
        for graph in graphs(onnx.load_from_string(data).graph)
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1
    )
    return bool(sum(layer.size for layer in layers) >= max(SMALL, 10 * rest))


def _candidates(layers: Sequence[SparseLayer], wanted: list[bool]) -> list[list[bool]]:
    """What the net may win with where it loses with all the layers that win alone."""

    def without(*kinds: str) -> list[bool]:
        return [w and layer.kind not in kinds for w, layer in zip(wanted, layers, strict=True)]

    # behind a dense first layer the pooling is in blocks too; dense convolutions pass blocks on
    found = [wanted, without(STEM), without(STEM, "conv", "pointwise")]
    return [c for i, c in enumerate(found) if any(c) and c not in found[:i]]


def _chosen(form: Form, reason: str) -> Choice:
    return Choice(form.data, form.folded, form.unfolded, form.substituted, reason)


def _measured(
    data: bytes, forms: Forms, candidates: list[list[bool]], threads: int, open_: Open | None
) -> Choice:
    """The candidate that gains most on the dense net, or the dense one if none gains enough.

    Measured once for each model.
    """
    layers = forms.layers
    key = f"{machine(threads)}|{hashlib.blake2b(data, digest_size=16).hexdigest()}"
    ratios = (recall(key) or {}).get("ratios")
    if not isinstance(ratios, list) or len(ratios) != len(candidates):
        ratios = None if open_ is None else _compare(forms, candidates, threads, open_)
        if ratios is None:  # then the layers' own figures are all there is
            return _chosen(forms.form(_wanted(layers, threads, MARGIN)), "by the layers' densities")
        remember(key, {"ratios": ratios})
    best = min(range(len(ratios)), key=ratios.__getitem__)
    if ratios[best] > GAIN:
        return _chosen(forms.form([False] * len(layers)), "the dense net is as fast")
    return _chosen(forms.form(candidates[best]), f"{ratios[best]:.2f} of the dense net's time")


def _compare(
    forms: Forms, candidates: Sequence[Sequence[bool]], threads: int, open_: Open
) -> list[float] | None:
    """Each candidate's time over the dense net's; None where no inputs can be made up."""
    dense = open_(forms.form([False] * len(forms.layers)).data)
    if not shapes_are_known(dense):
        return None
    feeds = random_inputs(dense)
    # on one thread the CPU's own time, which other programs do not lengthen
    clock = time.process_time if threads == 1 else time.perf_counter
    rest = 0.0 if threads == 1 else _REST
    try:
        return [_ratio(dense, open_(forms.form(c).data), feeds, clock, rest) for c in candidates]
    except Exception:  # made-up inputs may be none that the model takes
        return None


def _ratio(
    dense: ort.InferenceSession,
    sparse: ort.InferenceSession,
    feeds: Mapping[str, Array],
    clock: Clock,
    rest: float,
) -> float:
    """The sparse session's time over the dense one's, measured in turn.

    The median of the pairs, but 1 where fewer than three quarters of them show a gain: the dense
    one wins ties.  With a rest before each turn, until the other session's threads sleep: of the
    best turns, for on a busy machine threads that wake may find one core for all of them.
    """
    start = clock()
    dense.run(None, feeds)
    runs = max(1, math.ceil(_TURN / max(clock() - start, 1e-6)))
    best = dict.fromkeys(map(id, (dense, sparse)), math.inf)
    ratios: list[float] = []
    end = time.perf_counter() + _SECONDS
    while len(ratios) < _ROUNDS or (time.perf_counter() < end and len(ratios) < _MOST_ROUNDS):
        pair = (dense, sparse) if len(ratios) % 2 else (sparse, dense)  # what ran before tells
        times = {id(session): _turn(session, feeds, clock, runs, rest) for session in pair}
        ratios.append(times[id(sparse)] / max(times[id(dense)], 1e-9))
        best = {which: min(seconds, times[which]) for which, seconds in best.items()}
    if rest:
        return best[id(sparse)] / max(best[id(dense)], 1e-9)
    upper = statistics.quantiles(ratios, n=4)[2]
    return statistics.median(ratios) if upper < 1 else 1.0


def _turn(
    session: ort.InferenceSession,
    feeds: Mapping[str, Array],
    clock: Clock,
    runs: int,
    rest: float,
) -> float:
    """Seconds of `runs` runs, after a rest and one that warms the caches."""
    time.sleep(rest)
    session.run(None, feeds)
    start = clock()
    for _ in range(runs):
        session.run(None, feeds)
    return clock() - start
