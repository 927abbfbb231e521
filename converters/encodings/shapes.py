"""Shapes of the main graph's values, inferred only when one is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from onnx import ModelProto

from dns_onnx.converters.encodings.kernels import ShapeOf
from dns_onnx.converters.reader import infer_shapes


def shape_lookup(model: ModelProto) -> ShapeOf:
    """A function from a value's name to its dimensions, None for each that is not fixed."""

    @lru_cache(maxsize=1)
    def table() -> dict[str, list[int | None]]:
        graph = infer_shapes(model).graph
        return {
            value.name: [
                dim.dim_value if dim.HasField("dim_value") else None
                for dim in value.type.tensor_type.shape.dim
            ]
            for group in (graph.input, graph.value_info, graph.output)
            for value in group
            if value.type.tensor_type.HasField("shape")
        }

    def shape_of(name: str) -> Sequence[int | None] | None:
        return table().get(name)

    return shape_of
