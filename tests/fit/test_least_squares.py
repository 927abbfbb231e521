"""Least squares within a mask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dns_onnx.fit import least_squares
from dns_onnx.fit.least_squares import NormalEquations, best_fit


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("places", [12, 60], ids=["fewer places than inputs", "more"])
def test_the_fit_is_the_least_squares_answer_within_the_mask(
    places: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(least_squares, "STEPS", 200)
    monkeypatch.setattr(least_squares, "ENOUGH", 1e-20)
    x, y = drawn(2, places, 20).double(), drawn(2, places, 3, seed=1).double()
    kept = drawn(2, 3, 20, seed=2) > 0
    weight = drawn(2, 3, 20, seed=3).double() * kept
    found = NormalEquations(x, y).solved(weight, kept, 0.01)
    assert not found[~kept].any()
    for g in range(2):
        damping = 0.01 * x[g].square().sum(0).mean()
        for o in range(3):
            part = x[g][:, kept[g, o]]
            left = y[g, :, o] - part @ weight[g, o, kept[g, o]]
            gram = part.T @ part + damping * torch.eye(part.shape[1], dtype=x.dtype)
            want = weight[g, o, kept[g, o]] + torch.linalg.solve(gram, part.T @ left)
            torch.testing.assert_close(found[g, o, kept[g, o]], want)


def test_inputs_that_are_always_zero_leave_the_weights_as_they_were() -> None:
    weight, kept = drawn(1, 2, 3), torch.ones(1, 2, 3, dtype=torch.bool)
    found = NormalEquations(torch.zeros(1, 5, 3), drawn(1, 5, 2)).solved(weight, kept, 0.01)
    assert torch.equal(found, weight)


def test_a_fit_is_taken_only_where_it_does_better_on_other_places() -> None:
    weight, kept = drawn(1, 2, 8), torch.ones(1, 2, 8, dtype=torch.bool)
    kept[0, 0, 1] = kept[0, 1, 5] = False
    x = drawn(1, 50, 2, seed=2) @ drawn(1, 2, 8, seed=3)  # inputs with much in common
    y = x @ weight.transpose(1, 2)

    def error(w: Tensor) -> float:
        return float((x @ w.transpose(1, 2) - y).norm())

    found = best_fit(x, y, weight * kept, kept)
    assert found is not None
    assert not found[~kept].any()
    assert error(found) < 0.1 * error(weight * kept)
    assert best_fit(x, drawn(1, 50, 2, seed=4), torch.zeros_like(weight), kept) is None
    assert best_fit(x[:, :1], y[:, :1], weight, kept) is None
