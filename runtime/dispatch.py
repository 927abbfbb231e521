"""Dense or sparse, layer by layer, for the machine at hand.

Export chose by a cost model of common machines.  Here the machine is known.  A sparse layer whose
kernel would lose is handed back to ONNX Runtime's dense one by renaming its node to a copy of its
own function, for which no kernel is registered, so that it is folded at load; a layer that export
left dense but stored sparse becomes a sparse one where that wins.  What a layer gains alone, the
net can lose at the seams (dense nodes keep their maps in blocks, and fuse with each other), so the
result is measured against the all-dense net, and the faster one runs.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, numpy_helper

from dns_onnx.errors import ModelError
from dns_onnx.runtime.crossing import machine, recall, remember, thresholds
from dns_onnx.runtime.fuse import fuse
from dns_onnx.runtime.inputs import random_inputs, shapes_are_known
from dns_onnx.runtime.sites import (
    DEPTHWISE,
    DOMAIN,
    OPERATORS,
    STEM,
    SparseLayer,
    Tensors,
    graphs,
    positions,
    sparse_layers,
)

FOLDED = "Folded"  # suffix of the function copies
SURE = 0.15  # below this density the sparse kernel wins on every machine
SMALL = 1 << 16  # entries of a dense weight below which a layer's density tells nothing
GAIN = 0.97  # of the dense net's time, that the sparse one must stay below
_SECONDS, _ROUNDS, _MOST_ROUNDS = 1.0, 7, 200  # of measuring: at least both of the first two
_OTHER = {"Conv": "CsrConv", "Gemm": "CsrGemm", "MatMul": "CsrMatMul"}

Open = Callable[[bytes], ort.InferenceSession]


@dataclass(frozen=True)
class Choice:
    """Which form of a model runs.

    data: the model, or None where the file as it is does.  folded: sparse layers that run dense.
    unfolded: layers stored sparse before a dense node that run on a sparse kernel.
    session: already open, if the choice took a measurement.  reason: in words.
    """

    data: bytes | None
    folded: tuple[str, ...] = ()
    unfolded: tuple[str, ...] = ()
    session: ort.InferenceSession | None = None
    reason: str = ""


def choose(data: bytes, folder: Path | None, threads: int, open_: Open | None) -> Choice:
    """The fastest form of a model on this machine.

    data: serialized.  folder: where its external data lie.  threads: of the session, 0 for ONNX
    Runtime's default.  open_: makes a session like the one wanted; None forbids measuring nets.
    """
    layers, sure = _survey(data, folder) if DOMAIN.encode() in data else ([], False)
    if not layers:
        return Choice(None, reason="no sparse layer")
    wanted = _wanted(layers, threads)
    if not any(wanted):
        form = _form(data, folder, [False] * len(layers))
        folded = form.data if form.folded else None
        return Choice(folded, form.folded, reason="every layer is faster dense")
    if sure or open_ is None:
        return _chosen(_form(data, folder, wanted), "by the layers' densities")
    # a dense stem may win in the net where it loses alone: the pooling behind it is dense too
    no_stem = [w and layer.kind != STEM for w, layer in zip(wanted, layers, strict=True)]
    return _measured(data, folder, threads, [[False] * len(layers), wanted, no_stem], open_)


def _survey(data: bytes, folder: Path | None) -> tuple[list[SparseLayer], bool]:
    """The layers, and whether they are sparse enough for the whole net to win anyway."""
    model = onnx.load_from_string(data)
    layers = sparse_layers(model, Tensors(model, folder))
    rest = sum(
        math.prod(tensor.dims)
        for graph in graphs(model.graph)
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1
    )
    size = sum(layer.size for layer in layers)
    sure = all(layer.density <= SURE and layer.kind != STEM for layer in layers)
    return layers, sure and size >= max(SMALL, 10 * rest)


def _wanted(layers: Sequence[SparseLayer], threads: int) -> list[bool]:
    """For each layer whether its sparse kernel wins."""
    limits: Mapping[str, float] | None = None
    wanted = []
    for layer in layers:
        if layer.kind in (DEPTHWISE, STEM):
            wanted.append(layer.kind == STEM and layer.reader is None)
        elif layer.density <= SURE or layer.size < SMALL:
            wanted.append(layer.reader is None or layer.density <= SURE)
        else:
            limits = limits or thresholds(threads)
            wanted.append(layer.density <= limits[layer.kind])
    return wanted


@dataclass(frozen=True)
class _Form:
    data: bytes
    folded: tuple[str, ...]
    unfolded: tuple[str, ...]


def _form(data: bytes, folder: Path | None, wanted: Sequence[bool]) -> _Form:
    """The model with the wanted layers on sparse kernels, the others dense."""
    model = onnx.load_from_string(data)
    tensors = Tensors(model, folder)
    bodies = {function.name for function in model.functions if function.domain == DOMAIN}
    folded, unfolded = [], []
    for layer, wants in zip(sparse_layers(model, tensors), wanted, strict=True):
        if layer.reader is not None and wants:
            unfolded.append(layer.name)
            _unfold(layer, tensors)
        elif layer.reader is None and not wants and layer.node.op_type in bodies:
            folded.append(layer.name)
            layer.node.op_type += FOLDED
    fuse(model, tensors)
    _name_functions(model)
    return _Form(model.SerializeToString(), tuple(folded), tuple(unfolded))


def _unfold(layer: SparseLayer, tensors: Tensors) -> None:
    """Makes the plain node a sparse one; the decoder before it goes."""
    node, reader = layer.node, layer.reader
    if reader is None:
        return
    operands = [node.input[0], _gaps(layer, tensors), "", node.input[-1]]
    left = reader.op_type == "MatMul" and reader.input[0] == node.output[0]
    others = list(reader.input)
    others.remove(node.output[0])
    del reader.input[:]
    reader.input.extend([others[0], *operands, *others[1:]])
    reader.op_type = "CsrLeftMatMul" if left else _OTHER[reader.op_type]
    reader.domain = DOMAIN
    layer.graph.node.remove(node)


def _gaps(layer: SparseLayer, tensors: Tensors) -> str:
    """Name of the gaps between the weight's stored entries, made anew from where those are."""
    found = positions(layer.node, tensors)
    if found is None:
        raise ModelError(f"{layer.name}: expected constants before {layer.node.op_type}, got none")
    name = f"{layer.node.output[0]}.kernel.gaps"
    gaps = np.diff(found(), prepend=np.int64(0)).astype(np.int32)
    layer.graph.initializer.append(numpy_helper.from_array(gaps, name))
    return name


def _name_functions(model: onnx.ModelProto) -> None:
    """Bodies for the folded nodes, and none for those that kernels run."""
    used = {node.op_type for graph in graphs(model.graph) for node in graph.node}
    copies = []
    for function in list(model.functions):
        if function.domain != DOMAIN or function.name not in OPERATORS:
            continue
        if function.name + FOLDED in used:
            copy = onnx.FunctionProto()
            copy.CopyFrom(function)
            copy.name += FOLDED
            copies.append(copy)
        model.functions.remove(function)
    model.functions.extend(copies)


def _chosen(form: _Form, reason: str, session: ort.InferenceSession | None = None) -> Choice:
    return Choice(form.data, form.folded, form.unfolded, session, reason)


def _measured(
    data: bytes,
    folder: Path | None,
    threads: int,
    candidates: Sequence[Sequence[bool]],
    open_: Open,
) -> Choice:
    """The fastest candidate, measured once for each model; the first unless another gains enough.

    candidates: for each layer whether it runs sparse; the first is all dense.
    """
    forms = {form.data: form for form in (_form(data, folder, c) for c in candidates)}
    key = f"{machine(threads)}|{hashlib.blake2b(data, digest_size=16).hexdigest()}"
    ratios = (recall(key) or {}).get("ratios")
    sessions: list[ort.InferenceSession] = []
    if not isinstance(ratios, list) or len(ratios) != len(forms):
        sessions = [open_(form) for form in forms]
        # on one thread the CPU's own time, which other programs do not lengthen
        ratios = _ratios(sessions, time.process_time if threads == 1 else time.perf_counter)
        if ratios is None:  # then the layers' own figures are all there is
            return _chosen(list(forms.values())[-1], "by the layers' densities")
        remember(key, {"ratios": ratios})
    best = min(range(len(ratios)), key=ratios.__getitem__)
    best = best if ratios[best] <= GAIN else 0
    reason = f"{ratios[best]:.2f} of the dense net's time" if best else "the dense net is as fast"
    return _chosen(list(forms.values())[best], reason, sessions[best] if sessions else None)


def _ratios(
    sessions: Sequence[ort.InferenceSession], clock: Callable[[], float]
) -> list[float] | None:
    """Times over the first session's, in turn; None where no inputs can be made up."""
    if not shapes_are_known(sessions[0]):
        return None
    feeds = random_inputs(sessions[0])
    best = [math.inf] * len(sessions)
    rounds, end = 0, time.perf_counter() + _SECONDS
    try:
        while rounds < _ROUNDS or (time.perf_counter() < end and rounds < _MOST_ROUNDS):
            for i, session in enumerate(sessions):
                start = clock()
                session.run(None, feeds)
                best[i] = min(best[i], clock() - start)
            rounds += 1
    except Exception:  # made-up inputs may be none that the model takes
        return None
    return [seconds / best[0] for seconds in best]
