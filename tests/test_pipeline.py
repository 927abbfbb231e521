"""The whole road on a small net: reproducible, resumable, and nothing lost when it goes wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper

from dns_onnx import compress
from dns_onnx.checkpoint import claimed
from dns_onnx.config import Config, parse_config
from dns_onnx.cuts import Cut
from dns_onnx.errors import CheckpointError, ConfigError, DataError, TrainingError
from dns_onnx.masks import Masked
from dns_onnx.pipeline import slow_halves
from dns_onnx.result import Result
from dns_onnx.train import eval_batch

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = {
    "data": {"batch": 16, "holdout": 0.2},
    "train": {"iterations": 400, "eval_every": 50, "log_every": 50},
    "solver": {"lr": 0.05, "policy": "fixed", "tail": 100},
    "surgery": {"c_rate": 0.8, "iter_stop": 250, "gamma": 1e-3},
}


def settings(**overrides: dict) -> Config:
    return parse_config({**SETTINGS, **overrides}, "test")


def run(folder: Path, out: str = "out.onnx", config: Config | None = None, **options) -> Result:
    return compress(
        folder / "net.onnx", folder / out, train=f"{folder}/train.npz",
        eval=options.pop("eval", f"{folder}/test.npz"), config=config or settings(),
        bench_seconds=0.05, **options,
    )  # fmt: skip


def weights(path: Path) -> dict[str, np.ndarray]:
    from dns_onnx.converters.reader import read_model

    return {i.name: numpy_helper.to_array(i) for i in read_model(path).graph.initializer}


def test_a_pruned_file_that_holds_what_was_trained(small: Path) -> None:
    result = run(small)
    assert result.check.ok, result.check.problems
    assert result.metric_source == "eval"
    assert result.check.kept == sum(int(np.count_nonzero(w)) for w in weights(result.path).values())
    assert result.check.kept < 0.5 * result.check.total
    assert result.check.metric.name == "accuracy"
    assert result.check.metric.after >= 0.9
    assert [layer.name for layer in result.layers] == ["fc1", "fc2"]
    assert sum(layer.kept for layer in result.layers) >= result.check.kept
    session = ort.InferenceSession(result.path, providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["x"]
    assert [o.name for o in session.get_outputs()] == ["y"]
    metadata = {m.key: m.value for m in onnx.load(result.path).metadata_props}
    assert metadata["author"] == "somebody"
    assert metadata["dns_onnx.seed"] == "0"
    assert json.loads(metadata["dns_onnx.config"])["train"]["iterations"] == 400
    assert json.loads(metadata["dns_onnx.preprocess"])["scale"] == 1.0


def test_the_seed_decides_every_bit(small: Path) -> None:
    first = run(small, "a.onnx").path.read_bytes()
    assert run(small, "b.onnx").path.read_bytes() == first
    other = run(small, "c.onnx", settings().model_copy(update={"seed": 1}))
    assert weights(other.path)["fc1.w"].tobytes() != weights(small / "a.onnx")["fc1.w"].tobytes()


def test_evaluation_data_decide_nothing(small: Path) -> None:
    rng = np.random.default_rng(5)
    np.savez(small / "noise.npz", x=rng.standard_normal((50, 8)).astype(np.float32),
             labels=rng.integers(0, 4, 50))  # fmt: skip
    first = run(small, "a.onnx").path.read_bytes()
    assert run(small, "b.onnx", eval=f"{small}/noise.npz").path.read_bytes() == first
    without = run(small, "c.onnx", eval=None)
    assert without.path.read_bytes() == first
    assert without.metric_source == "held-out"


def test_held_out_rows_may_be_given(small: Path) -> None:
    """They decide, all training rows teach, and a run goes on only with the same."""
    options = {"eval": None, "config": settings(data={"batch": 16, "holdout": 0})}
    result = run(small, val=f"{small}/test.npz", **options)
    assert result.metric_source == "held-out"
    assert result.check.rows == 200
    assert result.outcome.best_metric == pytest.approx(result.check.metric.after)
    plain = run(small, "plain.onnx", eval=None, config=options["config"])
    assert plain.fingerprint["data"] != result.fingerprint["data"]
    arrays = np.load(small / "test.npz")
    np.savez(small / "other.npz", x=arrays["x"][::-1], labels=arrays["labels"][::-1])
    with pytest.raises(CheckpointError, match="data"):
        run(small, val=f"{small}/other.npz", resume=True, **options)


def test_rows_of_another_kind_are_judged_by_themselves_alone(small: Path) -> None:
    """No twins, and no teaching rows beside them: those say nothing of others."""
    data = np.load(small / "train.npz")
    np.savez(small / "half.npz", x=data["x"][:300], labels=data["labels"][:300])
    config = parse_config(
        {"data": {"batch": 16}, "train": {"iterations": 20}, "target": {"trials": 1},
         "solver": {"type": "sgd"}}, "test",
    )  # fmt: skip
    heard: list[object] = []
    kept = {"config": config, "eval": None, "max_drop": 90.0, "tell": heard.append}
    run(small, val=f"{small}/half.npz", **kept)
    apart = [c for c in heard if isinstance(c, Cut)]
    heard.clear()
    run(small, "split.onnx", **kept)
    split = [c for c in heard if isinstance(c, Cut)]
    assert all(c.together is None for c in apart)
    assert any(c.together is not None for c in split)


def test_a_torch_dataset_gives_the_same_as_the_arrays_in_it(small: Path) -> None:
    arrays = np.load(small / "train.npz")
    rows = torch.utils.data.TensorDataset(
        torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["labels"])
    )
    compress(small / "net.onnx", small / "b.onnx", train=rows, config=settings(),
             bench_seconds=0.05)  # fmt: skip
    assert (small / "b.onnx").read_bytes() == run(small, "a.onnx").path.read_bytes()


def test_layers_can_be_spared(small: Path) -> None:
    config = settings(
        layer=[{"match": "fc2", "prune": False}, {"match": "fc1", "prune_bias": False}]
    )
    found = weights(run(small, config=config).path)
    assert np.count_nonzero(found["fc2.w"]) == found["fc2.w"].size
    assert np.count_nonzero(found["fc1.b"]) == found["fc1.b"].size
    assert np.count_nonzero(found["fc1.w"]) < found["fc1.w"].size


def test_first_masks(small: Path) -> None:
    mask = np.zeros((32, 8), bool)
    mask[:, 0] = True
    np.save(small / "mask.npy", mask)
    config = settings(
        surgery={"c_rate": 0.0, "iter_stop": 0},
        layer=[{"match": "fc1", "weight_mask": f"{small}/mask.npy", "bias_mask": "cut"}],
    )
    found = weights(run(small, config=config).path)
    assert np.array_equal(found["fc1.w"] != 0, mask)
    assert not found["fc1.b"].any()
    assert found["fc2.w"].all()


def test_a_wrong_first_mask_is_refused(small: Path) -> None:
    np.save(small / "mask.npy", np.ones((3, 3), bool))
    config = settings(layer=[{"match": "fc1", "weight_mask": f"{small}/mask.npy"}])
    with pytest.raises(ConfigError, match=r"mask\.npy: expected bool \[32, 8\] for 'fc1\.w'"):
        run(small, config=config)


def test_a_rule_for_no_layer_is_refused(small: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"\['fc9'\] name no layer; the layers are \['fc1', 'fc2'\]"
    ):
        run(small, config=settings(layer=[{"match": "fc9", "prune": False}]))


def test_labels_out_of_range_are_told_before_training(small: Path) -> None:
    found = dict(np.load(small / "train.npz"))
    found["labels"][7] = 4
    np.savez(small / "train.npz", **found)
    with pytest.raises(DataError, match=r"expected 0 to 3 \(the model has 4 classes\), got 4"):
        run(small)
    assert not (small / "out.onnx").exists()


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_state(small: Path) -> None:
    run(small, config=settings(train={**SETTINGS["train"], "iterations": 100}))
    before = (small / "out.onnx").read_bytes()
    wild = settings(solver={"lr": 1e30, "policy": "fixed"})
    with pytest.raises(TrainingError, match=r"finite loss, got .*lower solver\.lr \(now 1e\+30\)"):
        run(small, config=wild, run_dir=small / "wild")
    assert (small / "out.onnx").read_bytes() == before
    assert (small / "out.run" / "step-000000100").is_dir()


def test_a_missing_folder_is_told_before_training(small: Path) -> None:
    with pytest.raises(ConfigError, match="expected an existing folder"):
        run(small, "absent/out.onnx")


def test_a_folder_that_cannot_be_written_to_is_told_before_training(small: Path) -> None:
    with pytest.raises(ConfigError, match="expected a folder that can be written to"):
        run(small, "/proc/out.onnx")


@pytest.mark.parametrize(
    ("dtype", "device", "told"),
    [(torch.float16, "cpu", True), (torch.float32, "cpu", False), (torch.float16, "cuda", False)],
)
def test_halves_on_a_cpu_are_told_to_be_slow(dtype: torch.dtype, device: str, told: bool) -> None:
    weights = {"w": Masked("w", torch.zeros(2, dtype=dtype))}
    run = SimpleNamespace(weights=weights, device=torch.device(device))
    assert bool(slow_halves(run)) == told  # type: ignore[arg-type]


def test_few_rows_make_a_small_batch(small: Path) -> None:
    rows = dict(np.load(small / "train.npz"))
    np.savez(small / "few.npz", **{name: a[:20] for name, a in rows.items()})
    told = {"train": {"iterations": 5}, "surgery": {"c_rate": 0.5}}
    few = {"train": f"{small}/few.npz", "bench_seconds": 0.02}
    result = compress(
        small / "net.onnx", small / "o.onnx", config=parse_config(told, "test"), **few
    )
    assert result.config.data.batch == 18
    told["data"] = {"batch": 64}
    with pytest.raises(DataError, match="at least one batch of 64 rows, got 18; lower"):
        compress(small / "net.onnx", small / "o.onnx", config=parse_config(told, "test"), **few)


def no_weights(model: onnx.ModelProto) -> None:
    del model.graph.node[2], model.graph.node[0]
    model.graph.node[0].input[0], model.graph.node[0].output[0] = "x", "y"


def whole_numbers(model: onnx.ModelProto) -> None:
    for gemm in [n for n in model.graph.node if n.op_type == "Gemm"]:
        weight = gemm.input[1]
        held = next(i for i in model.graph.initializer if i.name == weight)
        held.CopyFrom(numpy_helper.from_array(np.ones(held.dims, np.int8), weight))
        model.graph.initializer.append(numpy_helper.from_array(np.float32(0.1), f"{weight}.s"))
        operands, gemm.input[1] = [weight, f"{weight}.s"], f"{weight}.f"
        made = onnx.helper.make_node("DequantizeLinear", operands, [f"{weight}.f"])
        model.graph.node.insert(0, made)


def no_numbers(model: onnx.ModelProto) -> None:
    for held in model.graph.initializer:
        held.CopyFrom(numpy_helper.from_array(np.full(held.dims, np.nan, np.float32), held.name))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (no_weights, "got none: no Conv, Gemm, MatMul or the like has weights"),
        (whole_numbers, r"'fc1.w'\): not a float weight; .*prune a quantized model before"),
        (no_numbers, r"fc1 \('fc1.w'\): holds NaN or infinity"),
    ],
)
def test_a_model_with_nothing_to_cut_says_why(small: Path, spoil, words: str) -> None:
    model = onnx.load(small / "net.onnx")
    spoil(model)
    onnx.save(model, small / "net.onnx")
    with pytest.raises(TrainingError, match=words):
        run(small)


def test_rows_that_only_onnx_runtime_refuses_are_told_before_training(small: Path) -> None:
    """Lengths of sequences that lie time first: rows are counted along the wrong axis."""
    rng = np.random.default_rng(0)
    weights = {"w": (1, 16, 8), "r": (1, 16, 4)}
    node = onnx.helper.make_node("LSTM", ["x", "w", "r", "", "lens"], ["y"], hidden_size=4)
    float_, int32 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT32
    graph = onnx.helper.make_graph(
        [node], "g",
        [onnx.helper.make_tensor_value_info("x", float_, ["steps", 1, 8]),
         onnx.helper.make_tensor_value_info("lens", int32, ["lanes"])],
        [onnx.helper.make_tensor_value_info("y", float_, None)],
        [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n)
         for n, s in weights.items()],
    )  # fmt: skip
    opsets = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), small / "net.onnx")
    np.savez(small / "rows.npz", x=rng.standard_normal((40, 1, 8)).astype(np.float32),
             lens=np.ones(40, np.int32))  # fmt: skip
    with pytest.raises(DataError, match=r"does not run on inputs of shape .*'lens': \[2\]"):
        compress(small / "net.onnx", small / "o.onnx", train=f"{small}/rows.npz", config=settings())
    assert not (small / "o.run").exists()


def test_one_run_at_a_time_writes_in_a_folder(small: Path) -> None:
    folder = small / "shared.run"
    with claimed(folder), pytest.raises(CheckpointError, match=r"shared\.run: another run writes"):
        run(small, run_dir=folder)
    run(small, run_dir=folder)


def test_resume_refuses_another_run(small: Path) -> None:
    run(small)
    with pytest.raises(CheckpointError, match="another settings"):
        run(small, config=settings(solver={"lr": 0.01}), resume=True)
    other = dict(np.load(small / "train.npz"))
    np.savez(small / "train.npz", x=other["x"][:500], labels=other["labels"][:500])
    with pytest.raises(CheckpointError, match="another data"):
        run(small, resume=True)


def test_a_missed_goal_is_a_problem(small: Path) -> None:
    wild = settings(surgery={"c_rate": 9.0, "iter_stop": 400})
    assert not run(small, "a.onnx", wild, max_drop=5.0).check.ok
    assert run(small, "b.onnx", max_drop=5.0).check.ok


def test_an_unfinished_run_is_not_thrown_away(small: Path) -> None:
    run(small)
    state = next((small / "out.run").glob("step-*/state.json"))
    found = json.loads(state.read_text())
    found["fingerprint"]["settings"]["train"]["iterations"] = 1000
    state.write_text(json.dumps(found))
    with pytest.raises(CheckpointError, match="holds an unfinished run at iteration 400; go on"):
        run(small)


def test_layers_that_the_loss_does_not_reach_are_left_alone(small: Path) -> None:
    model = onnx.load(small / "net.onnx")
    extra = onnx.helper.make_node("Gemm", ["r", "aux.w"], ["z"], name="aux", transB=1)
    model.graph.node.append(extra)
    rng = np.random.default_rng(0)
    aux = rng.standard_normal((6, 32)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(aux, "aux.w"))
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["n", 6])
    )
    onnx.save(model, small / "net.onnx")
    result = run(small)
    assert [s.name for s in result.spared] == ["aux"]
    assert "does not reach it" in result.spared[0].reason
    assert weights(result.path)["aux.w"].tobytes() == aux.tobytes()


def test_constants_of_the_architecture_are_not_trained(small: Path) -> None:
    model = onnx.load(small / "net.onnx")
    model.graph.node[-1].output[0] = "before"
    for name, value in (("factor", 2.0), ("floor", -np.inf)):
        array = np.array([value] * (1 if name == "factor" else 4), np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    model.graph.node.append(onnx.helper.make_node("Mul", ["before", "factor"], ["scaled"]))
    model.graph.node.append(onnx.helper.make_node("Max", ["scaled", "floor"], ["y"]))
    onnx.save(model, small / "net.onnx")
    found = weights(run(small).path)
    assert found["factor"].tolist() == [2.0]
    assert np.all(np.isneginf(found["floor"]))


# ------------------------------------------------------------- killed, interrupted, resumed

LONG = """
[data]
batch = 16
holdout = 0.2
[train]
iterations = 1200
eval_every = 100
log_every = 50
checkpoint_seconds = 0.1
[solver]
lr = 0.05
policy = "fixed"
tail = 400
[surgery]
c_rate = 0.8
iter_stop = 800
gamma = 1e-3
"""


MOST = 300  # seconds that any of these may take, on a machine that has much else to do


def start(folder: Path, out: str, *more: str) -> subprocess.Popen:
    (folder / "long.toml").write_text(LONG)
    command = [sys.executable, "-m", "dns_onnx", "compress", "net.onnx", "-o", out, "--train",
               "train.npz", "--config", "long.toml", *more]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / "said.txt").open("w") as said:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=said, stderr=said)


def wait_for_checkpoint(folder: Path, past: int = 0) -> None:
    deadline = time.monotonic() + MOST
    while time.monotonic() < deadline:
        steps = [int(p.name[5:]) for p in folder.glob("step-*")]
        if steps and max(steps) > past:
            return
        time.sleep(0.01)
    pytest.fail(f"no checkpoint within {MOST} seconds")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_run_stopped_twice_and_resumed_is_bit_identical(small: Path, number: int) -> None:
    whole = start(small, "whole.onnx")
    assert whole.wait(MOST) == 0, (small / "said.txt").read_text()
    past = 0
    for more in ((), ("--resume",)):
        child = start(small, "cut.onnx", *more)
        wait_for_checkpoint(small / "cut.run", past)
        time.sleep(0.15)
        child.send_signal(number)
        code = child.wait(MOST)
        said = (small / "said.txt").read_text()
        assert code == (-9 if number == signal.SIGKILL else 130), said
        if number != signal.SIGKILL:
            assert "go on with --resume" in said
            assert "Traceback" not in said
        past = max(int(p.name[5:]) for p in (small / "cut.run").glob("step-*"))
        assert past < 1200
        assert not (small / "cut.onnx").exists()
    last = start(small, "cut.onnx", "--resume")
    assert last.wait(MOST) == 0, (small / "said.txt").read_text()
    assert (small / "cut.onnx").read_bytes() == (small / "whole.onnx").read_bytes()
    looks = [
        [
            {k: v for k, v in json.loads(line).items() if k != "seconds"}
            for line in f.read_text().splitlines()
        ]
        for f in (small / "whole.run" / "log.jsonl", small / "cut.run" / "log.jsonl")
    ]
    assert looks[0] == looks[1]


@pytest.mark.parametrize(
    ("batch", "rows"),
    [
        pytest.param(1, 1, id="rows may differ in length"),
        pytest.param(4, 16, id="little memory"),
        pytest.param(64, 256, id="default"),
        pytest.param(512, 256, id="never more"),
    ],
)
def test_evaluation_takes_batches_that_fit_where_training_does(batch: int, rows: int) -> None:
    assert eval_batch(parse_config({"data": {"batch": batch}}, "test")) == rows
