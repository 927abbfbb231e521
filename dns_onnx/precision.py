"""Mixed precision: half the bits in the forward and backward pass, float32 in the weights."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

Name = Literal["float32", "bfloat16", "float16"]


class Precision:
    """How a training step computes.

    The weights, their momenta, the thresholds and the masks stay float32.  In float16 the loss is
    scaled, so that small gradients do not vanish, and a step whose gradients overflow is skipped.

    scaler: of the loss; it does nothing but in float16.
    """

    def __init__(self, name: Name, device: torch.device) -> None:
        self.device = device
        self.dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(name)
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "float16")

    def context(self) -> AbstractContextManager[Any]:
        """What a forward pass runs in."""
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def backward(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """The gradients of the loss, in its own scale; zero where they overflowed."""
        self.scaler.scale(loss).backward()
        if not self.scaler.is_enabled():
            return
        self.scaler.unscale_(optimizer)  # which also takes note of overflows, and skips the step
        for group in optimizer.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.grad.nan_to_num_(0.0, 0.0, 0.0)

    def state(self) -> dict[str, Any]:
        """The scale, for a checkpoint."""
        return self.scaler.state_dict()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take the scale back."""
        self.scaler.load_state_dict(dict(state))
