"""Registration of the com.microsoft operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dns_onnx.converters.registry import F, op


def contrib(name: str, **roles: Any) -> Callable[[F], F]:
    """`op` for a com.microsoft operator: one version, which no schema of onnx describes."""
    return op(name, 1, domain="com.microsoft", schema=False, **roles)
