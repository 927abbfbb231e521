"""Every schema version of the operators, against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import defs

from dns_onnx.converters.opaque import OPAQUE
from dns_onnx.converters.registry import registered
from dns_onnx.converters.table import table

from .importer_cases import CASES
from .importer_models import assert_same, node_model, runtime

# Where a newer version computes something else from the same operands, it is no oracle.
NO_SUCCESSOR = {
    ("Hardmax", 1), ("Hardmax", 11), ("Softmax", 1), ("Softmax", 11), ("LogSoftmax", 1),
    ("LogSoftmax", 11), ("PRelu", 1), ("PRelu", 6), ("Selu", 1),
}  # fmt: skip


def _versions(name: str) -> list[int]:
    return sorted(v for (domain, op, v) in registered() if (domain, op) == ("", name))


PAIRS = [(name, version) for name in sorted(CASES) for version in _versions(name)]


def _opset(name: str, version: int) -> int:
    """The newest operator set that still means this schema version, as ORT knows them up to 24."""
    later = [v for v in _all_versions(name) if v > version]
    return max(version, min((later[0] - 1) if later else 24, 24))


def _all_versions(name: str) -> list[int]:
    return sorted(
        s.since_version
        for s in defs.get_all_schemas_with_history()
        if s.domain == "" and s.name == name
    )


def _expected(name: str, version: int, feeds: list[np.ndarray], model: Any) -> Any:
    """ONNX Runtime's outputs at this version, or at another one that means the same."""
    try:
        return runtime(model, feeds)
    except Exception:  # versions that ONNX Runtime never had
        pass
    if (name, version) in NO_SUCCESSOR:
        return None
    others = _versions(name)
    for near in [v for v in others if v > version] + [v for v in others if v < version][::-1]:
        case = CASES[name](near)
        other, other_feeds = node_model(
            name, case.inputs, opset=_opset(name, near), outputs=case.outputs,
            weights=case.held, **case.attributes,
        )  # fmt: skip
        try:
            return runtime(other, other_feeds)
        except Exception:  # try the next
            continue
    return None


@pytest.mark.parametrize(("name", "version"), PAIRS, ids=[f"{n}-{v}" for n, v in PAIRS])
def test_version(name: str, version: int) -> None:
    case = CASES[name](version)
    model, feeds = node_model(
        name, case.inputs, opset=_opset(name, version), outputs=case.outputs,
        weights=case.held, **case.attributes,
    )  # fmt: skip
    expected = _expected(name, version, feeds, model)
    if expected is None:
        pytest.skip(f"ONNX Runtime has neither {name}-{version} nor an equivalent")
    assert_same(model, feeds, expected)


def test_every_schema_version_is_registered() -> None:
    current = {s.name for s in defs.get_all_schemas() if s.domain == "" and not s.deprecated}
    pairs = {
        ("", s.name, s.since_version)
        for s in defs.get_all_schemas_with_history()
        if s.domain == "" and s.name in current and not s.deprecated and s.name != "Constant"
    }
    missing = sorted({name for _, name, _ in pairs - set(registered())})
    assert missing == sorted(OPAQUE)


def test_the_table_in_the_documentation_is_current() -> None:
    page = Path(__file__).parents[2] / "docs" / "operators.md"
    assert page.read_text(encoding="utf-8") == table()
