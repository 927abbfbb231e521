"""The log of a run: what it counts, and that a resumed run writes the same one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from dns_onnx import compress
from dns_onnx.config import parse_config
from dns_onnx.errors import ConfigError
from dns_onnx.journal import Change, Journal, Patience, Progress, packed, unpacked
from dns_onnx.masks import Masked
from dns_onnx.surgery import LayerSurgery, Schedule, Surgery

CONFIG = {
    "data": {"batch": 16, "holdout": 0.2},
    "train": {"iterations": 120, "eval_every": 40, "log_every": 20},
    "solver": {"lr": 0.05, "policy": "fixed"},
    "surgery": {"c_rate": 0.8, "iter_stop": 100, "gamma": 1e-3},
}


def surgery_of(*masks: list[bool]) -> Surgery:
    """A layer of a weight and a bias with these masks."""
    tensors = []
    for i, mask in enumerate(masks):
        holder = Masked(f"t{i}", torch.ones(len(mask)))
        holder.attach_mask(torch.tensor(mask))
        tensors.append(holder)
    return Surgery([LayerSurgery("layer", tensors, Schedule(1.0))], seed=0)


def set_masks(surgery: Surgery, *masks: list[bool]) -> None:
    for tensor, mask in zip(surgery.layers[0].tensors, masks, strict=True):
        tensor.mask.copy_(torch.tensor(mask))


def test_a_look_counts_what_changed_since_the_look_before(tmp_path: Path) -> None:
    surgery = surgery_of([True] * 6, [True, False])
    journal = Journal(surgery, tmp_path, torch.device("cpu"))
    for loss in (1.0, 2.0):
        journal.add(torch.tensor(loss))
    set_masks(surgery, [True, True, False, False, False, True], [False, True])
    assert journal.look(2) == (1.5, {"t0": Change(kept=4, cut=4, spliced=1, returned=1)})
    journal.add(torch.tensor(5.0))
    set_masks(surgery, [True, True, True, True, False, False], [False, True])
    assert journal.look(3) == (5.0, {"t0": Change(kept=5, cut=1, spliced=2, returned=3)})
    journal.add(torch.tensor(0.0))
    assert journal.look(4) == (0.0, {"t0": Change(kept=5, cut=0, spliced=0, returned=3)})


def test_a_journal_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    surgery = surgery_of([True] * 9)
    journal = Journal(surgery, tmp_path, torch.device("cpu"))
    set_masks(surgery, [True] * 4 + [False] * 5)
    journal.look(1)
    set_masks(surgery, [False] * 4 + [True] * 5)
    journal.add(torch.tensor(3.0))
    other = Journal(surgery, tmp_path, torch.device("cpu"))
    other.load(journal.tensors(), journal.state())
    assert other.look(2) == journal.look(2) == (3.0, {"t0": Change(5, 4, 5, 5)})


@pytest.mark.parametrize("shape", [(1,), (8,), (3, 5), (2, 3, 3)], ids=str)
def test_masks_survive_as_bits(shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) > 0.5
    bits = packed(mask)
    assert bits.numel() == -(-mask.numel() // 8)
    assert torch.equal(unpacked(bits, mask), mask)


def test_notes_come_where_something_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    said: list[str] = []
    doing = Patience(lambda note: said.append(note.said))
    for now in (1.0, 9.0, 10.0, 11.0, 25.0):
        doing(f"at {now:g}")
    assert said == ["at 10 ...", "at 25 ..."]


def looks(folder: Path) -> list[dict]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def train(
    folder: Path, run: str, stop_at: int | None = None, checkpoint_seconds: float = 30, **options
) -> None:
    values = {**CONFIG, "train": {**CONFIG["train"], "checkpoint_seconds": checkpoint_seconds}}

    def observe(p: Progress) -> None:
        if p.iteration == stop_at:
            raise KeyboardInterrupt  # the newest checkpoint is then of the iteration before

    compress(
        folder / "net.onnx", folder / "out.onnx", train=f"{folder}/train.npz",
        config=parse_config(values, "test"), run_dir=folder / run, observe=observe,
        bench_seconds=0.01, **options,
    )  # fmt: skip


def test_the_log_of_a_run(small: Path) -> None:
    train(small, "run")
    found = looks(small / "run")
    assert [look["iteration"] for look in found] == [20, 40, 60, 80, 100, 120]
    assert [look["value"] is None for look in found] == [True, False] * 3
    size = {"fc1.w": 8 * 32 + 32, "fc2.w": 4 * 32 + 4}
    kept = dict(size)
    for look in found:
        assert look["layers"].keys() == size.keys()
        for name, layer in look["layers"].items():
            kept[name] += layer["spliced"] - layer["cut"]
            assert layer["kept"] == kept[name]
            assert 0 <= layer["returned"] <= layer["kept"]
        assert look["kept"] == sum(kept.values())
    assert sum(layer["spliced"] for look in found for layer in look["layers"].values()) > 0
    frozen = found[-1]["layers"].values()
    assert {(layer["cut"], layer["spliced"]) for layer in frozen} == {(0, 0)}


def test_events_and_log_of_a_stopped_and_resumed_run(small: Path) -> None:
    train(small, "whole")
    often = {"checkpoint_seconds": 1e-6, "tensorboard": small / "events"}
    with pytest.raises(KeyboardInterrupt):
        train(small, "cut", stop_at=60, **often)
    assert len(looks(small / "cut")) == 3
    train(small, "cut", resume=True, **often)
    assert looks(small / "cut") == looks(small / "whole")

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(small / "events"), {"histograms": 0})
    events.Reload()
    for i, look in enumerate(looks(small / "whole")):
        layer = look["layers"]["fc1.w"]
        for tag, value in (("loss", look["loss"]), ("spliced/fc1.w", layer["spliced"])):
            scalar = events.Scalars(tag)[i]
            assert scalar.step == look["iteration"]
            assert scalar.value == pytest.approx(value)
    assert [e.step for e in events.Scalars("loss")] == [20, 40, 60, 80, 100, 120]
    assert [e.step for e in events.Scalars("accuracy")] == [40, 80, 120]
    histograms = events.Histograms("weights/fc1.w")
    assert [e.step for e in histograms] == [40, 80, 120]
    assert histograms[-1].histogram_value.num < 8 * 32


def test_events_without_tensorboard_are_refused_before_training(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"--tensorboard: .*pip install 'dns-onnx\[tensorboard\]"):
        train(small, "run", tensorboard=small / "events")
    assert not (small / "run").exists()
