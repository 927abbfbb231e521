"""Latency and load time of models, measured in turn in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray

from dns_onnx.errors import DataError
from dns_onnx.runtime.inputs import random_inputs, runnable_inputs
from dns_onnx.runtime.session import session

__all__ = ["Timing", "bench", "random_inputs"]

Array = NDArray[Any]
LOADS, SLOW_LOAD = 5, 0.2  # how often a model is loaded, unless it takes longer (seconds)


@dataclass(frozen=True)
class Timing:
    """One contender.  Times in milliseconds: medians, and the quartiles of the latency.

    load_ms: the least of LOADS times (one, where it takes longer than SLOW_LOAD), as a machine that
    does something else now and then only adds to it; NaN for an open session.
    ratio: latency of the first contender over this one's; above 1 this one is faster.
    """

    name: str
    load_ms: float
    latency_ms: float
    low_ms: float
    high_ms: float
    ratio: float
    runs: int


def bench(
    models: Mapping[str, str | Path | bytes | ort.InferenceSession],
    inputs: Mapping[str, Array] | None = None,
    *,
    seconds: float = 2.0,
    threads: int = 1,
    rows: int = 1,
    native: Sequence[str] | None = None,
) -> list[Timing]:
    """Time every model in turn, round after round, so that a slow moment of the machine hits all.

    models: by the name to show.  inputs: the same for all; random ones of the first model's shapes
    by default.  seconds: for each model.  native: names that run with the dns-onnx kernels
    (default: all that can); one that cannot have them is left out.
    Returns one Timing a model, in order.
    Raises DataError where a model does not run on these inputs.
    """
    sessions: dict[str, ort.InferenceSession] = {}
    load: dict[str, list[float]] = {}
    for turn in range(LOADS):
        for name, model in models.items():
            if isinstance(model, ort.InferenceSession):
                sessions[name], load[name] = model, [float("nan")]
                continue
            if turn and (name not in sessions or load[name][0] > 1e3 * SLOW_LOAD):
                continue
            use = native is None or name in native
            start = time.perf_counter()
            opened = session(model, native=use, threads=threads)
            load.setdefault(name, []).append(1e3 * (time.perf_counter() - start))
            if native is None or not use or opened.dns_onnx.native:
                sessions[name] = opened  # else its time would bear a wrong name
    if inputs is None:
        inputs = runnable_inputs(next(iter(sessions.values())), rows)
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for sess in sessions.values():
        for _ in range(3):
            _timed(sess, inputs)
    deadline = time.perf_counter() + seconds * len(sessions)
    while time.perf_counter() < deadline or min(len(t) for t in times.values()) < 5:
        for name, sess in sessions.items():
            times[name].append(_timed(sess, inputs))
    first = statistics.median(next(iter(times.values())))
    return [_timing(name, min(load[name]), t, first) for name, t in times.items()]


def _timed(sess: ort.InferenceSession, inputs: Mapping[str, Array]) -> float:
    start = time.perf_counter()
    try:
        sess.run(None, dict(inputs))
    except Exception as error:  # ONNX Runtime's exceptions share no base of their own
        shapes = {name: list(x.shape) for name, x in inputs.items()}
        raise DataError(f"a model does not run on inputs {shapes}: {error}") from error
    return 1e3 * (time.perf_counter() - start)


def _timing(name: str, load: float, times: list[float], first: float) -> Timing:
    low, middle, high = statistics.quantiles(times, n=4)
    return Timing(name, load, middle, low, high, first / middle, len(times))
