"""What a search may lose."""

from __future__ import annotations

import math

import pytest

from dns_onnx.budget import DEFAULT_DROP, Budget
from dns_onnx.config import Target
from dns_onnx.runtime.metrics import metric


def budget(name: str = "accuracy", answers: int = 6000, **target: float) -> Budget:
    return Budget(Target(**target), metric(name), 0.99, answers)


@pytest.mark.parametrize(
    ("target", "value", "expected"),
    [
        pytest.param({"max_drop": 0.5}, 0.985, True, id="just within"),
        pytest.param({"max_drop": 0.5}, 0.9849, False, id="just beyond"),
        pytest.param({"max_drop": 0.0}, 0.99, True, id="nothing may be lost"),
        pytest.param({}, 0.989, True, id="default"),
        pytest.param({}, 0.9889, False, id="beyond the default"),
        pytest.param({"min_metric": 0.9}, 0.9, True, id="a metric"),
        pytest.param({"min_metric": 0.9}, 0.8999, False, id="below a metric"),
        pytest.param({"min_metric": 0.9, "max_drop": 0.5}, 0.95, False, id="both count"),
        pytest.param({"compression": 8.0}, 0.1, True, id="a size"),
        pytest.param({"max_drop": 0.5}, math.nan, False, id="no number"),
    ],
)
def test_what_holds(target: dict, value: float, expected: bool) -> None:
    assert budget(**target).holds(value) is expected


@pytest.mark.parametrize(
    ("target", "value", "error", "expected"),
    [
        pytest.param({"max_drop": 0.5, "margin": 1.0}, 0.986, 0.1, True, id="just within"),
        pytest.param({"max_drop": 0.5, "margin": 1.0}, 0.986, 0.11, False, id="just beyond"),
        pytest.param({"max_drop": 0.5, "margin": 2.0}, 0.986, 0.06, False, id="two of them"),
        pytest.param({"max_drop": 0.5}, 0.986, 9.9, True, id="no margin"),
        pytest.param({"max_drop": 0.5}, 0.986, math.inf, True, id="no margin, nothing known"),
        pytest.param({"max_drop": 0.5, "margin": 1.0}, 0.99, math.inf, False, id="nothing known"),
        pytest.param({"min_metric": 0.9, "margin": 1.0}, 0.901, 0.2, False, id="of a metric"),
        pytest.param({"min_metric": 0.9, "margin": 1.0}, 0.903, 0.2, True, id="above a metric"),
        pytest.param({"compression": 8.0, "margin": 1.0}, 0.1, math.inf, True, id="a size"),
    ],
)
def test_a_margin_is_what_chance_may_have_told(
    target: dict, value: float, error: float, expected: bool
) -> None:
    assert budget(**target).holds(value, error) is expected


def test_the_drop_and_what_it_is_worth() -> None:
    assert (budget().drop, budget().worth) == (DEFAULT_DROP, pytest.approx(6.0))
    assert budget(answers=0).worth is None
    assert budget(compression=8.0).drop is None
    assert budget(min_metric=0.9).drop is None
