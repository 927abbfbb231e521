"""Both files judged on the same rows: by labels, or against each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from dns_onnx.errors import DataError
from dns_onnx.runtime.judge import Judge, Judged


@pytest.fixture
def pair(small: Path) -> Path:
    """The small net, and a copy with its last layer 2 % larger and one hidden unit gone."""
    model = onnx.load(small / "net.onnx")
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor).copy()
        if tensor.name.startswith("fc2"):
            values *= np.float32(1.02)
        if tensor.name.startswith("fc1"):
            values[0] = 0
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, small / "other.onnx")
    return small


def judged(folder: Path, targets=None, **options) -> Judged:
    judge = Judge(folder / "net.onnx", folder / "other.onnx", **options)
    data = np.load(folder / "test.npz")
    for rows in np.array_split(np.arange(len(data["x"])), 3):
        judge.update({"x": data["x"][rows]}, None if targets is None else targets[rows])
    assert judge.rows == len(data["x"])
    found = judge.judged()
    assert found is not None
    return found


def outputs(folder: Path, name: str) -> np.ndarray:
    from dns_onnx.runtime import session

    x = np.load(folder / "test.npz")["x"]
    return session(folder / name, native=False).run(None, {"x": x})[0]


def test_labels_are_the_measure_where_there_are_any(pair: Path) -> None:
    labels = outputs(pair, "net.onnx").argmax(1)
    found = judged(pair, labels)
    right = (outputs(pair, "other.onnx").argmax(1) == labels).mean()
    assert (found.name, found.before, found.after) == ("accuracy", 1.0, right)
    assert found.said[2] == f"{100 * (1 - right):.2f} points"


def test_without_labels_the_original_is(pair: Path) -> None:
    before, after = outputs(pair, "net.onnx"), outputs(pair, "other.onnx")
    found = judged(pair)
    wanted = np.linalg.norm(after - before) / np.linalg.norm(before)
    assert (found.name, found.against, found.before) == ("relative-error", "original", 0.0)
    assert found.after == pytest.approx(wanted, rel=1e-5)
    same = judged(pair, wanted="agreement")
    assert same.after == pytest.approx((after.argmax(1) == before.argmax(1)).mean())


def test_inner_values_can_be_judged(pair: Path) -> None:
    found = judged(pair, outputs=["r"])
    assert 0 < found.after < 1
    with pytest.raises(DataError, match=r"expected values of the graph, got \['gone'\]"):
        Judge._open(_renamed(pair), {})


def _renamed(pair: Path) -> Judge:
    """A judge of a file that no longer computes what it is to be judged by."""
    model = onnx.load(pair / "net.onnx")
    model.graph.node[1].output[0] = model.graph.node[2].input[0] = "gone"
    onnx.save(model, pair / "net.onnx")
    return Judge(pair / "net.onnx", pair / "other.onnx", outputs=["gone"])


def test_inputs_of_other_names_are_told(pair: Path) -> None:
    judge = Judge(pair / "net.onnx", pair / "other.onnx")
    with pytest.raises(DataError, match=r"expected the model's inputs \['x'\], got \['image'\]"):
        judge.update({"image": np.zeros((1, 8), np.float32)}, None)
    with pytest.raises(DataError, match=r"does not run on inputs of shape \{'x': \[1, 7\]\}"):
        judge.update({"x": np.zeros((1, 7), np.float32)}, None)
