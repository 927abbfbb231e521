"""Rows into a model and back, whatever axis counts them."""

from __future__ import annotations

import numpy as np
import pytest

from dns_onnx.errors import DataError
from dns_onnx.runtime.batching import Feeding, feeding


@pytest.mark.parametrize(
    ("shapes", "axes", "piece"),
    [
        ([["n", 8]], (0,), None),
        ([[1, 3, 32, 32]], (0,), 1),
        ([[4, 3], [4, 2]], (0, 0), 4),
        ([None], (0,), None),
        ([["?", "?"], [2, "?", 128], []], (0, 1, None), None),  # silero_vad
        ([["batch", "t"], [2, "batch", 128]], (0, 1), None),
        ([[1, 257, 1, 2], [2, 1, 16, 16, 33]], (0, None), 1),  # gtcrn
        ([["unk__1", 4], ["unk__2", 5]], (0, 0), None),  # tf2onnx names every axis anew
        ([["n", 4], [3, "t"]], (0, None), None),
        ([["T", "B", 16], ["B"], [2, "B", 24]], (1, 0, 1), None),  # a sequence, time first
        ([[10, "batch_size", 12]], (1,), None),
        ([[1, "n", 3]], (0,), 1),
    ],
)
def test_the_axis_that_counts_rows(shapes: list, axes: tuple, piece: int | None) -> None:
    assert feeding(shapes) == Feeding(axes, piece)


@pytest.mark.parametrize("rows", [1, 3, 4, 9])
def test_pieces_are_joined_to_what_the_whole_would_give(rows: int) -> None:
    seen = []

    def compute(arrays: list) -> list:
        seen.append(len(arrays[0]))
        return [arrays[0] * 2, [int(v) for v in arrays[0][:, 0]]]

    x = np.arange(2 * rows).reshape(rows, 2)
    doubled, firsts = Feeding((0,), 3).run(compute, [x])
    assert np.array_equal(doubled, 2 * x)
    assert firsts == x[:, 0].tolist()
    assert set(seen) == {3}


def test_a_state_is_moved_to_its_axis_and_a_constant_given_once() -> None:
    def compute(arrays: list) -> list:
        assert [a.shape for a in arrays] == [(5, 7), (2, 5, 3), ()]
        return arrays[:1]

    how = Feeding((0, 1, None), None)
    how.run(compute, [np.zeros((5, 7)), np.zeros((5, 2, 3)), np.array([16000])])


def test_whole_inputs_of_each_row_go_in_one_at_a_time() -> None:
    def compute(arrays: list) -> list:
        x, state = arrays
        return [x + state.sum(), state]

    x, states = np.zeros((3, 1)), np.arange(6.0).reshape(3, 2, 1)
    total, back = Feeding((0, None), None).run(compute, [x, states])
    assert total[:, 0].tolist() == [1, 5, 9]
    assert np.array_equal(back, states)
    with pytest.raises(DataError, match="one value for all 2 rows"):
        Feeding((0, None), 2).run(compute, [x, states])


def test_model_inputs_become_rows_and_go_back() -> None:
    how = Feeding((0, 1, None), None)
    given = {"x": np.ones((1, 4)), "state": np.ones((2, 1, 3)), "rate": np.array(8000)}
    rows = how.rows(given)
    assert [r.shape for r in rows.values()] == [(1, 4), (1, 2, 3), (1,)]
    back = how.first(rows, list(given))
    assert all(np.array_equal(back[n], given[n]) for n in given)
