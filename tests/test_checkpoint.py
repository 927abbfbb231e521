from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dns_onnx import checkpoint
from dns_onnx.errors import CheckpointError


def test_round_trip_keeps_every_bit(tmp_path: Path) -> None:
    tensors = {
        "weight": torch.randn(3, 2).t(),
        "mask": torch.tensor([True, False]),
        "rng": torch.get_rng_state(),
        "tied": torch.ones(2),
    }
    tensors["tied_too"] = tensors["tied"]
    checkpoint.save(tmp_path, 7, tensors, {"surgery": {"a": {"mu": 0.1, "std": None}}})
    found = checkpoint.latest(tmp_path)
    assert found.iteration == 7
    assert found.state["surgery"] == {"a": {"mu": 0.1, "std": None}}
    assert all(torch.equal(found.tensors[k], v) for k, v in tensors.items())


def test_only_the_newest_stays(tmp_path: Path) -> None:
    for i in (1, 2, 10):
        checkpoint.save(tmp_path, i, {"w": torch.tensor([float(i)])}, {})
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000010"]


def test_the_same_iteration_may_be_saved_again(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        checkpoint.save(tmp_path, 5, {"w": torch.tensor([value])}, {})
    assert checkpoint.latest(tmp_path).tensors["w"].item() == 2.0


def test_none_where_there_is_none(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "absent") is None
    assert checkpoint.latest(tmp_path) is None


def test_an_unfinished_checkpoint_is_not_taken(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 3, {"w": torch.ones(1)}, {})
    draft = tmp_path / ".step-000000009.draft"
    draft.mkdir()
    (draft / "tensors.safetensors").write_bytes(b"half")
    assert checkpoint.latest(tmp_path).iteration == 3


def test_full_disk_keeps_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, 3, {"w": torch.ones(1)}, {})

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(CheckpointError, match="No space left on device; free some space"):
        checkpoint.save(tmp_path, 4, {"w": torch.zeros(1)}, {})
    assert checkpoint.latest(tmp_path).iteration == 3
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000003"]


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json"])
def test_damage_is_named(tmp_path: Path, file: str) -> None:
    checkpoint.save(tmp_path, 3, {"w": torch.ones(4)}, {})
    path = tmp_path / "step-000000003" / file
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="step-000000003: unreadable"):
        checkpoint.latest(tmp_path)


def test_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    checkpoint.save(tmp_path, 3, {"w": torch.ones(4)}, {})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="expected checkpoint format 2, got 99"):
        checkpoint.latest(tmp_path)
