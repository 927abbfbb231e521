from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from dns_onnx.errors import DataError
from dns_onnx.runtime import metrics


@pytest.mark.parametrize(
    ("size", "nnz", "bits", "expected"),
    [
        (1000, 500, 32, (1000 + 500 * 32) / 8),  # one bit an entry where half is kept
        (1000, 0, 32, 0.0),
        (1000, 1000, 16, 2000.0),
        (0, 0, 32, 0.0),
        (100_000, 1000, 32, (100_000 * 0.0807931 + 32_000) / 8),
    ],
)
def test_entropy_bound(size: int, nnz: int, bits: int, expected: float) -> None:
    assert metrics.entropy_bound(size, nnz, bits) == pytest.approx(expected, rel=1e-5)


def test_gzip_bytes_is_the_size_of_a_gzip_file() -> None:
    pieces = [bytes(1000), np.random.default_rng(0).bytes(500), bytes(3000)]
    assert metrics.gzip_bytes(pieces) == len(gzip.compress(b"".join(pieces), 6))


@pytest.mark.parametrize("rows", [1, 3, 4, 9])
def test_pieces_are_joined_to_what_the_whole_would_give(rows: int) -> None:
    seen = []

    def compute(inputs):
        seen.append(len(inputs["x"]))
        return [inputs["x"] * 2, [int(v) for v in inputs["x"][:, 0]]]

    x = np.arange(2 * rows).reshape(rows, 2)
    doubled, firsts = metrics.in_pieces(compute, {"x": x}, 3)
    assert np.array_equal(doubled, 2 * x)
    assert firsts == x[:, 0].tolist()
    assert set(seen) == {3}


@pytest.fixture
def session(small: Path) -> ort.InferenceSession:
    model = onnx.load(small / "net.onnx")
    model.graph.output.append(onnx.helper.make_tensor_value_info("h", 1, ["n", 32]))
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def test_error_rate_counts_wrong_rows_of_the_chosen_output(session: ort.InferenceSession) -> None:
    x = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
    y, h = session.run(["y", "h"], {"x": x})
    labels = y.argmax(1)
    labels[:10] = (labels[:10] + 1) % 4
    halves = [({"x": x[:20]}, labels[:20]), ({"x": x[20:]}, labels[20:])]
    assert metrics.error_rate(session, halves) == (0.25, 40)
    assert metrics.error_rate(session, [({"x": x}, h.argmax(1))], "h") == (0.0, 40)
    with pytest.raises(DataError, match="expected an output of the model"):
        metrics.error_rate(session, halves, "nowhere")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((2, 1), np.int64), r"expected class numbers of shape \[N\]"),
        (np.array([0.0, 1.0]), "expected class numbers"),
        (np.array([0, 4]), "expected 0 to 3"),
        (np.array([-1, 0]), "expected 0 to 3"),
    ],
)
def test_labels_that_are_no_classes_are_refused(
    session: ort.InferenceSession, labels: np.ndarray, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        metrics.error_rate(session, [({"x": np.zeros((2, 8), np.float32)}, labels)])
