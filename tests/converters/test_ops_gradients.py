"""Gradients to data and weights in every schema version, against central differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from dns_onnx.converters.dtypes import to_torch
from dns_onnx.converters.importer import import_model
from dns_onnx.converters.registry import registered
from dns_onnx.masks import holders

from .cases import TABLE, Row

STEP = 1e-6


def _differentiable(row: Row) -> list[int]:
    """The operands that a gradient should reach: floats that are neither static nor statistics."""
    entry = registered().get(("", row.name, row.version))
    if entry is None or not entry.differentiable:
        return []
    apart = entry.static | entry.literal | entry.statistics | entry.constant
    floating = [
        i
        for i, a in enumerate(row.case.inputs)
        if a is not None and np.asarray(a).dtype.kind == "f" and np.asarray(a).size
    ]
    reached = [i for i in floating if entry.graph or entry.operand(i) not in apart]
    return [i for i in reached if i not in row.case.idle]


ROWS = {key: row for key, row in TABLE.items() if _differentiable(row)}


def _prepared(row: Row) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """A random projection of the outputs, and the operands and weights that it depends on."""
    model, feeds = row.model()
    module = import_model(model).double()
    given = [to_torch(np.array(feed)) for feed in feeds]
    values = [v.double() if v.is_floating_point() else v for v in given]
    fed = [i for i, a in enumerate(row.case.inputs) if a is not None and i not in row.case.held]
    held, wanted = holders(module), _differentiable(row)
    points = [values[fed.index(i)] for i in wanted if i in fed]
    points += [held[f"x{i}"].weight for i in wanted if i in row.case.held]
    # the weights that stand in the bodies of control flow
    points += [holder.weight for name, holder in held.items() if name == "w"]

    def total() -> Tensor:
        result = module(*values)
        parts = result if isinstance(result, tuple) else (result,)
        draws = np.random.default_rng(1)
        floating = [p for p in parts if p.is_floating_point() and p.requires_grad]
        terms = [(p * torch.from_numpy(draws.normal(size=p.shape))).sum() for p in floating]
        return torch.stack(terms).sum()

    return total, [point.requires_grad_() for point in points]


def _moved(points: Sequence[Tensor], directions: Sequence[Tensor], size: float) -> None:
    with torch.no_grad():
        for point, direction in zip(points, directions, strict=True):
            point += size * direction


@pytest.mark.parametrize("key", ROWS)
def test_the_gradient_is_the_slope_along_a_random_direction(key: str) -> None:
    total, points = _prepared(ROWS[key])
    total().backward()
    draws = np.random.default_rng(0)
    directions = [torch.from_numpy(draws.normal(size=p.shape)) for p in points]
    slope = 0.0
    for point, direction in zip(points, directions, strict=True):
        assert point.grad is not None
        assert bool((point.grad != 0).any())
        slope += float((point.grad * direction).sum())
    _moved(points, directions, STEP)
    above = total().item()
    _moved(points, directions, -2 * STEP)
    below = total().item()
    np.testing.assert_allclose(slope, (above - below) / (2 * STEP), rtol=1e-4, atol=1e-5)
