"""The search: what it tries next, what it accepts, and that nothing of it is lost."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from dns_onnx import compress
from dns_onnx.config import Config, Target, parse_config
from dns_onnx.errors import BudgetMissed, CheckpointError, ConfigError
from dns_onnx.result import Result
from dns_onnx.targets import Descent, goals
from dns_onnx.train import Run
from dns_onnx.trials import (
    TRIALS,
    Plan,
    Trial,
    descent,
    next_plan,
    read_trials,
    smallest,
    trial_config,
)
from tests.conftest import through_crashes

pytestmark = pytest.mark.usefixtures("one_thread")


def trial(
    number: int,
    ratio: float,
    accepted: bool,
    metric: float | None = 0.9,
    gentle: int = 0,
    parent: int | None = None,
) -> Trial:
    plan = Plan(ratio, parent, gentle)
    return Trial(number, plan, ratio, 1, 1, metric, "accuracy", 1.0, 1.0, 0.0, accepted, 1, 1.0, {},
                 "", {}, {})  # fmt: skip


def told(limit: float, target: Target) -> list[float]:
    """The compressions that a search tries when it can reach just this one."""
    trials: list[Trial] = []
    while (plan := next_plan(trials, target)) is not None:
        accepted = plan.ratio <= limit
        trials.append(replace(trial(len(trials), plan.ratio, accepted), plan=plan))
    return [t.plan.ratio for t in trials]


def test_the_compression_grows_until_it_fails_and_is_then_bracketed() -> None:
    tried = told(100.0, Target(growth=4, precision=1.1))
    assert tried[:5] == [4, 8, 32, 128, 64]
    accepted = max(r for r in tried if r <= 100)
    refused = min(r for r in tried if r > 100)
    assert refused / accepted <= 1.1


@pytest.mark.parametrize("limit", [1.01, 1.9, 7.0, 1234.5])
def test_any_limit_is_found_to_the_precision(limit: float) -> None:
    tried = told(limit, Target(trials=99, precision=1.02))
    accepted = max([r for r in tried if r <= limit], default=1.0)
    assert limit / accepted <= 1.02


def test_training_begins_beside_what_was_fitted_and_from_there_where_that_fails() -> None:
    target = Target(trials=9, growth=4)
    cut = replace(trial(0, 4, True), iterations=0)
    fitted = replace(trial(1, 16, True), plan=Plan(16, None, fitted=True), iterations=0)
    assert next_plan([cut, fitted], target) == Plan(64, 0)
    failed = [cut, fitted, trial(2, 64, False, parent=0)]
    assert next_plan(failed, target) == Plan(64, 1)
    assert next_plan([*failed, trial(3, 64, False, parent=1)], target) == Plan(32, 0)
    assert next_plan([*failed, trial(3, 64, True, parent=1)], target) == Plan(256, 3)
    assert next_plan([*failed], Target(trials=2)) is None  # what was fitted does not count
    assert next_plan([fitted], target) == Plan(64, None)


def test_what_failed_from_far_is_tried_again_from_near() -> None:
    trials = [
        trial(0, 9, True),
        trial(1, 36, False, parent=0),
        trial(2, 18, True, parent=0),
    ]
    assert next_plan(trials, Target()) == Plan(36, 2)
    again = [*trials, trial(3, 36, True, parent=2)]
    grown = next_plan(again, Target())
    assert grown is not None
    assert (grown.parent, grown.ratio > 36) == (3, True)
    trials.append(trial(3, 36, False, parent=2))
    short = Target(longer=0)
    assert next_plan(trials, short) == Plan(pytest.approx((18 * 36) ** 0.5), 2)
    trials.append(trial(4, 35, True, parent=2))
    assert next_plan(trials, short) is None  # failed from two places: that is the limit


def test_short_trials_find_the_limit_roughly_and_longer_ones_to_the_precision() -> None:
    trials = [trial(0, 8, True), trial(1, 32, False, parent=0)]
    assert next_plan(trials, Target()) == Plan(16, 0)
    trials.append(trial(2, 16, False, parent=0))
    assert next_plan(trials, Target()) == Plan(16, 0, longer=1)
    assert next_plan(trials, Target(longer=0)) == Plan(pytest.approx(128**0.5), 0)
    trials.append(replace(trial(3, 16, False), plan=Plan(16, 0, longer=1)))
    assert next_plan(trials, Target()) == Plan(pytest.approx(128**0.5), 0, longer=1)
    assert next_plan(trials, Target(longer=2)) == Plan(16, 0, longer=2)
    assert next_plan(trials, Target(longer=2, precision=3.0)) == Plan(16, 0, longer=2)
    assert next_plan(trials, Target(longer=1, precision=3.0)) is None


def test_the_limit_is_tried_again_with_twice_the_iterations() -> None:
    trials = [trial(0, 16, True), trial(1, 17, False, parent=0), trial(2, 40, False, parent=0)]
    longer = next_plan(trials, Target())
    assert longer == Plan(17, 0, longer=1)
    failed = [*trials, replace(trial(3, 17, False), plan=longer)]
    assert next_plan(failed, Target()) is None
    assert next_plan(failed, Target(longer=2)) == Plan(17, 0, longer=2)
    diverged = [*trials, replace(trial(3, 17, False, None), plan=longer)]
    assert next_plan(diverged, Target()) == Plan(17, 0, gentle=1, longer=1)


def test_what_training_longer_gains_is_followed_in_small_steps() -> None:
    trials = [trial(0, 16, True), trial(1, 17, False, parent=0), trial(2, 40, False, parent=0)]
    trials.append(replace(trial(3, 17, True), plan=Plan(17, 0, longer=1)))
    beyond = next_plan(trials, Target())
    assert beyond is not None
    assert beyond == Plan(pytest.approx(17 * 1.2), 3, longer=1)
    trials.append(replace(trial(4, 20.4, False), plan=beyond))
    assert next_plan(trials, Target()) == Plan(pytest.approx(17 * 1.2**0.5), 3, longer=1)


def test_longer_trials_go_no_farther_at_first_than_where_shorter_ones_broke() -> None:
    plans = [(8, 0, True), (32, 0, False), (16, 0, False), (16, 1, True)]
    trials = [
        replace(trial(i, ratio, held), plan=Plan(ratio, 0 if i else None, longer=longer))
        for i, (ratio, longer, held) in enumerate(plans)
    ]
    assert next_plan(trials, Target(growth=8)) == Plan(32, 3, longer=1)
    assert next_plan(trials, Target(growth=1.5)) == Plan(24, 3, longer=1)


def test_no_layer_is_asked_to_keep_less_than_it_may() -> None:
    trials = [trial(0, 4, True), trial(1, 16, True)]
    assert next_plan(trials, Target(), highest=40.0) == Plan(40, 1)
    trials.append(trial(2, 40, True))
    assert next_plan(trials, Target(), highest=40.0) is None


def test_the_number_of_trials_is_bounded() -> None:
    assert len(told(100.0, Target(trials=3))) == 3


def test_a_given_size_takes_one_trial() -> None:
    assert told(1.0, Target(compression=50)) == [50]
    assert told(1.0, Target(sparsity=0.75)) == [4]


def test_each_trial_goes_on_from_the_smallest_accepted_one() -> None:
    trials = [trial(0, 4, True), trial(1, 16, True, parent=0), trial(2, 64, False, parent=1)]
    assert next_plan(trials, Target()) == Plan(32, 1)
    assert smallest(trials) is trials[1]


def test_what_diverges_is_repeated_more_gently_and_then_given_up() -> None:
    trials = [trial(0, 4, True), trial(1, 16, False, None, parent=0)]
    assert next_plan(trials, Target()) == Plan(16, 0, 1)
    trials.append(trial(2, 16, False, None, 1, parent=0))
    assert next_plan(trials, Target()) == Plan(16, 0, 2)
    trials.append(trial(3, 16, False, None, 2, parent=0))
    assert next_plan(trials, Target()) == Plan(8, 0)


# ---------------------------------------------------------------------- on a small net

SETTINGS = {
    "data": {"batch": 16, "holdout": 0.2},
    "train": {"iterations": 120, "log_every": 40},
    "solver": {"lr": 0.05, "policy": "fixed"},
    "target": {"max_drop": 2.0, "precision": 1.3, "growth": 2.0, "trials": 4},
}


def settings(**overrides: dict) -> Config:
    return parse_config({**SETTINGS, **overrides}, "test")


def run(folder: Path, out: str = "out.onnx", config: Config | None = None, **options) -> Result:
    return compress(
        folder / "net.onnx", folder / out, train=f"{folder}/train.npz",
        config=config or settings(), bench_seconds=0.05, **options,
    )  # fmt: skip


def rows(folder: Path) -> list[dict]:
    """The trials of a run folder, without the times."""
    found = [json.loads(line) for line in (folder / TRIALS).read_text().splitlines()]
    return [{**row, "seconds": 0} for row in found]


def test_the_smallest_model_within_the_budget_is_written(small: Path) -> None:
    result = run(small)
    assert result.check.ok, result.check.problems
    assert len(result.trials) > 1
    best = smallest(result.trials)
    assert best is not None
    assert sum(layer.kept for layer in result.layers) == best.kept
    assert best.drop is not None
    assert best.drop <= 2.0
    assert all(t.drop > 2.0 for t in result.trials if not t.accepted)
    assert result.check.kept <= best.kept
    saved = json.loads((result.run_dir / TRIALS).read_text().splitlines()[0])
    assert list(saved) == [f.name for f in fields(Trial)]
    assert not list(result.run_dir.glob("trial-*/step-*"))  # only what is needed stays


def test_a_given_compression_is_met(small: Path) -> None:
    result = run(small, config=settings(target={"compression": 5}))
    assert len(result.trials) == 1
    size = sum(layer.size for layer in result.layers)
    assert size // 5 - 1 <= sum(layer.kept for layer in result.layers) <= size // 5


def test_layers_may_have_a_sparsity_of_their_own(small: Path) -> None:
    config = settings(target={"compression": 4}, layer=[{"match": "fc2", "sparsity": 0.25}])
    layers = {layer.name: layer for layer in run(small, config=config).layers}
    assert layers["fc2"].kept == int(0.75 * layers["fc2"].size)
    total = sum(layer.size for layer in layers.values())
    assert sum(layer.kept for layer in layers.values()) == total // 4


def test_the_metric_itself_may_be_the_budget(small: Path) -> None:
    config = settings(target={"min_metric": 0.9, "trials": 3, "growth": 2.0})
    result = run(small, config=config)
    assert all((t.metric >= 0.9) == t.accepted for t in result.trials)


def test_a_margin_keeps_trials_within_the_budget_by_what_chance_may_tell(small: Path) -> None:
    target = {"trials": 4, "growth": 2.0, "margin": 1.0}
    result = run(small, config=settings(target=target), max_drop=3.0)
    judged = [t for t in result.trials if t.iterations]
    assert any(t.error > 0 for t in judged)
    assert all((t.drop + t.error <= 3.0 + 1e-9) == t.accepted for t in judged)
    assert rows(result.run_dir)[-1]["error"] == judged[-1].error
    missed = settings(target={**target, "max_drop": -200, "trials": 2})
    with pytest.raises(BudgetMissed, match="a smaller --margin"):
        run(small, "none.onnx", config=missed)


def test_an_impossible_budget_is_said_with_the_remedy(small: Path) -> None:
    config = settings(target={"max_drop": -200, "trials": 2})
    with pytest.raises(BudgetMissed, match=r"the nearest had a drop of.*--max-drop"):
        run(small, config=config)
    assert not (small / "out.onnx").exists()
    assert len(read_trials(small / "out.run")) == 2


def test_a_search_without_held_out_rows_is_refused(small: Path) -> None:
    with pytest.raises(ConfigError, match="held-out"):
        run(small, config=settings(data={"batch": 16, "holdout": 0}))


def test_another_trial_can_be_picked_afterwards(small: Path) -> None:
    first = run(small)
    picked = run(small, "other.onnx", run_dir=first.run_dir, resume=True, pick=0)
    assert sum(layer.kept for layer in picked.layers) == first.trials[0].kept
    assert picked.check.ok
    with pytest.raises(ConfigError, match="trial 99: expected one of"):
        run(small, "other.onnx", run_dir=first.run_dir, resume=True, pick=99)


def test_a_finished_search_makes_place_and_an_unfinished_one_does_not(small: Path) -> None:
    first = run(small)
    again = run(small)
    assert rows(again.run_dir) == rows(first.run_dir)
    target = settings(target={"compression": 3}, train={"iterations": 20})
    assert len(run(small, config=target).trials) == 1
    run(small)  # over a finished search for something else
    path = first.run_dir / TRIALS
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:1]))
    with pytest.raises(CheckpointError, match=r"unfinished search.*--resume"):
        run(small)


def test_a_resumed_search_ends_as_if_it_had_never_stopped(small: Path) -> None:
    whole = run(small, "whole.onnx")
    part = run(small, "part.onnx")
    path = part.run_dir / TRIALS
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1][: len(lines[1]) // 2])  # killed while it wrote
    resumed = run(small, "part.onnx", resume=True)
    assert resumed.path.read_bytes() == whole.path.read_bytes()
    assert rows(resumed.run_dir) == rows(whole.run_dir)


def test_a_trial_that_diverges_is_rolled_back_and_retried(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finite = Run._look
    gentle = []

    def look(self: Run, rate: float, *rest: object) -> None:
        if self.config.train.iterations == 120 and self.surgery.kept() < 100:
            with torch.no_grad():
                next(iter(self.weights.values())).weight.fill_(float("nan"))
            self.journal.loss_sum.fill_(float("nan"))
        gentle.append(self.config.solver.lr)
        finite(self, rate, *rest)

    monkeypatch.setattr(Run, "_look", look)
    result = run(small, config=settings(target={"compression": 8}))
    assert [t.metric is None for t in result.trials] == [True, False]
    assert "rolled back" in result.trials[0].note
    assert result.trials[1].plan.gentle == 1
    assert gentle[-1] == pytest.approx(0.025)
    assert result.check.ok


def test_channels_make_a_truly_smaller_graph(small: Path) -> None:
    config = settings(target={"compression": 3}, surgery={"granularity": "channel"},
                      layer=[{"match": "fc2", "prune": False}])  # fmt: skip
    result = run(small, config=config, format="dense", drop_dead=True)
    before = {i.name: i.dims for i in onnx.load(small / "net.onnx").graph.initializer}
    after = {i.name: i.dims for i in onnx.load(result.path).graph.initializer}
    assert np.prod(after["fc1.w"]) < 0.5 * np.prod(before["fc1.w"])
    assert result.check.ok


@pytest.mark.parametrize(("granularity", "group"), [("1x4", 4), ("2:4", 4)])
def test_groups_come_through_to_the_file(small: Path, granularity: str, group: int) -> None:
    config = settings(target={"compression": 2.2}, surgery={"granularity": granularity},
                      layer=[{"match": "fc2", "prune": False}])  # fmt: skip
    result = run(small, config=config, format="dense")
    model = onnx.load(result.path)
    gemm = next(n for n in model.graph.node if n.name == "fc1")
    w = next(numpy_helper.to_array(i) for i in model.graph.initializer if i.name == gemm.input[1])
    rows_are_outputs = any(a.name == "transB" and a.i for a in gemm.attribute)
    matrix = w if rows_are_outputs else w.T
    counts = np.count_nonzero(matrix.reshape(len(matrix), -1, group), axis=2)
    assert set(np.unique(counts)) <= ({0, 4} if granularity == "1x4" else {0, 1, 2})
    assert result.check.ok


def test_goals_that_cannot_be_are_refused() -> None:
    class Layer:
        def __init__(self, key: str) -> None:
            self.key = key

        def size(self) -> int:
            return 100

    layers = [Layer("a"), Layer("b")]
    with pytest.raises(
        ConfigError, match=r"entry of each of 1 layers, got 0 entries for them; .* or the sparsity"
    ):
        goals(layers, {"a": 0.5}, 0.1)  # type: ignore[list-item]


def test_the_masks_of_a_trial_freeze_and_update_as_the_settings_say() -> None:
    given = settings(surgery={"gamma": 3e-5, "power": 2, "iter_stop": 80, "ramp_iters": 60})
    first = descent(trial_config(given, Plan(4.0, None), 0))
    assert first == Descent(80, 60, 3e-5, 2.0)
    gentler = trial_config(given, Plan(4.0, None, gentle=1), 1)
    assert (descent(gentler), gentler.solver.tail) == (
        Descent(160, 120, 3e-5, 2.0),
        gentler.train.iterations - 160,
    )


def test_the_masks_of_a_trial_freeze_after_most_of_it_by_default() -> None:
    told = trial_config(settings(train={"iterations": 8000}), Plan(4.0, None), 0)
    assert (told.train.iterations, told.solver.tail) == (8000, 2400)
    assert descent(told) == Descent(5600, 4760, 1e-4, 1.0)


def test_a_longer_trial_has_more_of_everything_but_the_learning_rate() -> None:
    given = settings(train={"iterations": 100}, surgery={"iter_stop": 80, "ramp_iters": 60})
    told = trial_config(given, Plan(4.0, None, gentle=1, longer=2), 0)
    assert told.train.iterations == 800
    assert descent(told) == replace(descent(trial_config(given, Plan(4.0, None), 0)),
                                    iter_stop=640, ramp_iters=480)  # fmt: skip
    assert told.solver.lr == pytest.approx(given.solver.lr / 2)


def test_a_search_over_convolutions_whose_weights_lie_channels_last(small: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {"c1": (3, 1, 3, 3), "c2": (4, 3, 3, 3), "fc": (4, 16)}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "c1"], ["a"], name="c1"),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Conv", ["b", "c2"], ["c"], name="c2"),
            helper.make_node("Flatten", ["c"], ["d"]),
            helper.make_node("Gemm", ["d", "fc"], ["y"], name="fc", transB=1),
        ],
        "convolutions",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 1, 6, 6])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
         for name, shape in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, small / "net.onnx")
    labels = rng.integers(0, 4, 200)
    x = rng.standard_normal((200, 1, 6, 6)).astype(np.float32) + labels[:, None, None, None]
    np.savez(small / "train.npz", x=x, labels=labels)
    config = settings(target={"compression": 2}, train={"iterations": 20})
    result = run(small, config=config)
    assert result.check.ok
    again = run(small, "again.onnx", config=config, run_dir=small / "out.run", resume=True)
    assert again.path.read_bytes() == result.path.read_bytes()


@pytest.mark.parametrize("net", ["small", "images"])
def test_a_search_that_crashes_again_and_again_ends_bit_for_bit(
    net: str, request: pytest.FixtureRequest
) -> None:
    small = request.getfixturevalue(net)
    often = settings(
        train={"iterations": 60, "log_every": 5, "checkpoint_seconds": 0.01},
        target={"max_drop": 2.0, "growth": 2.0, "trials": 2},
    )
    whole = run(small, "whole.onnx", often)
    rng = np.random.default_rng(3)
    _, crashes = through_crashes(
        lambda observe: run(small, "crashed.onnx", often, resume=True, observe=observe),
        lambda: int(rng.integers(1, 12)),
    )
    assert crashes > 2
    assert (small / "crashed.onnx").read_bytes() == whole.path.read_bytes()
    assert rows(small / "crashed.run") == rows(whole.run_dir)
    for one in whole.run_dir.glob("trial-*/*.safetensors"):
        other = small / "crashed.run" / one.relative_to(whole.run_dir)
        assert other.read_bytes() == one.read_bytes()
