"""What a consumer is asked, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

# the output Y, or the consumer's error
Outcome = Any | str


@dataclass(frozen=True)
class Job:
    """One written model.  inputs: for X.  wanted: Y of its dense form in stock ONNX Runtime."""

    name: str
    path: Path
    inputs: dict[str, Any]
    wanted: Any
