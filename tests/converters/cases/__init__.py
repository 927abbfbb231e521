"""Small single-operator cases for every schema version of every ai.onnx operator.

CASES[op](version) gives the operator's cases in the form that the version takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, defs

from . import control, elementwise, linear, recurrent, reduction, tensors, vision
from .case import Case

CASES = {
    **control.CASES,
    **elementwise.CASES,
    **linear.CASES,
    **recurrent.CASES,
    **reduction.CASES,
    **tensors.CASES,
    **vision.CASES,
}

# Every schema version of ai.onnx but the tombstones that only say "deprecated".
SCHEMAS = {
    (s.name, s.since_version): s
    for s in defs.get_all_schemas_with_history()
    if s.domain == "" and not s.deprecated
}


@dataclass(frozen=True)
class Row:
    """One case of one operator version."""

    name: str
    version: int
    case: Case

    def model(self) -> tuple[ModelProto, list[np.ndarray]]:
        """A model of exactly that operator set, and its feeds."""
        early: dict[str, Any] = {}
        if "consumed_inputs" in SCHEMAS[self.name, self.version].attributes:
            early["consumed_inputs"] = [0] * len(self.case.inputs)
        return self.case.model(self.name, self.version, **early)


def _cases(name: str, version: int) -> list[Case]:
    made = CASES[name](version)
    return made if isinstance(made, list) else [made]


COVERED = [pair for pair in sorted(SCHEMAS) if pair[0] in CASES]
TABLE = {
    f"{name}-{version}" + (f"-{index}" if index else ""): Row(name, version, case)
    for name, version in COVERED
    for index, case in enumerate(_cases(name, version))
}

__all__ = ["CASES", "COVERED", "SCHEMAS", "TABLE", "Row"]
