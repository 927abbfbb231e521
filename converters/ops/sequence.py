"""Sequences (Python lists) and optionals (a value or None)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dns_onnx.converters.ops.widths import scalar
from dns_onnx.converters.registry import op


@op("SequenceConstruct", 11)
def sequence_construct(*inputs: Any) -> list[Any]:
    """The operands as a list.  Source: ONNX operators, SequenceConstruct 11."""
    return list(inputs)


@op("SequenceEmpty", 11)
def sequence_empty(*, dtype: int = 1) -> list[Any]:
    """An empty list.  Source: ONNX operators, SequenceEmpty 11."""
    return []


@op("SequenceAt", 11, static=("position",))
def sequence_at(input_sequence: list[Any], position: Any) -> Any:
    """The element at a place.  Source: ONNX operators, SequenceAt 11."""
    return input_sequence[int(scalar(position))]


@op("SequenceInsert", 11, static=("position",))
def sequence_insert(input_sequence: list[Any], tensor: Any, position: Any = None) -> list[Any]:
    """A copy with an element inserted, at the end by default.

    Source: ONNX operators, SequenceInsert 11.
    """
    place = len(input_sequence) if position is None else int(scalar(position))
    result = list(input_sequence)
    result.insert(place, tensor)
    return result


@op("SequenceErase", 11, static=("position",))
def sequence_erase(input_sequence: list[Any], position: Any = None) -> list[Any]:
    """A copy without one element, the last by default.  Source: ONNX operators, SequenceErase."""
    result = list(input_sequence)
    result.pop(-1 if position is None else int(scalar(position)))
    return result


@op("SequenceLength", 11, differentiable=False, on_host=True)
def sequence_length(input_sequence: list[Any]) -> Tensor:
    """The number of elements, int64.  Source: ONNX operators, SequenceLength 11."""
    return torch.tensor(len(input_sequence), dtype=torch.int64)


@op("ConcatFromSequence", 11)
def concat_from_sequence(input_sequence: list[Any], *, axis: int, new_axis: int = 0) -> Any:
    """The elements one after the other along an axis, or stacked along a new one.

    Source: ONNX operators, ConcatFromSequence 11.
    """
    if not isinstance(input_sequence[0], Tensor):
        join = np.stack if new_axis else np.concatenate
        return join(input_sequence, axis)
    return torch.stack(input_sequence, axis) if new_axis else torch.cat(input_sequence, axis)


@op("SplitToSequence", 11, 24, static=("split",))
def split_to_sequence(x: Any, split: Any = None, *, axis: int = 0, keepdims: int = 1) -> list[Any]:
    """Parts along an axis as a list: of one entry each, of one size, or of given sizes.

    Source: ONNX operators, SplitToSequence 11-24.
    """
    if split is None:
        parts = [x.select(axis, i) for i in range(x.shape[axis])]
        return [p.unsqueeze(axis) for p in parts] if keepdims else parts
    return list(torch.split(x, split if isinstance(split, int) else list(split), axis))


@op("Optional", 15, 28)
def optional(x: Any = None, *, type: Any = None) -> Any:
    """The operand, or nothing.  Source: ONNX operators, Optional 15-28."""
    return x


@op("OptionalGetElement", 15, 18, 28)
def optional_get_element(x: Any) -> Any:
    """What the optional holds.  Source: ONNX operators, OptionalGetElement 15-28."""
    return x


@op("OptionalHasElement", 15, 18, 28, differentiable=False, on_host=True)
def optional_has_element(x: Any = None) -> Tensor:
    """Whether the optional holds something.  Source: ONNX operators, OptionalHasElement 15-28."""
    return torch.tensor(x is not None)
