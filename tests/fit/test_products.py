"""A layer's weight times what it meets is what the layer gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dns_onnx.fit.products import product


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


CALLS = [
    pytest.param(F.linear, [drawn(5, 4), drawn(3, 4), drawn(3)], 1, id="linear"),
    pytest.param(F.linear, [drawn(2, 5, 4), drawn(3, 4)], 1, id="linear of three axes, no bias"),
    pytest.param(torch.addmm, [drawn(3), drawn(5, 4), drawn(4, 3)], 2, id="addmm"),
    pytest.param(torch.mm, [drawn(5, 4), drawn(4, 3)], 1, id="mm"),
    pytest.param(torch.matmul, [drawn(2, 5, 4), drawn(4, 3)], 1, id="matmul, weight right"),
    pytest.param(torch.Tensor.matmul, [drawn(5, 4), drawn(4, 3)], 1, id="matmul as a method"),
    pytest.param(torch.matmul, [drawn(3, 4), drawn(2, 4, 5)], 0, id="matmul, weight left"),
    pytest.param(torch.matmul, [drawn(3, 4), drawn(4)], 0, id="matmul, weight left of a vector"),
    pytest.param(torch.matmul, [drawn(4), drawn(4, 3)], 1, id="matmul, weight right of a vector"),
    pytest.param(F.conv1d, [drawn(2, 4, 9), drawn(6, 4, 3), drawn(6), 2, 1], 1, id="conv 1-D"),
    pytest.param(F.conv2d, [drawn(2, 4, 7, 8), drawn(6, 4, 3, 2)], 1, id="conv 2-D, plain"),
    pytest.param(
        F.conv2d, [drawn(2, 4, 9, 8), drawn(6, 2, 3, 2), drawn(6), (2, 1), (1, 2), (2, 1), 2], 1,
        id="conv 2-D with everything",
    ),
    pytest.param(F.conv2d, [drawn(1, 4, 5, 5), drawn(4, 1, 3, 3), None, 1, 1, 1, 4], 1,
                 id="depthwise"),
    pytest.param(F.conv3d, [drawn(1, 2, 4, 5, 6), drawn(3, 2, 2, 3, 1), drawn(3)], 1,
                 id="conv 3-D"),
    pytest.param(F.conv_transpose1d, [drawn(2, 4, 6), drawn(4, 3, 3), drawn(3), 2, 1, 1], 1,
                 id="transposed 1-D"),
    pytest.param(
        F.conv_transpose2d,
        [drawn(2, 4, 5, 4), drawn(4, 3, 3, 2), drawn(6), (2, 3), (1, 0), (1, 2), 2, (2, 1)], 1,
        id="transposed 2-D with everything",
    ),
    pytest.param(F.conv_transpose3d, [drawn(1, 2, 3, 3, 3), drawn(2, 3, 2, 2, 2)], 1,
                 id="transposed 3-D"),
]  # fmt: skip


@pytest.mark.parametrize(("func", "args", "at"), CALLS)
def test_the_matrices_give_what_the_call_gives(
    func: Callable[..., Tensor], args: list[Any], at: int
) -> None:
    result = func(*args)
    found = product(func, args, at, result)
    assert found is not None
    some = torch.randperm(found.places, generator=torch.Generator().manual_seed(0))[:7]
    made = found.inputs(some) @ found.matrix(args[at]).transpose(1, 2)
    if found.bias is not None:
        made = made + found.bias.reshape(made.shape[0], 1, -1)
    torch.testing.assert_close(made, found.results(result, some), rtol=1e-4, atol=1e-5)
    assert torch.equal(found.tensor(found.matrix(args[at])), args[at])


@pytest.mark.parametrize(
    ("func", "args", "at"),
    [
        (torch.add, [drawn(3, 4), drawn(3, 4)], 1),
        (F.linear, [drawn(5, 4), drawn(3, 4)], 0),
        (torch.matmul, [drawn(2, 5, 4), drawn(2, 4, 3)], 1),
        (torch.addmm, [drawn(5, 3), drawn(5, 4), drawn(4, 3)], 2),
        (F.conv2d, [drawn(1, 1, 5, 5), drawn(1, 1, 3, 3), None, 1, "same"], 1),
    ],
    ids=["sum", "weight as input", "a weight for each row", "a bias for each row", "same"],
)
def test_other_calls_are_left_alone(func: Callable[..., Tensor], args: list[Any], at: int) -> None:
    assert product(func, args, at, func(*args)) is None
