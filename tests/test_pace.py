"""How long a trial trains, and how far it goes."""

from __future__ import annotations

import pytest

from dns_onnx.config import parse_config
from dns_onnx.pace import LEAST_GROWTH, doublings, first_guess, in_time, next_growth


@pytest.mark.parametrize(
    ("rows", "given", "iterations"),
    [(54_000, None, 8000), (7200, None, 6780), (40, None, 250), (54_000, 123, 123)],
)
def test_iterations_follow_from_the_rows(rows: int, given: int | None, iterations: int) -> None:
    train = {"iterations": given} if given else {}
    assert first_guess(parse_config({"train": train}, "test"), rows) == iterations


@pytest.mark.parametrize(("seconds", "iterations"), [(0.1, 8000), (0.2, 4000), (9.0, 250)])
def test_slow_nets_get_fewer_iterations(seconds: float, iterations: int) -> None:
    assert in_time(8000, seconds) == iterations


def test_where_even_four_times_the_iterations_fit_a_search_may_double_twice() -> None:
    assert doublings(8000, 0.02) == 2
    assert doublings(8000, 0.04) == 1
    assert doublings(250, 0.04) == 2


@pytest.mark.parametrize(
    ("reached", "growth"),
    [([1.0], LEAST_GROWTH), ([2.25], 1.5), ([25.0], 4.0), ([1.5, 2.25], 2.25), ([2.0, 8.0], 4.0),
     ([1.1, 1.32], 1.44)],
)  # fmt: skip
def test_steps_grow_from_what_cuts_alone_reach(reached: list[float], growth: float) -> None:
    assert next_growth(reached, 4.0) == pytest.approx(growth)
