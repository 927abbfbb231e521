"""Who is measured, and how: runs in turn, peers in processes of their own.

A peer needs packages of its own, so it lives in an environment of its own and is driven over
pipes: this file is what its interpreter runs.  Its imports are therefore local.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Run = Callable[[], Any]

SEED = 0
# a contender's turn: runs that warm the caches, then counted ones, at least so many and so long
WARMING, COUNTED, TURN_SECONDS = 2, 3, 2e-3
REST_SECONDS = 0.1  # before a turn: threads of an ONNX Runtime session wait awake for 0.05 s
LEAST_ROUNDS = 3
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def keep_cores(options: Any, threads: int) -> None:
    """Gives each thread of an ONNX Runtime session a core, the calling thread among them.

    Where other programs keep the cores from being idle, the scheduler wakes two threads on one core
    and leaves them there, to take turns, for longer than a contender's turn lasts.
    options: a session's.
    """
    if not CORES:
        return
    alone = threads == 1 or threads > len(CORES)
    os.sched_setaffinity(0, CORES if alone else CORES[:1])
    if not alone:
        others = ";".join(str(core + 1) for core in CORES[1:threads])  # it counts from 1
        options.add_session_config_entry("session.intra_op_thread_affinities", others)


def ort_runner(model: bytes | str, x: Array, threads: int, library: str | None) -> Run:
    """ONNX Runtime as it is, with the library if one is named."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    keep_cores(options, threads)
    if library is not None:
        options.register_custom_ops_library(library)
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: x})[0]


def openvino_runner(path: str, x: Array, threads: int) -> Run:
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(
        path, "CPU", {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    )
    request = compiled.create_infer_request()
    return lambda: request.infer([x])


def deepsparse_runner(path: str, x: Array, threads: int) -> Run:
    os.environ["NM_BIND_THREADS_TO_CORES"] = "1"  # as keep_cores() does
    from deepsparse import Engine

    engine = Engine(model=path, batch_size=x.shape[0], num_cores=threads)
    return lambda: engine.run([x])


PEERS: dict[str, Callable[[str, Array, int], Run]] = {
    "openvino": openvino_runner,
    "deepsparse": deepsparse_runner,
}


def sample(shape: Sequence[int]) -> Array:
    """The input that every contender gets."""
    x: Array = np.random.default_rng(SEED).standard_normal(shape).astype(np.float32)
    return x


def turn(run: Run, clock: str) -> float:
    """Milliseconds of the median run of one turn, its first ones left out."""
    times: list[float] = []
    for _ in range(WARMING):
        run()
    while len(times) < COUNTED or sum(times) < TURN_SECONDS:
        start = CLOCKS[clock]()
        run()
        times.append(CLOCKS[clock]() - start)
    return statistics.median(times) * 1e3


Rounds = dict[str, list[float]]


def in_turn(turns: Mapping[str, Callable[[], float]], seconds: float, rest: float = 0.0) -> Rounds:
    """Milliseconds of each contender in each round, until the time is up.

    Each round has an order of its own, so that none always follows the same one.
    rest: seconds before each turn.
    """
    times: Rounds = {name: [] for name in turns}
    order, rng = list(turns), random.Random(SEED)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[order[0]]) < LEAST_ROUNDS:
        rng.shuffle(order)
        for name in order:
            time.sleep(rest)
            times[name].append(turns[name]())
    return times


def times_as_fast(times: Rounds, who: str, peer: str) -> tuple[float, float, float]:
    """How many times as fast `who` is as `peer`: quartiles of the ratios within each round.

    What slows the machine for a while slows both, and leaves their ratio alone.
    """
    ratios = [b / a for a, b in zip(times[who], times[peer], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return low, middle, high


class Child:
    """A peer in an environment of its own, driven over pipes."""

    def __init__(self, peer: str, python: str) -> None:
        self.process = subprocess.Popen(
            [python, __file__, peer],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def load(self, path: str, shape: Sequence[int], threads: int) -> None:
        self._ask(model=path, x=list(shape), threads=threads)

    def turn(self, clock: str) -> float:
        return self._ask(clock=clock)

    def _ask(self, **job: Any) -> float:
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("the peer's process has no pipes")
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:  # the peers greet on standard output
            if line.startswith("ms "):
                return float(line.split()[1])
        raise RuntimeError("the peer's process ended; run contenders.py by hand to see why")


def serve(peer: str) -> None:
    """The child process: a job a line in, milliseconds a line out."""
    run: Run | None = None
    for line in sys.stdin:
        job = json.loads(line)
        answer = 0.0
        if "model" in job:
            run = None  # frees the last one first
            run = PEERS[peer](job["model"], sample(job["x"]), job["threads"])
        elif run is not None:
            answer = turn(run, job["clock"])
        sys.stderr.flush()
        print("ms", answer, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=PEERS)
    serve(parser.parse_args().peer)
