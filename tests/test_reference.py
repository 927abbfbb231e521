"""What drops count from: an original that knows the held-out rows by heart, or does not."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from dns_onnx import compress
from dns_onnx.config import Config, parse_config
from dns_onnx.errors import CheckpointError, Diverged
from dns_onnx.pipeline import allowed
from dns_onnx.reference import (
    MOST,
    PACE,
    REFERENCE,
    TWIN,
    TWINS,
    Reference,
    errors,
    judged,
    same,
    twin_config,
    twin_folders,
)
from dns_onnx.result import Result
from dns_onnx.runtime.metrics import metric
from dns_onnx.train import Run
from dns_onnx.trials import read_trials
from tests.conftest import through_crashes

pytestmark = pytest.mark.usefixtures("one_thread")
DOUBT = 2 * 0.0012523  # two standard errors of 0.9905 on 6000 rows
KNOWN = Reference(0.999, 0.999, "", taught=0.999, twin_taught=0.998, twin=0.9905)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param({}, 0.999 - 0.0075 + DOUBT, id="the twin's gap"),
        pytest.param({"twin_taught": 0.9995}, 0.9905 + DOUBT, id="never below the twin"),
        pytest.param({"twin": 0.9}, 0.999 - MOST, id="never more than a point"),
        pytest.param({"twin_taught": 0.993, "twin": 0.985}, 0.999, id="a twin that did not learn"),
        pytest.param({"twin": 0.9979}, 0.999, id="a gap within noise"),
        pytest.param({"twin_taught": 1.0, "twin": 0.9985}, 0.999, id="a twin as good on new rows"),
        pytest.param({"original": 0.994, "taught": 0.994, "metric": 0.994}, 0.994,
                     id="nearer to what a twin does on new rows"),
        pytest.param({"twin": None}, 0.999, id="no twin"),
    ],
)  # fmt: skip
def test_the_reference_follows_from_the_twin(change: dict, expected: float) -> None:
    found = judged(replace(KNOWN, **change), 20_000, 6000)
    assert found.metric == pytest.approx(expected, abs=1e-6)
    assert found.moved == (found.metric != found.original)
    if change.get("twin", 0) is not None:
        assert f"the budget counts from {'' if found.moved else 'the original, '}" in found.said


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        pytest.param((0.99, 6000), (0.99, 20_000), True, id="equal"),
        pytest.param((0.999, 6000), (0.9985, 20_000), True, id="within noise"),
        pytest.param((0.9895, 6000), (0.9985, 20_000), False, id="a gap"),
        pytest.param((1.0, 30), (0.99, 100), True, id="few rows"),
        pytest.param((1.0, 30), (1.0, 100), True, id="no mistakes at all"),
    ],
)
def test_shares_are_compared_within_sampling_noise(
    a: tuple[float, int], b: tuple[float, int], expected: bool
) -> None:
    assert same(a, b) is expected
    assert same(b, a) is expected


def test_the_check_allows_on_held_out_rows_what_the_search_allowed() -> None:
    accuracy, found = metric("accuracy"), judged(KNOWN, 20_000, 6000)
    assert allowed(0.1, found, accuracy, heldout=True) == pytest.approx(
        0.85 - 100 * DOUBT, abs=1e-4
    )
    assert allowed(0.1, found, accuracy, heldout=False) == 0.1
    assert allowed(0.1, None, accuracy, heldout=True) == 0.1
    assert allowed(None, found, accuracy, heldout=True) is None


def test_a_twin_is_trained_plainly() -> None:
    config = parse_config(
        {"solver": {"type": "adam", "lr": 1e-5}, "data": {"shift": 2}, "seed": 3}, "test"
    )
    found, other = twin_config(config, 900, 0), twin_config(config, 900, 1)
    assert (found.solver.type, found.solver.lr, found.solver.tail) == ("sgd", 0.01, 300)
    assert (found.data.shift, found.train.iterations, found.train.eval_every) == (0, 900, 0)
    assert len({config.seed, found.seed, other.seed}) == 3


# ---------------------------------------------------------------------- on a small net

ROWS, INPUTS = 900, 256


def by_heart(folder: Path, taught: int = ROWS) -> None:
    """A net trained on the first `taught` of 900 rows whose labels nothing but memory tells."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, INPUTS)).astype(np.float32)
    labels = rng.integers(0, 2, ROWS)
    np.savez(folder / "train.npz", x=x, labels=labels)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(INPUTS, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
    solver = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(120):
        solver.zero_grad()
        scores = net(torch.from_numpy(x[:taught]))
        torch.nn.functional.cross_entropy(scores, torch.from_numpy(labels[:taught])).backward()
        solver.step()
    names = ["w1", "b1", "w2", "b2"]
    values = [p.detach().numpy() for p in net.parameters()]
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], name="fc1", transB=1),
         helper.make_node("Relu", ["h"], ["r"]),
         helper.make_node("Gemm", ["r", "w2", "b2"], ["y"], name="fc2", transB=1)],
        "net",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", INPUTS])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(v, n) for v, n in zip(values, names, strict=True)],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), folder / "net.onnx")


def settings(**target: object) -> Config:
    return parse_config(
        {"data": {"batch": 32, "holdout": 0.3}, "solver": {"lr": 0.02, "tail": 100},
         "train": {"iterations": 400, "log_every": 20, "checkpoint_seconds": 0.01},
         "target": {"max_drop": 20.0, "trials": 2, "growth": 2.0, **target}}, "test",
    )  # fmt: skip


def run(folder: Path, out: str = "out.onnx", config: Config | None = None, **options) -> Result:
    return compress(
        folder / "net.onnx", folder / out, train=f"{folder}/train.npz",
        config=config or settings(), bench_seconds=0.01, **options,
    )  # fmt: skip


def test_the_budget_of_what_is_known_by_heart_counts_from_what_a_twin_loses(
    tmp_path: Path,
) -> None:
    by_heart(tmp_path)
    told: list[object] = []
    result = run(tmp_path, tell=told.append)
    found = result.reference
    assert found is not None
    assert found.original == found.taught == 1.0
    assert found.twin_taught is not None
    assert found.twin_taught > 0.995
    assert found.twin is not None
    assert 0.3 < found.twin < 0.7
    assert found.metric == 1.0 - MOST
    assert "knows the held-out rows by heart: 0.00 % errors there" in found.said
    assert told[0] == found
    for trial in result.trials:
        assert (trial.original_metric, trial.reference) == (1.0, found.metric)
        assert trial.drop == pytest.approx(100 * (found.metric - trial.metric))
    stored = json.loads((result.run_dir / REFERENCE).read_text())
    assert Reference(**stored["reference"]) == found
    twins = list(twin_folders(result.run_dir))
    assert len(twins) == TWINS
    assert not [step for twin in twins for step in twin.glob("step-*")]


def test_trials_start_from_the_original_and_not_from_the_twin(tmp_path: Path) -> None:
    by_heart(tmp_path)
    auto = run(tmp_path)
    plain = run(tmp_path, "plain.onnx", settings(reference="original", max_drop=21.0))
    assert plain.reference == Reference(1.0, 1.0, "")
    assert not (plain.run_dir / REFERENCE).exists()
    assert plain.path.read_bytes() != auto.path.read_bytes()  # the settings stand in both
    seen = [[(t.metric, t.kept, t.layers, t.thresholds) for t in r.trials] for r in (auto, plain)]
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    ("taught", "target"),
    [
        pytest.param(400, {}, id="held-out rows it never saw"),
        pytest.param(ROWS, {"compression": 2.0}, id="a size that was asked for"),
        pytest.param(ROWS, {"min_metric": 0.1, "max_drop": None}, id="a metric that was asked for"),
    ],
)
def test_no_twin_is_trained_where_it_could_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taught: int, target: dict
) -> None:
    by_heart(tmp_path, taught)
    monkeypatch.setattr("dns_onnx.reference.forget", lambda run, seed: pytest.fail("a twin"))
    found = run(tmp_path, config=settings(**target)).reference
    assert found is not None
    assert not found.moved


@pytest.mark.parametrize("timed", [False, True], ids=["in its training", "while it is timed"])
def test_a_twin_that_diverges_leaves_the_original(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timed: bool
) -> None:
    by_heart(tmp_path)
    values = settings(trials=1).model_dump(mode="json", exclude_unset=True)
    if timed:
        del values["train"]["iterations"]

    def train(self: Run, *rest: object) -> None:
        raise Diverged("loss nan")

    whole = Run.train
    monkeypatch.setattr(
        Run, "train", lambda self, *a: (train if TWIN in self.folder.name else whole)(self, *a)
    )
    found = run(tmp_path, config=parse_config(values, "test")).reference
    assert found is not None
    assert not found.moved
    assert "diverged" in found.said


def test_a_search_that_crashes_in_its_twin_ends_bit_for_bit(tmp_path: Path) -> None:
    by_heart(tmp_path)
    whole = run(tmp_path, "whole.onnx")
    rng = np.random.default_rng(0)
    again, crashes = through_crashes(
        lambda observe: run(tmp_path, "crashed.onnx", resume=True, observe=observe),
        lambda: int(rng.integers(1, 25)),
    )
    assert crashes > 1
    assert again.reference == whole.reference
    assert again.path.read_bytes() == whole.path.read_bytes()
    stored = [r.run_dir / REFERENCE for r in (whole, again)]
    assert stored[0].read_bytes() == stored[1].read_bytes()
    assert [t.metric for t in whole.trials] == [t.metric for t in again.trials]


def test_trials_that_count_from_something_else_are_refused(tmp_path: Path) -> None:
    by_heart(tmp_path)
    first = run(tmp_path)
    with pytest.raises(CheckpointError, match="another reference"):
        run(tmp_path, config=settings(reference="original"), resume=True)
    path = first.run_dir / REFERENCE
    path.write_text(path.read_text().replace('"original": 1.0\n', '"original": 0.5\n'))
    with pytest.raises(CheckpointError, match="another model or other data"):
        run(tmp_path, resume=True)
    path.write_text("{")
    with pytest.raises(CheckpointError, match="unreadable"):
        run(tmp_path, resume=True)
    assert len(read_trials(first.run_dir)) == len(first.trials)
    again = run(tmp_path)  # a finished search makes place, its reference too
    assert again.reference == first.reference


def test_errors_are_said_in_per_cent() -> None:
    assert errors(0.9905) == "0.95 % errors"


def test_twins_take_no_longer_than_a_trial_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_heart(tmp_path)
    values = settings(trials=1).model_dump(mode="json", exclude_unset=True)
    del values["train"]["iterations"]
    paces: list[float] = []

    def in_time(iterations: int, pace: float) -> int:
        assert iterations == 60 * math.ceil(ROWS * 0.7 / 32)
        paces.append(pace)
        return 40

    monkeypatch.setattr("dns_onnx.reference.in_time", in_time)
    result = run(tmp_path, config=parse_config(values, "test"))
    logs = [folder / "log.jsonl" for folder in twin_folders(result.run_dir)]
    assert [json.loads(log.read_text().splitlines()[-1])["iteration"] for log in logs] == [40]
    (result.run_dir / REFERENCE).unlink()
    run(tmp_path, config=parse_config(values, "test"), resume=True)
    assert paces[0] == paces[1] > 0
    (result.run_dir / PACE).write_text('{"seconds": 77}')
    run(tmp_path, config=parse_config(values, "test"))
    assert paces[2] != 77  # a new search takes its own time
