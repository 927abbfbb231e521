"""Holders of ONNX initializers in the training graph, with a mask where surgery wants one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class StraightThroughGate(torch.autograd.Function):
    """`W * T`, with the whole gradient passed on to `W`.

    The gradient of the loss in `W * T` reaches cut entries too; without it a connection that was
    cut could never grow back.  Source: Guo, Yao, Chen (2016), equation 4.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor) -> Tensor:
        return weight * mask

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class Masked(nn.Module):
    """One ONNX initializer: a dense parameter and, once surgery attaches it, a bool mask.

    Called without arguments it returns the effective weight, `weight * mask` (or `weight` itself
    while there is no mask).  A weight that several nodes use has one holder.

    name: the ONNX initializer name, the only key from the input file to the output file.
    weight: the dense values, in the initializer's shape and dtype.
    mask: bool, same shape, True = kept; updated in place; None = not under surgery.
    """

    weight: nn.Parameter
    mask: Tensor | None

    def __init__(self, name: str, weight: Tensor, *, trainable: bool = True) -> None:
        super().__init__()
        self.name = name
        self.weight = nn.Parameter(weight, requires_grad=trainable)
        self.register_buffer("mask", None)

    def attach_mask(self, mask: Tensor | None = None) -> None:
        """Put the weight under surgery; without a mask given, every entry starts kept."""
        if mask is None:
            mask = torch.ones_like(self.weight, dtype=torch.bool)
        if mask.shape != self.weight.shape or mask.dtype != torch.bool:
            raise ValueError(
                f"mask of '{self.name}': expected bool {tuple(self.weight.shape)}, "
                f"got {mask.dtype} {tuple(mask.shape)}"
            )
        self.mask = mask.to(self.weight.device)

    def forward(self) -> Tensor:
        if self.mask is None:
            return self.weight
        effective: Tensor = StraightThroughGate.apply(self.weight, self.mask)
        return effective

    def effective(self) -> Tensor:
        """The weight as the exported model will hold it, detached: `weight * mask`."""
        return self().detach()

    def extra_repr(self) -> str:
        kept = "" if self.mask is None else f", kept={int(self.mask.sum())}"
        return f"{self.name!r}, {tuple(self.weight.shape)}{kept}"


def holders(module: nn.Module) -> dict[str, Masked]:
    """Every initializer holder below `module`, by ONNX initializer name, in graph order."""
    return {m.name: m for m in module.modules() if isinstance(m, Masked)}
