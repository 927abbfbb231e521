"""Free the batch axis of a model whose exporter fixed it.

Many files take one sample at a time: the inputs say so, and so do constants deeper in the graph
(batch_axis.py).  Both are changed in a copy that is trained; the file that is written
back keeps the original's shapes.  The change counts only once a run has proven it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto
from torch import Tensor
from torch.fx import GraphModule

from dns_onnx.converters.batch_axis import BatchAxis
from dns_onnx.converters.dtypes import torch_dtype
from dns_onnx.converters.importer import import_model
from dns_onnx.errors import DnsOnnxError

_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)


@dataclass(frozen=True)
class FreedBatch:
    """A model to train, and whether it takes batches of any size.

    model: the changed copy, or the model as it was.  size: the batch that the file fixes, 0 if
    it fixes none.  reason: why the axis could not be freed; "" if it is free.
    """

    model: ModelProto
    size: int
    reason: str

    @property
    def free(self) -> bool:
        return not self.reason


def free_batch(model: ModelProto, *, seed: int = 0) -> FreedBatch:
    """Make the first axis of every input free, where the graph computes sample by sample.

    The proof: a batch of two samples (or groups of them, of the size that the file fixes) gives
    what each gives alone, on random inputs drawn from the seed.  They differ in sign: what a branch
    takes must not depend on the other sample either.
    """
    inputs = _data_inputs(model.graph)
    sizes = {_first_size(info) for info in inputs}
    if sizes <= {None}:
        return FreedBatch(model, 0, "")
    if len(sizes) > 1 or None in sizes:
        return FreedBatch(model, 0, "the inputs do not share one batch size")
    size = int(sizes.pop() or 0)
    freed = ModelProto()
    freed.CopyFrom(model)
    try:
        BatchAxis(freed, _data_inputs(freed.graph), size).free()
    except (DnsOnnxError, ValueError, IndexError, TypeError) as error:
        return FreedBatch(model, size, f"its shapes cannot be followed: {error}")
    reason = _disproof(model, freed, size, seed)
    return FreedBatch(model if reason else freed, size, reason)


def _data_inputs(graph: GraphProto) -> list[ValueInfoProto]:
    held = {tensor.name for tensor in graph.initializer}
    return [info for info in graph.input if info.name not in held]


def _first_size(info: ValueInfoProto) -> int | None:
    dims = info.type.tensor_type.shape.dim
    if not dims or not dims[0].HasField("dim_value") or dims[0].dim_value < 1:
        return None
    return int(dims[0].dim_value)


def _disproof(model: ModelProto, freed: ModelProto, size: int, seed: int) -> str:
    """Why the freed model does not compute sample by sample; "" if it does."""
    try:
        one, many = import_model(model).eval(), import_model(freed).eval()
        for sign in (1, -1):
            groups = [_draws(model, seed), _draws(model, seed + 1, sign)]
            reason = _difference(one, many, groups)
            if reason:
                return reason
    except (DnsOnnxError, RuntimeError, ValueError, IndexError, TypeError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        return f"a larger batch does not run: {text}"
    return ""


@torch.no_grad()
def _difference(one: GraphModule, many: GraphModule, groups: Sequence[list[Tensor]]) -> str:
    """Where a batch of groups parts from what each gives alone; "" if nowhere."""
    alone = [_outputs(one(*group)) for group in groups]
    together = _outputs(many(*[torch.cat(parts) for parts in zip(*groups, strict=True)]))
    for index, value in enumerate(together):
        parts = [outputs[index] for outputs in alone]
        if not isinstance(value, Tensor):
            continue
        if any(part.dim() == 0 for part in parts):
            return f"output {index} has no batch axis"
        if not _close(value, torch.cat(parts)):
            return f"output {index} of a batch differs from its samples' own"
    return ""


def _outputs(result: Any) -> Sequence[Any]:
    return result if type(result) is tuple else (result,)


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return bool((a == b).all())
    scale = float(b.abs().max()) if b.numel() else 0.0
    return torch.allclose(a, b, rtol=1e-3, atol=1e-4 * max(scale, 1e-6), equal_nan=True)


def _draws(model: ModelProto, seed: int, sign: int = 1) -> list[Tensor]:
    """Random operands of the shapes that the file declares, floats of a sign; open sizes are 1."""
    generator = torch.Generator().manual_seed(seed)
    draws = []
    for info in _data_inputs(model.graph):
        kind = info.type.tensor_type
        shape = [int(d.dim_value) or 1 for d in kind.shape.dim]
        drawn = torch.rand(shape, generator=generator)
        dtype = torch_dtype(kind.elem_type)
        floats = kind.elem_type in _FLOATS
        draws.append((sign * drawn).to(dtype) if floats else (drawn * 2).to(dtype))
    return draws
