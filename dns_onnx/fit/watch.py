"""Seeing what is computed with weights under surgery, wherever in a graph that happens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from dns_onnx.converters.ops.rnn import through_time
from dns_onnx.fit.products import product_call
from dns_onnx.fit.recurrences import recurrence_call
from dns_onnx.fit.terms import Call, Origin, geometry
from dns_onnx.masks import Masked

Seen = Callable[[Call], Any]


class Watch(TorchFunctionMode):
    """Sees the products with weights under surgery, and the recurrent layers.

    see: called for each; what it returns, if anything, takes the place of the result.
    """

    def __init__(self, weights: Mapping[str, Masked], see: Seen) -> None:
        super().__init__()
        self.weights, self.see = weights, see
        # by where the values lie, as long as they do: a pass makes new ones
        self.known: dict[int, tuple[Origin, StorageWeakRef]] = {}
        self.handles: list[Any] = []

    def __enter__(self) -> Watch:
        self.handles = [
            holder.register_forward_hook(self._given) for holder in self.weights.values()
        ]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *found: Any) -> None:
        for handle in self.handles:
            handle.remove()
        super().__exit__(*found)  # type: ignore[no-untyped-call]

    def _given(self, holder: Any, _: Any, value: Tensor) -> None:
        self._know(value, Origin(holder))

    def _know(self, value: Tensor, origin: Origin) -> None:
        storage = value.untyped_storage()
        self.known[storage.data_ptr()] = (origin, StorageWeakRef(storage))

    def owner(self, value: Any) -> Origin | None:
        """Where this value comes from, or what it is a view of."""
        if not isinstance(value, Tensor) or not value.numel():
            return None
        found = self.known.get(value.untyped_storage().data_ptr())
        return found[0] if found and not found[1].expired() else None

    def _joined(self, result: Tensor, parts: Sequence[Tensor], dim: int = 0) -> None:
        """Know parts of one weight, each taken once, in another order: as exporters put gates."""
        origins = [self.owner(part) for part in parts]
        first = origins[0]
        if first is None or any(s is None or s.holder is not first.holder for s in origins):
            return
        places = torch.arange(first.holder.weight.numel(), device=result.device)
        taken = torch.zeros_like(places, dtype=torch.bool)
        known = zip(parts, origins, strict=True)
        index = torch.cat([s.of(places, geometry(p)) for p, s in known if s is not None], dim)
        taken[index.flatten()] = True
        if index.stride() == result.stride() and int(taken.sum()) == index.numel():
            self._know(result, Origin(first.holder, index))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        call: Call | None = None
        if func is torch.cat and not set(kwargs or {}) - {"dim"}:
            self._joined(result, *args, **(kwargs or {}))
        elif func is through_time:
            call = recurrence_call(args, self.owner)
        elif not kwargs:
            call = product_call(func, args, result, self.owner)
        seen = None if call is None else self.see(call)
        return result if seen is None else seen
