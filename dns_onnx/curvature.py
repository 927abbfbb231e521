"""How much the loss would mind a cut, where the original model teaches.

At the original's own weights that loss is zero and so is its gradient, which then tells no layer
from another.  Its curvature does, and targets drawn at random show it: where the model's own
outputs are drawn from as if they were distributions, the squared gradients of the drawn loss are,
on average, the diagonal of the curvature (Fisher, or Gauss-Newton) of the loss to the teacher.

Source: Martens, "New Insights and Perspectives on the Natural Gradient Method", JMLR 2020,
section 5 and 9 (targets come from the model's distribution, not from the data).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dns_onnx import distributed
from dns_onnx.converters.heads import Head
from dns_onnx.masks import Masked

LARGE = torch.finfo(torch.float32).max / 2


def drawn_loss(outputs: Sequence[Tensor], heads: Sequence[Head]) -> Tensor:
    """A random scalar whose squared gradients average to the curvature of the teacher's loss.

    outputs: the values at the heads, any shapes.  Class scores, and scores before a Sigmoid: minus
    the log-likelihood of classes drawn from them.  Numbers: their product with normal noise, in
    units of their root mean square.  Each over the square root of the number of draws.
    """
    return torch.stack([_drawn(y.float(), h) for y, h in zip(outputs, heads, strict=True)]).sum()


def _drawn(y: Tensor, head: Head) -> Tensor:
    if head.kind != "values":  # nothing is drawn from NaN; that it is there, the loss will tell
        y = y.nan_to_num(0.0, LARGE, -LARGE)
    if head.kind == "classes":
        logs = y.movedim(head.axis, -1).flatten(0, -2).log_softmax(-1)
        chosen = torch.multinomial(logs.detach().exp(), 1)
        return -logs.gather(1, chosen).sum() / math.sqrt(len(logs))
    if head.kind == "probabilities":
        drawn = torch.bernoulli(y.detach().sigmoid())
        total = F.binary_cross_entropy_with_logits(y, drawn, reduction="sum")
        return total / math.sqrt(y.numel())
    finite = torch.where(y.isfinite(), y, 0.0)
    size = finite.detach().square().mean().sqrt().clamp_min(torch.finfo(torch.float32).tiny)
    noise = torch.randn_like(finite) * math.sqrt(2.0 / y.numel())
    return (finite * noise).sum() / size


def put_gradients(loss: Tensor, held: Iterable[Masked]) -> None:
    """Put the gradients of a loss into the weights' `.grad`; of many processes, the mean of all."""
    weights = [h.weight for h in held if h.weight.requires_grad]
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    for weight, gradient in zip(weights, found, strict=True):
        weight.grad = None if gradient is None else distributed.mean(gradient)
