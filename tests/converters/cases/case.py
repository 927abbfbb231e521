"""What a case of an operator is, and the small builders that the families share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper

from tests.converters.importer_models import floats, graph_model


@dataclass(frozen=True)
class Case:
    """One node: operands (None = absent), attributes, and how many outputs it has.

    held: the operands that are initializers.  expected: the specification in NumPy, from the
    operands to the output or a tuple of outputs, for the versions that ONNX Runtime never had.
    idle: float operands that the derivative does not reach.  nodes: the whole graph from x0, x1,
    ... to y0, where the operator's own operands or outputs are no tensors.
    """

    inputs: list[Any]
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    held: tuple[int, ...] = ()
    expected: Callable[..., Any] | None = None
    idle: tuple[int, ...] = ()
    nodes: tuple[NodeProto, ...] = ()

    def model(
        self,
        name: str,
        opset: int,
        *,
        domain: str = "",
        held: Sequence[int] | None = None,
        shown: int | None = None,
        **attributes: Any,
    ) -> tuple[ModelProto, list[np.ndarray]]:
        """The case as a model of one node, and its feeds.

        held: instead of the case's own.  shown: how many outputs the graph has, default all.
        attributes: further ones.
        """
        labels = ["" if a is None else f"x{i}" for i, a in enumerate(self.inputs)]
        outputs = [f"y{i}" for i in range(self.outputs)]
        how = {**self.attributes, **attributes}
        node = helper.make_node(name, labels, outputs, "node", domain=domain, **how)
        weights = {labels[i] for i in (self.held if held is None else held)}
        arrays = {n: np.asarray(a) for n, a in zip(labels, self.inputs, strict=True) if n}
        return graph_model(
            self.nodes or [node],
            {n: a for n, a in arrays.items() if n not in weights},
            {n: a for n, a in arrays.items() if n in weights},
            outputs[:shown],
            opset=opset,
            domain=domain,
        )


Maker = Callable[[int], "Case | list[Case]"]


def fixed(*inputs: Any, expected: Callable[..., Any] | None = None, **attributes: Any) -> Maker:
    """The same case for every version."""
    outputs, held = attributes.pop("outputs_", 1), attributes.pop("held_", ())
    idle = attributes.pop("idle_", ())
    return lambda version: Case(list(inputs), attributes, outputs, held, expected, idle)


def unary(
    expected: Callable[..., Any] | None = None,
    low: float = -2.0,
    high: float = 2.0,
    **attributes: Any,
) -> Maker:
    """One operand of [2, 3, 4] between low and high."""
    return fixed(floats(2, 3, 4, low=low, high=high), expected=expected, **attributes)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x))."""
    return 1 / (1 + np.exp(-x))
