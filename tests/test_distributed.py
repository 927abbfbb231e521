"""Several processes are one run: the same masks everywhere, and those of a single process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from dns_onnx import checkpoint, distributed
from dns_onnx.errors import ConfigError

WORKER = Path(__file__).with_name("worker.py")
CONFIG = """
[data]
batch = 16
holdout = 0.2
[train]
iterations = 150
eval_every = 50
log_every = 25
checkpoint_seconds = 0.2
[solver]
lr = 0.02
policy = "fixed"
[surgery]
c_rate = 0.8
iter_stop = 120
gamma = 1e-3
"""


def environment(**more: str) -> dict[str, str]:
    root = str(WORKER.parent.parent)
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root, **more}


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def run(folder: Path, out: str, ranks: int, *more: str) -> None:
    """The worker in `ranks` processes, to its end."""
    port = free_port()
    children = [
        subprocess.Popen(
            [sys.executable, WORKER, folder, out, *more],
            env=environment(RANK=str(r), LOCAL_RANK=str(r), WORLD_SIZE=str(ranks),
                            MASTER_ADDR="127.0.0.1", MASTER_PORT=port),
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        )
        for r in range(ranks)
    ]  # fmt: skip
    for child in children:
        said = child.communicate(timeout=300)[1]
        assert child.returncode == 0, said


@pytest.mark.slow
@pytest.mark.parametrize("net", ["small", "images"])
@pytest.mark.parametrize("shard", [False, True], ids=["DistributedDataParallel", "FSDP2"])
def test_two_processes_are_one_run(shard: bool, net: str, request: pytest.FixtureRequest) -> None:
    small = request.getfixturevalue(net)
    (small / "config.toml").write_text(CONFIG)
    run(small, "one.onnx", 1)
    if shard:
        (small / "config.toml").write_text(CONFIG.replace("[train]", "[train]\nshard = true"))
    run(small, "two.onnx", 2)
    one, first, second = (
        json.loads((small / f"{name}.json").read_text())
        for name in ("one.onnx.0", "two.onnx.0", "two.onnx.1")
    )
    assert len(one) == 150
    assert len(set(one)) > 30, "masks that never change prove nothing"
    assert first == second, "the ranks' masks differ"
    assert first == one, "the masks differ from a single process's"
    states = [checkpoint.latest(small / f"{name}.run").tensors for name in ("one", "two")]
    for name, weight in states[0].items():
        if name.startswith("weight."):
            np.testing.assert_allclose(states[1][name], weight, atol=1e-6, rtol=0)
    assert not (small / "two.onnx.1").exists()
    logs = [(small / f"{name}.run" / "log.jsonl").read_text().splitlines()
            for name in ("one", "two")]  # fmt: skip
    for a, b in zip(*(map(json.loads, log) for log in logs), strict=True):
        assert a["layers"] == b["layers"]
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


def torchrun(folder: Path, out: str, *more: str) -> subprocess.Popen:
    """The command line under torchrun, two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
               "2", "-m", "dns_onnx", "compress", "net.onnx", "-o", out, "--train", "train.npz",
               "--config", "config.toml", *more]  # fmt: skip
    with (folder / f"{out}.txt").open("w") as said:
        return subprocess.Popen(command, cwd=folder, env=environment(), stdout=said, stderr=said)


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["false", "true"], ids=["DistributedDataParallel", "FSDP2"])
def test_all_stop_together_and_go_on_bit_by_bit(small: Path, shard: str) -> None:
    longer = f"iterations = 1000\nshard = {shard}"
    (small / "config.toml").write_text(CONFIG.replace("iterations = 150", longer))
    whole = torchrun(small, "whole.onnx")
    assert whole.wait(300) == 0, (small / "whole.onnx.txt").read_text()
    cut = torchrun(small, "cut.onnx")
    deadline = time.monotonic() + 120
    while not list((small / "cut.run").glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    cut.send_signal(signal.SIGTERM)
    assert cut.wait(120) != 0
    said = (small / "cut.onnx.txt").read_text()
    assert "go on with --resume" in said
    at = checkpoint.latest(small / "cut.run").iteration
    assert 0 < at < 1000
    assert not (small / "cut.onnx").exists()
    again = torchrun(small, "cut.onnx", "--resume")
    assert again.wait(300) == 0, (small / "cut.onnx.txt").read_text()
    assert f"Resumed at iteration {at}" in (small / "cut.onnx.txt").read_text()
    assert (small / "cut.onnx").read_bytes() == (small / "whole.onnx").read_bytes()


SEARCH = """
[data]
batch = 16
holdout = 0.2
[train]
iterations = 60
log_every = 20
checkpoint_seconds = 0.1
[solver]
lr = 0.02
[target]
max_drop = 2.0
growth = 2.0
trials = 4  # one cut, and three that train
"""


def decisions(run_dir: Path) -> list[dict[str, object]]:
    """What a search decided, as it stands in trials.jsonl."""
    rows = map(json.loads, (run_dir / "trials.jsonl").read_text().splitlines())
    return [{k: row[k] for k in ("trial", "plan", "kept", "accepted", "layers")} for row in rows]


@pytest.mark.slow
def test_two_processes_search_as_one_and_go_on_where_they_were(small: Path) -> None:
    (small / "config.toml").write_text(SEARCH)
    run(small, "one.onnx", 1)
    run(small, "two.onnx", 2)
    one, first, second = (
        json.loads((small / f"{name}.json").read_text())
        for name in ("one.onnx.0", "two.onnx.0", "two.onnx.1")
    )
    assert len(one) == 180
    assert first == second, "the ranks' masks differ"
    assert first == one, "the masks differ from a single process's"
    assert decisions(small / "two.run") == decisions(small / "one.run")
    for trial in range(4):
        a, b = (load_file(small / f"{name}.run" / f"trial-{trial:03d}" / "result.safetensors")
                for name in ("one", "two"))  # fmt: skip
        assert a.keys() == b.keys()
        for name, values in a.items():
            close = 1e-5 if name.startswith("weight.") else 0
            np.testing.assert_allclose(b[name], values, atol=close, rtol=0)

    written = (small / "two.onnx").read_bytes()
    log = small / "two.run" / "trials.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:2]) + lines[2][: len(lines[2]) // 2])  # killed while it wrote
    run(small, "two.onnx", 2, "--resume")
    resumed = [json.loads((small / f"two.onnx.{r}.json").read_text()) for r in (0, 1)]
    assert resumed[0] == resumed[1] == first[60:]
    assert (small / "two.onnx").read_bytes() == written
    assert decisions(small / "two.run") == decisions(small / "one.run")


def test_a_batch_that_cannot_be_divided_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with (
        pytest.raises(ConfigError, match=r"data\.batch: expected a multiple of the 3 processes"),
        distributed.processes("cpu", 16),
    ):
        pass


def test_one_process_leaves_everything_as_it_is() -> None:
    model, value = torch.nn.Linear(2, 2), torch.ones(3)
    with distributed.processes("cpu", 7):
        assert (distributed.size(), distributed.rank()) == (1, 0)
        assert distributed.is_main()
        assert distributed.share(7) == slice(0, 7)
        assert distributed.parallel(model) is model
        assert distributed.mean(value) is distributed.gather(value) is distributed.own(value)
        assert distributed.agree(True, False) == [True, False]
        assert distributed.from_main(0.1) == 0.1


def test_another_number_of_processes_cannot_resume() -> None:
    with pytest.raises(ConfigError, match="written by 2 process"):
        distributed.own(torch.zeros(2, 8))
