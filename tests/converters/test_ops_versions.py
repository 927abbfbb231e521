"""Every schema version of every ai.onnx operator, at exactly that operator set.

The oracle is ONNX Runtime; where it never had a version, the specification written in NumPy
(which is itself held against ONNX Runtime in the versions that it has).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from onnx import GraphProto, NodeProto, defs
from onnx.backend.test.loader import load_model_tests

from dns_onnx.converters.opaque import OPAQUE
from dns_onnx.converters.registry import registered
from dns_onnx.converters.table import table

from .cases import COVERED, SCHEMAS, TABLE
from .importer_models import assert_same, runtime

# What ONNX Runtime says of a schema version that it has no kernel for, or does not know.
_REFUSED = re.compile(
    r"Could not find an implementation|No Op registered|is not a registered function/op"
    r"|type inference failed|not supported"
)

# Where ONNX Runtime inlines the schema's function body, and that contradicts the schema's text.
NO_ORACLE = {
    "Bernoulli": "the body draws 1 with probability 1 - p, the text says with probability p",
}


@pytest.mark.parametrize("key", TABLE)
def test_version(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLOW_RELEASED_ONNX_OPSET_ONLY", "0")
    row = TABLE[key]
    model, feeds = row.model()
    oracles = []
    try:
        if row.name not in NO_ORACLE:
            oracles.append(runtime(model, feeds))
    except Exception as error:
        if not _REFUSED.search(str(error)):
            raise
    if row.case.expected is not None:
        result = row.case.expected(*(a for a in row.case.inputs if a is not None))
        oracles.append(list(result) if isinstance(result, tuple) else [result])
    assert oracles, f"ONNX Runtime lacks {row.name}-{row.version}: the case needs `expected`"
    for wanted in oracles:
        assert_same(model, feeds, wanted)


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _nodes(body)


def _official() -> set[tuple[str, int]]:
    """The operator versions that stand as nodes in the official tests that pass here."""
    from .test_backend import EXCLUDED

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tests = load_model_tests(kind="node")
    found = set()
    for test in tests:
        if any(re.search(pattern, f"{test.name}_cpu") for pattern in EXCLUDED):
            continue
        opset = next((o.version for o in test.model.opset_import if not o.domain), None)
        for node in _nodes(test.model.graph) if opset is not None else ():
            if not node.domain and defs.has(node.op_type, opset):
                found.add((node.op_type, defs.get_schema(node.op_type, opset).since_version))
    return found


def test_every_schema_version_is_exercised() -> None:
    # the 622 of today's operators, and Scatter 9 and Upsample 1, 7 and 9
    assert len(SCHEMAS) == 626
    assert set(SCHEMAS) - _official() <= set(COVERED)


def test_every_schema_version_is_registered() -> None:
    pairs = {("", name, version) for name, version in SCHEMAS if name != "Constant"}
    missing = sorted({name for _, name, _ in pairs - set(registered())})
    assert missing == sorted(OPAQUE)


def test_the_table_in_the_documentation_is_current() -> None:
    page = Path(__file__).parents[2] / "docs" / "operators.md"
    assert page.read_text(encoding="utf-8") == table()
