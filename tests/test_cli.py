"""The command line as a user meets it: exit codes, one clear line, files that are written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import typer.main
from typer.testing import CliRunner

from dns_onnx.cli.app import app, main
from dns_onnx.demo import dense_model, digits, settings
from dns_onnx.trials import read_trials

VERBS = ("inspect", "compress", "check", "convert", "bench", "demo")
FEW = ("--iterations", "60")


def call(*args: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """(exit code, stdout, stderr) of the command, run in this process."""
    monkeypatch.setattr(sys, "argv", ["dns-onnx", *map(str, args)])
    with pytest.raises(SystemExit) as exit_:
        main()
    said = capsys.readouterr()
    return exit_.value.code or 0, said.out, said.err


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *args: call(*args, monkeypatch=monkeypatch, capsys=capsys)


@pytest.fixture
def compressed(small: Path, cli) -> Path:
    code, _, err = cli("compress", small / "net.onnx", "-o", small / "small.onnx",
                       "--train", small / "train.npz", *FEW)  # fmt: skip
    assert code == 0, err
    return small


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str) -> None:
    result = CliRunner().invoke(app, [verb, "--help"])
    assert result.exit_code == 0
    assert f"Example: dns-onnx {verb}" in " ".join(result.output.split())


@pytest.mark.parametrize("verb", VERBS)
def test_the_manual_has_every_option(verb: str) -> None:
    manual = (Path(__file__).parent.parent / "docs" / "cli.md").read_text("utf-8")
    section = manual.split(f"## `dns-onnx {verb}`")[1].split("\n## ")[0]
    command = typer.main.get_command(app).commands[verb]
    for option in (o for p in command.params for o in p.opts if o.startswith("-")):
        assert option in section, "run `make cli-docs`"


def test_compress_writes_model_report_and_run_folder(small: Path, cli) -> None:
    code, out, err = cli(
        "compress", small / "net.onnx", "-o", small / "small.onnx", "--train",
        small / "train.npz", "--eval", small / "test.npz", "--report", small / "rep", "--seed", 3,
        *FEW,
    )  # fmt: skip
    assert code == 0, err
    assert "parameters kept" in out
    assert "\x1b[" not in out + err, "colour codes where no terminal is"
    onnx.checker.check_model(onnx.load(small / "small.onnx"), full_check=True)
    report = json.loads((small / "rep" / "report.json").read_text())
    assert report["config"]["seed"] == 3
    assert report["check"]["ok"]
    assert report["check"]["total"] == 8 * 32 + 32 + 4 * 32 + 4
    assert {row["name"] for row in report["tensors"]} >= {"fc1.w", "fc2.w"}
    assert "## Layers" in (small / "rep" / "report.md").read_text()
    assert "--seed 3" in (small / "rep" / "index.html").read_text()
    assert (small / "small.run" / "trials.jsonl").exists()
    assert list((small / "small.run").glob("trial-*/log.jsonl"))


@pytest.mark.parametrize("format", ["csr", "portable", "coo", "dense"])
def test_convert_keeps_every_bit(compressed: Path, cli, format: str) -> None:
    from dns_onnx.runtime import session

    code, out, err = cli(
        "convert", compressed / "small.onnx", "-o", compressed / "other.onnx", "--format", format
    )
    assert code == 0, err
    assert "Written" in out
    x = {"x": np.load(compressed / "test.npz")["x"]}
    first, second = (
        session(compressed / name, native=False).run(None, x)[0]
        for name in ("small.onnx", "other.onnx")
    )
    assert first.tobytes() == second.tobytes()


def test_convert_does_not_write_over_its_input(compressed: Path, cli) -> None:
    before = (compressed / "small.onnx").read_bytes()
    small = compressed / "small.onnx"
    code, _, err = cli("convert", small, "-o", small, "--format", "dense")
    assert (code, small.read_bytes()) == (2, before)
    assert "another file than the model" in err


@pytest.mark.parametrize("values", ["float16", "int8"])
def test_convert_reads_the_metric_again_where_values_change(
    compressed: Path, cli, values: str
) -> None:
    command = (
        "convert", compressed / "small.onnx", "-o", compressed / "other.onnx", "--format", "csr",
        "--values", values,
    )  # fmt: skip
    code, out, err = cli(*command)
    assert code == 0, err
    assert "--eval DATA" in out
    code, out, err = cli(*command, "--eval", compressed / "test.npz", "--max-drop", "5")
    assert code == 0, out + err
    assert "before / after" in out
    code, out, err = cli(*command, "--eval", compressed / "test.npz", "--max-drop", "-100")
    assert code == 1
    assert "MISSED" in out


@pytest.mark.parametrize("values", ["float16", "int8"])
def test_narrow_values_and_dropped_units(small: Path, cli, values: str) -> None:
    code, out, err = cli(
        "compress", small / "net.onnx", "-o", small / "o.onnx", "--values", values, "--train",
        small / "train.npz", "--drop-dead", "--iterations", "300",
        "--compression", "9",
    )  # fmt: skip
    assert code == 0, out + err
    assert "units before" in out


def test_check_passes_and_misses(compressed: Path, cli) -> None:
    arguments = ("check", compressed / "net.onnx", compressed / "small.onnx", "--eval",
                 compressed / "test.npz", "--seconds", "0.05")  # fmt: skip
    code, out, _ = cli(*arguments, "--json", compressed / "check.json")
    assert code == 0
    assert "latency, original" in out
    found = json.loads((compressed / "check.json").read_text())
    assert found["rows"] == 200
    assert found["sizes"]["file"] == (compressed / "small.onnx").stat().st_size
    code, out, _ = cli(*arguments, "--max-drop", "-100")
    assert code == 1
    assert "MISSED: accuracy got worse by" in out


def test_a_function_that_a_file_names_is_not_run(
    compressed: Path, cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(compressed)
    Path("evil.py").write_text("raise SystemExit('ran')\n")
    model = onnx.load("small.onnx")
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {"dns_onnx.config": '{"train": {"metric": "evil:f"}}'})
    onnx.save(model, "small.onnx")
    arguments = ("check", "net.onnx", "small.onnx", "--eval", "test.npz", "--seconds", "0.02")
    code, _, err = cli(*arguments)
    assert code == 2
    assert "--metric evil:f does, where you trust it" in " ".join(err.split())
    code, _, err = cli(*arguments, "--metric", "accuracy")
    assert code == 0, err


def test_check_without_labels_compares_with_the_original(compressed: Path, cli) -> None:
    x = np.load(compressed / "test.npz")["x"]
    np.savez(compressed / "inputs.npz", anything=x)
    arguments = ("check", compressed / "net.onnx", compressed / "small.onnx", "--eval",
                 compressed / "inputs.npz", "--seconds", "0.02")  # fmt: skip
    code, out, err = cli(*arguments, "--metric", "agreement", "--max-drop", "100")
    assert code == 0, err
    assert "agreement with the original" in out
    code, _, err = cli(*arguments, "--metric", "f1")
    assert code == 2
    assert "'f1' compares with labels and the data have none" in err


def test_check_of_a_file_that_is_not_there(compressed: Path, cli) -> None:
    code, _, err = cli("check", compressed / "net.onnx", compressed / "absent.onnx")
    assert code == 2
    assert "absent.onnx" in err


def test_a_goal_that_cannot_be_judged_is_missed(compressed: Path, cli) -> None:
    code, out, _ = cli("check", compressed / "net.onnx", compressed / "small.onnx",
                       "--max-drop", "5", "--seconds", "0.05")  # fmt: skip
    assert code == 1
    assert "there are no data to judge" in out


def test_compress_with_held_out_rows_of_their_own_and_a_margin(small: Path, cli) -> None:
    (small / "few.toml").write_text("[target]\ntrials = 2\n[solver]\ntype = 'sgd'")
    code, out, err = cli(
        "compress", small / "net.onnx", "-o", small / "o.onnx", "--train", small / "train.npz",
        "--val", small / "test.npz", "--margin", "1", "--max-drop", "10", "--iterations", "60",
        "--config", small / "few.toml",
    )  # fmt: skip
    assert code == 0, err
    assert ", standard error " in out
    assert "held-out data" in out
    assert "200 rows" in out  # all of test.npz
    settings = read_trials(small / "o.run")[-1].settings
    assert settings["target"]["margin"] == 1


def test_compress_that_misses_its_goal_exits_1(small: Path, cli) -> None:
    (small / "hard.toml").write_text("[surgery]\nc_rate = 9\n[train]\niterations = 30")
    code, out, _ = cli(
        "compress", small / "net.onnx", "-o", small / "o.onnx", "--train", small / "train.npz",
        "--config", small / "hard.toml", "--max-drop", "1",
    )  # fmt: skip
    assert code == 1
    assert "MISSED: accuracy got worse by" in out
    assert (small / "o.onnx").exists()


def test_preprocessing_of_the_data_argument_is_kept_for_the_check(small: Path, cli) -> None:
    code, _, err = cli("compress", small / "net.onnx", "-o", small / "o.onnx",
                       "--train", f"{small}/train.npz?scale=0.5&mean=1", *FEW)  # fmt: skip
    assert code == 0, err
    metadata = {m.key: m.value for m in onnx.load(small / "o.onnx").metadata_props}
    stored = json.loads(metadata["dns_onnx.preprocess"])
    assert (stored["scale"], stored["mean"]) == (0.5, 1.0)


@pytest.mark.parametrize("target", ["net.onnx", "."])
def test_targets_that_would_destroy_are_refused(small: Path, cli, target: str) -> None:
    before = (small / "net.onnx").read_bytes()
    code, _, err = cli("compress", small / "net.onnx", "-o", small / target,
                       "--train", small / "train.npz", *FEW)  # fmt: skip
    assert code == 2
    assert "expected" in err
    assert (small / "net.onnx").read_bytes() == before


def test_inspect(compressed: Path, cli) -> None:
    code, out, _ = cli("inspect", compressed / "small.onnx", "--json", compressed / "i.json")
    assert code == 0
    assert "fc1.w" in out
    found = json.loads((compressed / "i.json").read_text())
    assert [x["node"] for x in found["layers"]] == ["fc1", "fc2"]
    assert found["parameters"] == 420
    assert 0 < found["nonzero"] < 420


def test_inspect_verifies_value_by_value(small: Path, cli) -> None:
    code, out, err = cli("inspect", small / "net.onnx", "--verify")
    assert code == 0, err
    assert "Verified: every value equals" in out
    assert "A loss or distillation attaches by default to: ['y']" in out


def test_bench(compressed: Path, cli) -> None:
    code, out, _ = cli(
        "bench", compressed / "net.onnx", "--against", compressed / "small.onnx",
        "--seconds", "0.05", "--json", compressed / "b.json",
    )  # fmt: skip
    assert code == 0
    assert "small.onnx" in out
    timings = json.loads((compressed / "b.json").read_text())["timings"]
    assert timings[0]["ratio"] == 1.0
    assert all(t["latency_ms"] > 0 for t in timings)


# --------------------------------------------------------------------------- bad input


def truncated(folder: Path) -> None:
    data = (folder / "net.onnx").read_bytes()
    (folder / "bad.onnx").write_bytes(data[: len(data) // 2])


def not_onnx(folder: Path) -> None:
    (folder / "bad.onnx").write_bytes(b"\x00\x01 this is no model")


def empty(folder: Path) -> None:
    (folder / "bad.onnx").write_bytes(b"")


def external(folder: Path, location: str) -> None:
    model = onnx.load(folder / "net.onnx")
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    (folder / "bad.onnx").write_bytes(model.SerializeToString())


def missing_data(folder: Path) -> None:
    external(folder, "absent.bin")


def data_outside(folder: Path) -> None:
    (folder.parent / "outside.bin").write_bytes(bytes(2000))
    external(folder, "../outside.bin")


def unknown_operator(folder: Path) -> None:
    model = onnx.load(folder / "net.onnx")
    for node in model.graph.node[:2]:
        node.op_type, node.domain = f"Strange{node.op_type}", "acme"
    entry = model.opset_import.add()
    entry.domain, entry.version = "acme", 1
    (folder / "bad.onnx").write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (truncated, "bad.onnx"),
        (not_onnx, "bad.onnx"),
        (empty, "bad.onnx"),
        (missing_data, "absent.bin"),
        (data_outside, "outside"),
        (unknown_operator, "StrangeRelu"),
    ],
)
@pytest.mark.parametrize("verb", ["inspect", "compress", "convert", "check"])
def test_a_broken_model_is_one_clear_message(
    small: Path, cli, spoil, words: str, verb: str
) -> None:
    spoil(small)
    more = {
        "inspect": (), "check": (small / "bad.onnx",),
        "compress": ("-o", small / "o.onnx", "--train", small / "train.npz"),
        "convert": ("-o", small / "o.onnx", "--format", "csr"),
    }[verb]  # fmt: skip
    if verb == "convert" and spoil is unknown_operator:
        pytest.skip("convert edits weights and needs no operator")
    code, out, err = cli(verb, small / "bad.onnx", *more)
    assert code == 2, out + err
    assert words in err
    assert "Traceback" not in err
    assert not (small / "o.onnx").exists()


def test_unknown_operators_are_all_named(small: Path, cli) -> None:
    unknown_operator(small)
    _, _, err = cli("inspect", small / "bad.onnx")
    assert "StrangeGemm" in err
    assert "StrangeRelu" in err
    assert "bad.onnx: 2 node(s)" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--train", "absent.npz"), "absent.npz: no such file"),
        (("--train", "train.npz", "--recipe", "none"), "recipe 'none': expected one of"),
        (("--train", "train.npz", "--config", "absent.toml"), "absent.toml: no such file"),
        (("--train", "train.npz", "--recipe", "dns2016-lenet5"), "name no layer"),
        (("--train", "train.npz", "--device", "tpu"), "tpu"),
        (("--train", "train.npz", "--eval", "bad.npz"), "bad.npz"),
        (("--shape", "x=8"), "data.shape: expected sizes for"),
        (("--shape", "8"), "--shape: expected NAME="),
    ],
)
def test_wrong_usage(small: Path, cli, monkeypatch, arguments: tuple, words: str) -> None:
    monkeypatch.chdir(small)
    (small / "bad.npz").write_bytes(b"no archive")
    code, _, err = cli("compress", "net.onnx", "-o", "o.onnx", *arguments)
    assert code == 2
    assert words in " ".join(err.split())
    assert "Traceback" not in err


def test_a_full_disk_leaves_the_old_file(small: Path, cli, monkeypatch: pytest.MonkeyPatch) -> None:
    (small / "o.onnx").write_bytes(b"the old file")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    code, _, err = cli("compress", small / "net.onnx", "-o", small / "o.onnx",
                       "--train", small / "train.npz", *FEW)  # fmt: skip
    assert code == 2
    assert "No space left on device" in err
    assert (small / "o.onnx").read_bytes() == b"the old file"
    assert not [p for p in small.iterdir() if p.suffix == ".tmp"]


def test_a_search_without_a_result_misses_what_was_asked(small: Path, cli) -> None:
    code, _, err = cli(
        "compress", small / "net.onnx", "-o", small / "none.onnx", "--train", small / "train.npz",
        "--iterations", 1, "--min-metric", 1.1,
    )  # fmt: skip
    assert code == 1
    assert "expected a trial within the budget" in err
    assert not (small / "none.onnx").exists()


def test_the_module_runs_as_the_command() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "dns_onnx", "--help"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0
    assert "compress" in result.stdout


def test_the_demo_data_and_net() -> None:
    pytest.importorskip("sklearn", reason="the demo's data come with scikit-learn")
    train, test = digits()
    assert (len(train), len(test)) == (1347, 450)
    onnx.checker.check_model(dense_model(0), full_check=True)
    assert settings(4).seed == 4


@pytest.mark.skipif(shutil.which("df") is None, reason="needs a POSIX system")
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_json_to_a_full_disk(small: Path, cli) -> None:
    code, _, err = cli("inspect", small / "net.onnx", "--json", "/dev/full")
    assert code == 2
    assert "No space left on device" in err
