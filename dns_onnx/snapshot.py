"""The weights and masks of a run, taken aside and put back."""

from __future__ import annotations

import torch
from torch import Tensor

from dns_onnx import distributed
from dns_onnx.journal import packed, unpacked
from dns_onnx.masks import whole
from dns_onnx.train import Run


def taken(run: Run) -> dict[str, Tensor]:
    """Weights and masks, copied to the CPU; masks as bits."""
    found = {}
    for name, holder in run.weights.items():
        weight = whole(holder.weight.detach()).cpu()  # may lie channels-last
        found[f"weight.{name}"] = weight.clone(memory_format=torch.contiguous_format)
        if holder.mask is not None:
            found[f"mask.{name}"] = packed(whole(holder.mask))
    return found


@torch.no_grad()
def put_back(run: Run, state: dict[str, Tensor]) -> None:
    """Make weights and masks what they were when they were taken."""
    for name, holder in run.weights.items():
        holder.weight.copy_(distributed.like(state[f"weight.{name}"], holder.weight))
        if holder.mask is not None:
            mask = unpacked(state[f"mask.{name}"], holder.mask)
            holder.mask.copy_(distributed.like(mask, holder.mask))
