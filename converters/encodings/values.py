"""How the values of a weight are stored: as they are, as float16, or as int8 with scales."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto

from dns_onnx.converters.encodings.matrix import Array, Matrix
from dns_onnx.converters.encodings.parts import Part, decode_node, part
from dns_onnx.converters.encodings.sites import Site

CODES = ("float32", "float16", "int8")

_INT8_MAX = 127

# Weights that no sparse operator reads have no rows of their own: their scales count along as many
# leading axes as it takes to have this many.
_MIN_SCALES = 16


@dataclass(frozen=True)
class Coding:
    """The values of one weight in one form.

    code: "float32" (the weight's own type), "float16" or "int8".  groups: leading axes that each
    have a scale of their own (int8).
    """

    site: Site
    stem: str
    code: str
    groups: tuple[int, ...]

    @property
    def data_type(self) -> int:
        """ONNX type of the stored values."""
        kinds = {"float16": TensorProto.FLOAT16, "int8": TensorProto.INT8}
        return int(kinds.get(self.code, self.site.tensor.data_type))

    @property
    def note(self) -> str:
        """What the encoding's name ends with."""
        return "" if self.code == "float32" else f", {self.code} values"

    def values(self, dims: tuple[int, ...], stored: Callable[[], Matrix]) -> Part:
        """The part with the values; `stored` gives the matrix whose values they are."""
        return Part(
            f"{self.stem}.values",
            self.data_type,
            dims,
            lambda: self._coded(stored()).reshape(dims),
        )

    def scales(self, matrix: Matrix) -> list[Part]:
        """The part with the scales, if there are any, shaped to multiply the weight."""
        if self.code != "int8":
            return []
        dims = (*self.groups, *[1] * (len(self.site.tensor.dims) - len(self.groups)))
        count = int(np.prod(self.groups))
        scale = part(
            f"{self.stem}.scale", np.float32, dims, lambda: scales(matrix, count).reshape(dims)
        )
        return [scale]

    def widened(self) -> tuple[str, list[NodeProto]]:
        """The name under which the values are read as float32, and the node that makes them so.

        Scales are left for `finished`.
        """
        name, wide = f"{self.stem}.values", f"{self.stem}.values_f32"
        if self.data_type == TensorProto.FLOAT:
            return name, []
        return wide, [decode_node("Cast", [name], wide, to=TensorProto.FLOAT)]

    def finished(self, kind: int = TensorProto.FLOAT) -> tuple[str, list[NodeProto]]:
        """The name of the decoded weight of ONNX type `kind`, and what makes the weight of it."""
        names, nodes = [self.site.name], []
        if self.site.tensor.data_type != kind:
            names.append(f"{self.stem}.f32")
            nodes.append(self._last_cast(names[-1]))
        if self.code == "int8":
            names.append(f"{self.stem}.unscaled")
            nodes.append(decode_node("Mul", [names[-1], f"{self.stem}.scale"], names[-2]))
        return names[-1], nodes[::-1]

    def _last_cast(self, wide: str) -> NodeProto:
        return decode_node("Cast", [wide], self.site.name, to=self.site.tensor.data_type)

    def _coded(self, matrix: Matrix) -> Array:
        if self.code == "float16":
            return matrix.values.astype(np.float16)
        if self.code == "int8":
            return quantized(matrix, int(np.prod(self.groups)))
        return matrix.values


def coding(site: Site, matrix: Matrix, stem: str, code: str, *, rows: bool) -> tuple[Coding, str]:
    """The coding asked for, or the weight's own type and why.

    rows: whether scales go by the rows of the matrix (axis 0).
    """
    groups = (matrix.shape[0],) if rows else _leading(matrix.shape)
    refusal = _refusal(matrix, code, int(np.prod(groups)))
    if refusal:
        return Coding(site, stem, "float32", groups), f"its values stay as they are: {refusal}"
    own = code == "float16" and site.tensor.data_type != TensorProto.FLOAT
    return Coding(site, stem, "float32" if own else code, groups), ""


def scales(matrix: Matrix, groups: int) -> Array:
    """[groups] the largest magnitude in each group of the flattened weight, over 127; 1 if none."""
    magnitudes = np.abs(matrix.values.astype(np.float32))
    edges = np.searchsorted(matrix.positions, np.arange(groups + 1) * (matrix.size // groups))
    largest = np.zeros(groups, np.float32)
    filled = np.flatnonzero(edges[1:] > edges[:-1])
    if len(filled):
        largest[filled] = np.maximum.reduceat(magnitudes, edges[filled])
    scale: Array = np.where(largest > 0, largest / np.float32(_INT8_MAX), np.float32(1))
    return scale


def quantized(matrix: Matrix, groups: int) -> Array:
    """[nnz] int8, each value over the scale of its group, rounded."""
    each = scales(matrix, groups)[matrix.positions // (matrix.size // groups)]
    steps = np.rint(matrix.values.astype(np.float32) / each)
    return np.clip(steps, -_INT8_MAX, _INT8_MAX).astype(np.int8)


def _leading(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shortest run of leading axes that counts enough scales, the last axis left out."""
    for length in range(1, len(shape)):
        if np.prod(shape[:length]) >= _MIN_SCALES:
            return shape[:length]
    return shape[:-1] or (1,)


def _refusal(matrix: Matrix, code: str, groups: int) -> str:
    """Why the values cannot be stored in the code; empty if they can."""
    if code == "float32":
        return ""
    if len(matrix.shape) < 2:
        return "it has one axis"
    values = matrix.values.astype(np.float64)
    if not np.isfinite(values).all():
        return "some are not finite"
    largest = float(np.abs(values).max(initial=0.0))
    if code == "float16" and largest > float(np.finfo(np.float16).max):
        return f"{largest:g} is beyond float16"
    if code == "int8" and (scales(matrix, groups) < np.finfo(np.float32).tiny).any():
        return "some rows are too small for a float32 scale"
    return ""
