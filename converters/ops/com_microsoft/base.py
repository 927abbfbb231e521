"""Registration of the com.microsoft operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dns_onnx.converters.registry import F, op


def contrib(name: str, **roles: Any) -> Callable[[F], F]:
    """`op` for a com.microsoft operator: one version, which no schema of onnx describes."""
    return op(name, 1, domain="com.microsoft", schema=False, **roles)


def only(**neutral: Any) -> Callable[..., None]:
    """A `direct` rule that refuses attributes which other devices' kernels know.

    neutral: attribute -> the value at which it changes nothing.
    """

    def rule(*operands: Any, **attributes: Any) -> None:
        for name, value in neutral.items():
            if attributes.get(name, value) != value:
                raise ValueError(f"{name} = {attributes[name]}; only {value} is known here")

    return rule
