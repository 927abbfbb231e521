"""Holders of ONNX initializers in the training graph, with a mask where surgery wants one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

CACHE_CHUNK = 1 << 16  # entries: the float32 passes over a chunk stay inside a core's L2 cache


class _Scratch(threading.local):
    """Buffers for a chunk, one set a thread: new ones would be mapped page by page, each time."""

    def __init__(self) -> None:
        self.floats = np.empty(CACHE_CHUNK, np.float32)
        self.flags = np.empty(CACHE_CHUNK, np.bool_)


SCRATCH = _Scratch()


class StraightThroughGate(torch.autograd.Function):
    """`W * T`, with the whole gradient passed on to `W`.

    The gradient of the loss in `W * T` reaches cut entries too; without it a connection that was
    cut could never grow back.  The product comes ready made, so that it can be kept.
    Source: Guo, Yao, Chen (2016), equation 4.
    """

    @staticmethod
    def forward(weight: Tensor, product: Tensor) -> Tensor:
        return product.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing to remember."""

    @staticmethod
    def vmap(info: Any, axes: Any, weight: Tensor, product: Tensor) -> tuple[Tensor, None]:
        """One weight for all rows that a graph is mapped over."""
        gated: Tensor = StraightThroughGate.apply(weight, product)  # type: ignore[no-untyped-call]
        return gated, None

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class Masked(nn.Module):
    """One ONNX initializer: a dense parameter and, once surgery attaches it, a bool mask.

    Called without arguments it returns the effective weight, `weight * mask` (or `weight` itself
    while there is no mask).  On the CPU that product lives in one buffer, written again at each
    call: allocating it anew each iteration costs more than the multiplication.  A weight that
    several nodes use has one holder.

    name: the ONNX initializer name, the only key from the input file to the output file.
    weight: the dense values, in the initializer's shape and dtype.
    mask: bool, same shape, True = kept; updated in place; None = not under surgery.
    """

    name: str
    weight: nn.Parameter
    mask: Tensor | None
    _product: Tensor | None
    _made_from: tuple[int, ...]

    def __init__(self, name: str, weight: Tensor, *, trainable: bool = True) -> None:
        super().__init__()
        # past nn.Module's own door, which is slow, as a net may have thousands of initializers
        self.__dict__.update(name=name, _product=None, _made_from=())
        self._parameters["weight"] = nn.Parameter(weight, requires_grad=trainable)
        self._buffers["mask"] = None

    def attach_mask(self, mask: Tensor | None = None) -> None:
        """Put the weight under surgery; without a mask given, every entry starts kept."""
        if mask is None:
            mask = torch.ones_like(self.weight, dtype=torch.bool)
        if mask.shape != self.weight.shape or mask.dtype != torch.bool:
            raise ValueError(
                f"mask of '{self.name}': expected bool {tuple(self.weight.shape)}, "
                f"got {mask.dtype} {tuple(mask.shape)}"
            )
        mask = mask.to(self.weight.device)
        if mask.stride() != self.weight.stride():  # weights may lie channels-last
            mask = torch.empty_like(self.weight, dtype=torch.bool).copy_(mask)
        self.mask = mask

    def forward(self) -> Tensor:
        if self.mask is None:
            return self.weight
        product = self._current(self.mask)
        gated: Tensor = StraightThroughGate.apply(  # type: ignore[no-untyped-call]
            self.weight, product
        )
        return gated

    def effective(self) -> Tensor:
        """The weight as the exported model will hold it, a copy: `weight * mask`."""
        weight = whole(self.weight.detach())
        return weight.clone() if self.mask is None else weight * whole(self.mask)

    def _current(self, mask: Tensor) -> Tensor:
        """`weight * mask`, made anew."""
        weight = self.weight.detach()
        if weight.device.type != "cpu" or torch.compiler.is_compiling() or is_divided(mask):
            return weight * whole(mask)
        made_from = (weight._version, mask._version)
        if self._product is None or self._product.dtype != weight.dtype:
            self._product = torch.empty_like(weight)
        # Several forwards may go before one backward (micro-batches).  The same values again are
        # no change, so they go in past autograd's watch (.data); other values must not, or a
        # backward that still needs the old ones would take them unseen.  (Fused optimizers do not
        # raise versions, which is why the versions cannot decide whether to write at all.)
        unchanged = self._made_from == made_from
        multiply(weight, mask, out=self._product.data if unchanged else self._product)
        self._made_from = made_from
        return self._product

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_product": None, "_made_from": ()}

    def extra_repr(self) -> str:
        kept = "" if self.mask is None else f", kept={int(self.mask.sum())}"
        return f"{self.name!r}, {tuple(self.weight.shape)}{kept}"


def whole(value: Tensor) -> Tensor:
    """All of a tensor; one that lies in parts on many processes (a DTensor) is brought together."""
    found: Tensor = value.full_tensor() if is_divided(value) else value  # type: ignore[attr-defined]
    return found


def local(value: Tensor) -> Tensor:
    """This process's part of a tensor, a view."""
    found: Tensor = value.to_local() if is_divided(value) else value  # type: ignore[attr-defined]
    return found


def is_divided(value: Tensor) -> bool:
    """Whether the tensor lies in parts on many processes; asked so that DTensor is not imported."""
    return hasattr(value, "full_tensor")


def multiply(weight: Tensor, mask: Tensor, *, out: Tensor) -> None:
    """`out = weight * mask`.

    weight, out: float, any shape, on the CPU.  mask: bool, same shape.
    NumPy converts bools on the way, faster than torch does.  It has no bfloat16: there the mask
    goes through a small buffer, as multiplying floats by bools is five times slower.
    """
    if weight.dtype != torch.bfloat16:
        with np.errstate(invalid="ignore"):  # infinity that is cut: a run that diverges tells
            np.multiply(weight.numpy(), mask.numpy(), out=out.numpy())
        torch.autograd.graph.increment_version(out)
        return
    scratch = torch.empty(
        min(CACHE_CHUNK, weight.numel()), dtype=weight.dtype, device=weight.device
    )
    for w, m, o in chunks(weight, mask.view(torch.uint8), out):
        part = scratch[: w.numel()]
        part.copy_(m)
        torch.mul(w, part, out=o)


def on_cpu(values: Tensor, mask: Tensor) -> bool:
    """Whether NumPy can take them both chunk by chunk, which is faster than torch on the CPU."""
    plain = values.device.type == "cpu" and values.dtype == torch.float32
    return plain and values.stride() == mask.stride()


def chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Flat views of the tensors, small enough for the cache on a CPU; elsewhere they themselves.

    The tensors have one shape and lie in memory in one order.
    """
    first = tensors[0]
    if first.device.type != "cpu":
        yield tensors
        return
    if not first.is_contiguous():
        # in the order in which the entries lie in memory, which is not always that of the axes
        order = sorted(range(first.dim()), key=first.stride, reverse=True)
        tensors = tuple(t.permute(order) for t in tensors)
    flat = [t.view(-1) for t in tensors]
    if first.numel() <= CACHE_CHUNK:
        yield tuple(flat)
    else:
        yield from zip(*(t.split(CACHE_CHUNK) for t in flat), strict=True)


def holders(module: nn.Module) -> dict[str, Masked]:
    """Every initializer holder below `module`, by ONNX initializer name, in graph order."""
    return {m.name: m for m in module.modules() if isinstance(m, Masked)}
