"""Import damaged models by the hundred thousand: `python -m tests.fuzz.loop --rounds 100000`.

Each round damages one model and imports it in a worker process with a limit on its memory and on
the time of a round.  What a worker dies of, hangs in, or raises besides DnsOnnxError is printed
with the round that shows it: `--only ROUND` repeats it, in this process and without limits.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import torch
from onnx import ModelProto

from dns_onnx.converters.importer import import_model
from dns_onnx.converters.reader import read_model
from dns_onnx.errors import DnsOnnxError

from .models import built, official, real
from .mutations import damage, damage_bytes

Corpus = list[tuple[str, ModelProto]]
BATCH = 500  # rounds that one worker lives


class Outside(Exception):
    """A file outside the model's folder was opened."""


def damaged(corpus: Corpus, number: int) -> tuple[str, bytes]:
    """The model of a round: its origin and its bytes."""
    name, model = corpus[number * 7919 % len(corpus)]
    if number % 4 == 0:
        return name, damage_bytes(model.SerializeToString(), number)
    return name, damage(model, number)


def sandbox(root: Path) -> Path:
    """A folder for the model, with data beside it and a secret outside."""
    folder = root / "model"
    (folder / "folder").mkdir(parents=True, exist_ok=True)
    (folder / "w.bin").write_bytes(bytes(4096))
    (root / "secret.bin").write_bytes(bytes(65536))
    link = folder / "link.bin"
    if not link.is_symlink():
        link.symlink_to(root / "secret.bin")
    return folder


def watch(root: Path) -> None:
    """Raise Outside as soon as Python opens one of the files that no model may read."""
    forbidden = {os.path.realpath(root / "secret.bin"), "/etc/passwd", "/dev/zero"}

    def hook(event: str, args: tuple) -> None:
        if event == "open" and isinstance(args[0], str):
            path = os.path.realpath(args[0].rstrip("\0").split("\0")[0])
            if path in forbidden:
                raise Outside(path)

    sys.addaudithook(hook)


def attempt(corpus: Corpus, number: int, folder: Path) -> str:
    """Import the model of a round from a file; what it raised, or "imported"."""
    _, data = damaged(corpus, number)
    path = folder / "model.onnx"
    path.write_bytes(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read_model(path)
            import_model(path)
    except DnsOnnxError as error:
        for cause in (error.__cause__, error.__context__):
            if isinstance(cause, (Outside, MemoryError)):
                raise cause from error
        return type(error).__name__
    return "imported"


def work(corpus: Corpus, numbers: range, root: Path, pipe: int, limits: tuple[int, float]) -> None:
    """A worker: rounds one after another; says each one's number before it and its end after."""
    folder = sandbox(root)
    watch(root)
    memory, seconds = limits
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + memory, size + memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the default ends the process, in C++ too
    for number in numbers:
        os.write(pipe, f"start {number}\n".encode())
        signal.setitimer(signal.ITIMER_REAL, seconds)
        begin = time.perf_counter()
        try:
            told = attempt(corpus, number, folder)
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            name = corpus[number * 7919 % len(corpus)][0]
            text = " ".join(str(error).split())[:200]
            told = (
                f"RAISED {type(error).__name__} at {where.filename}:{where.lineno} ({name}) {text}"
            )
        signal.setitimer(signal.ITIMER_REAL, 0)
        took = time.perf_counter() - begin
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if peak > grown + memory // 2:
            told += f" MEMORY {(peak - grown) >> 20} MiB"
        grown = max(grown, peak)
        slow = f" SLOW {took:.1f} s" if took > seconds / 2 else ""
        os.write(pipe, f"end {number} {told}{slow}\n".encode())


def supervise(corpus: Corpus, numbers: range, root: Path, limits: tuple[int, float]) -> Counter:
    """Workers over the rounds; findings are printed, all ends are counted."""
    ends: Counter = Counter()
    at = numbers.start
    while at < numbers.stop:
        until = min(at + BATCH, numbers.stop)
        reading, writing = os.pipe()
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            os.close(reading)
            faulthandler.disable()
            work(corpus, range(at, until), root, writing, limits)
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "r", errors="replace") as lines:
            for line in lines:
                kind, number, *rest = line.split(" ", 2)
                at = int(number) + (kind == "end")
                if kind == "end":
                    told = rest[0].strip()
                    ends[told.split(" ")[0]] += 1
                    if " " in told:
                        print(f"round {number}: {told}", flush=True)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            ended = signal.Signals(os.WTERMSIG(status)).name
            ends[ended] += 1
            name = corpus[at * 7919 % len(corpus)][0]
            print(f"round {at}: worker ended by {ended} ({name})", flush=True)
            at += 1
        elif os.WEXITSTATUS(status):
            ends["exit"] += 1
            print(f"round {at}: worker exited with {os.WEXITSTATUS(status)}", flush=True)
            at += 1
    return ends


def main() -> None:
    """Run the rounds that the command line asks for, and print how they ended."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    parser.add_argument("--only", type=int, help="repeat one round and show what it raises")
    parser.add_argument("--memory", type=int, default=2, help="GiB that a round may take")
    parser.add_argument("--seconds", type=float, default=20, help="time that a round may take")
    options = parser.parse_args()
    torch.set_num_threads(1)
    importlib.import_module("torch._dynamo")  # operators import it late: not in a round's time
    corpus = [*built() * 20, *real() * 5, *official()]
    with tempfile.TemporaryDirectory() as root:
        if options.only is not None:
            name, data = damaged(corpus, options.only)
            print(name, len(data), "bytes")
            path = sandbox(Path(root)) / "model.onnx"
            path.write_bytes(data)
            import_model(path)
            return
        numbers = range(options.first, options.first + options.rounds)
        begin = time.perf_counter()
        limits = (options.memory << 30, options.seconds)
        ends = supervise(corpus, numbers, Path(root), limits)
    print(f"{sum(ends.values())} rounds in {time.perf_counter() - begin:.0f} s: {dict(ends)}")
    if any(kind not in ("imported", "ModelError", "UnsupportedOperatorError") for kind in ends):
        sys.exit(1)


if __name__ == "__main__":
    main()
