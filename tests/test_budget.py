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
    ("name", "target", "value", "error", "expected"),
    [
        ("accuracy", {"max_drop": 0.5, "margin": 1.0}, 0.986, 0.001, True),
        ("accuracy", {"max_drop": 0.5, "margin": 1.0}, 0.986, 0.0011, False),
        ("accuracy", {"max_drop": 0.5, "margin": 2.0}, 0.986, 0.0006, False),
        ("accuracy", {"max_drop": 0.5}, 0.986, 9.9, True),
        ("accuracy", {"max_drop": 0.5}, 0.986, math.inf, True),
        ("accuracy", {"max_drop": 0.5, "margin": 1.0}, 0.99, math.inf, False),
        ("accuracy", {"min_metric": 0.9, "margin": 1.0}, 0.901, 0.002, False),
        ("accuracy", {"min_metric": 0.9, "margin": 1.0}, 0.903, 0.002, True),
        ("mse", {"min_metric": 4.0, "margin": 1.0}, 3.2, 0.4, True),
        ("mse", {"min_metric": 4.0, "margin": 1.0}, 3.2, 0.9, False),
        ("mse", {"max_drop": 10, "margin": 1.0}, 1.05, 0.03, True),
        ("mse", {"max_drop": 10, "margin": 1.0}, 1.05, 0.05, False),
    ],
)
def test_a_margin_is_what_chance_may_have_told(
    name: str, target: dict, value: float, error: float, expected: bool
) -> None:
    """Errors have the unit of the metric."""
    assert budget(name, **target).holds(value, error) is expected


def test_the_drop_and_what_it_is_worth() -> None:
    assert (budget().drop, budget().worth) == (DEFAULT_DROP, pytest.approx(6.0))
    assert budget(answers=0).worth is None
    assert budget(compression=8.0).drop is None
    assert budget(min_metric=0.9).drop is None
