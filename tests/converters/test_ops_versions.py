"""Every schema version of every ai.onnx operator, at exactly that operator set.

The oracle is ONNX Runtime; where it never had a version, the specification written in NumPy
(which is itself held against ONNX Runtime in the versions that it has).
"""

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import GraphProto, NodeProto, defs, helper
from onnx.backend.test.loader import load_model_tests

from dns_onnx.converters.dtypes import to_torch
from dns_onnx.converters.importer import import_model
from dns_onnx.converters.opaque import OPAQUE
from dns_onnx.converters.registry import registered
from dns_onnx.converters.table import table
from dns_onnx.masks import holders

from .cases import CASES
from .cases.case import Case
from .importer_models import assert_same, graph_model, runtime

# What ONNX Runtime says of a schema version that it has no kernel for, or does not know.
_REFUSED = re.compile(
    r"Could not find an implementation|No Op registered|is not a registered function/op"
    r"|type inference failed|not supported"
)
Pair = tuple[str, int]


def _schemas() -> dict[Pair, defs.OpSchema]:
    """Every schema version of ai.onnx but the tombstones that only say "deprecated"."""
    return {
        (s.name, s.since_version): s
        for s in defs.get_all_schemas_with_history()
        if s.domain == "" and not s.deprecated
    }


SCHEMAS = _schemas()


def _cases(name: str, version: int) -> list[Case]:
    made = CASES[name](version)
    return made if isinstance(made, list) else [made]


COVERED = [pair for pair in sorted(SCHEMAS) if pair[0] in CASES]
TABLE = {
    f"{name}-{version}" + (f"-{index}" if index else ""): (name, version, case)
    for name, version in COVERED
    for index, case in enumerate(_cases(name, version))
}


def _model(name: str, version: int, case: Case) -> tuple[onnx.ModelProto, list[np.ndarray]]:
    labels = ["" if a is None else f"x{i}" for i, a in enumerate(case.inputs)]
    arrays = {n: np.asarray(a) for n, a in zip(labels, case.inputs, strict=True) if n}
    held = {labels[i] for i in case.held}
    outputs = [f"y{i}" for i in range(case.outputs)]
    attributes = dict(case.attributes)
    if "consumed_inputs" in SCHEMAS[name, version].attributes:
        attributes["consumed_inputs"] = [0] * len(labels)
    nodes = case.nodes or [helper.make_node(name, labels, outputs, "node", **attributes)]
    return graph_model(
        nodes,
        {n: a for n, a in arrays.items() if n not in held},
        {n: a for n, a in arrays.items() if n in held},
        outputs,
        opset=version,
    )


# Where ONNX Runtime inlines the schema's function body, and that contradicts the schema's text.
NO_ORACLE = {
    "Bernoulli": "the body draws 1 with probability 1 - p, the text says with probability p",
}


@pytest.mark.parametrize(("name", "version", "case"), TABLE.values(), ids=TABLE)
def test_version(name: str, version: int, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLOW_RELEASED_ONNX_OPSET_ONLY", "0")
    model, feeds = _model(name, version, case)
    oracles = []
    try:
        if name not in NO_ORACLE:
            oracles.append(runtime(model, feeds))
    except Exception as error:
        if not _REFUSED.search(str(error)):
            raise
    if case.expected is not None:
        result = case.expected(*(a for a in case.inputs if a is not None))
        oracles.append(list(result) if isinstance(result, tuple) else [result])
    assert oracles, f"ONNX Runtime has no {name}-{version}: the case needs `expected`"
    for wanted in oracles:
        assert_same(model, feeds, wanted)


def _trained(name: str, version: int, case: Case) -> list[int]:
    """The operands that a gradient should reach: floats that are neither static nor statistics."""
    entry = registered().get(("", name, version))
    if entry is None or not entry.differentiable:
        return []
    apart = entry.static | entry.literal | entry.statistics | entry.constant
    return [
        i
        for i, a in enumerate(case.inputs)
        if a is not None and np.asarray(a).dtype.kind == "f" and np.asarray(a).size
        if i not in case.idle and (entry.graph or entry.operand(i) not in apart)
    ]


GRADIENTS = {key: row for key, row in TABLE.items() if _trained(*row)}


@pytest.mark.parametrize(("name", "version", "case"), GRADIENTS.values(), ids=GRADIENTS)
def test_gradient(name: str, version: int, case: Case) -> None:
    """The derivative along a random direction of all operands, against a central difference."""
    model, feeds = _model(name, version, case)
    module = import_model(model).double()
    rng = np.random.default_rng(0)
    values = [to_torch(np.array(f)) for f in feeds]
    values = [v.double() if v.is_floating_point() else v for v in values]
    fed = [i for i, a in enumerate(case.inputs) if a is not None and i not in case.held]
    held = holders(module)
    wanted = _trained(name, version, case)
    points = [values[fed.index(i)] for i in wanted if i in fed]
    points += [held[f"x{i}"].weight for i in wanted if i in case.held]
    points += [h.weight for n, h in held.items() if not n.startswith("x") and n != "kept"]
    for point in points:
        point.requires_grad_()

    def total() -> torch.Tensor:
        result = module(*values)
        parts = [r for r in (result if isinstance(result, tuple) else (result,))]
        floating = [p for p in parts if p.is_floating_point() and p.requires_grad]
        draws = np.random.default_rng(1)
        return sum((p * torch.from_numpy(draws.normal(size=p.shape))).sum() for p in floating)

    total().backward()
    for point in points:
        assert point.grad is not None
        assert bool((point.grad != 0).any())
    step = [torch.from_numpy(rng.normal(size=p.shape)) for p in points]
    slope = sum(float((p.grad * d).sum()) for p, d in zip(points, step, strict=True))
    ends = []
    for sign in (1e-6, -1e-6):
        with torch.no_grad():
            for p, d in zip(points, step, strict=True):
                p += sign * d
        ends.append(total().item())
        with torch.no_grad():
            for p, d in zip(points, step, strict=True):
                p -= sign * d
    difference = (ends[0] - ends[1]) / 2e-6
    np.testing.assert_allclose(slope, difference, rtol=1e-4, atol=1e-5)


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _nodes(body)


def _official() -> set[Pair]:
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


# What has no oracle here: neither ONNX Runtime nor the specification gives its numbers.
UNDECIDED = {}
if importlib.util.find_spec("PIL") is None:
    UNDECIDED["ImageDecoder", 20] = (
        "ONNX Runtime lacks it, the schema leaves the pixels to the codecs, and onnx.reference "
        "decodes with Pillow, which is not installed; where it is, the official tests run"
    )


def test_every_schema_version_is_exercised() -> None:
    # the 622 of today's operators, and Scatter 9 and Upsample 1, 7 and 9
    assert len(SCHEMAS) == 626
    assert set(SCHEMAS) - _official() - set(COVERED) == set(UNDECIDED)


def test_every_schema_version_is_registered() -> None:
    pairs = {("", name, version) for name, version in SCHEMAS if name != "Constant"}
    missing = sorted({name for _, name, _ in pairs - set(registered())})
    assert missing == sorted(OPAQUE)


def test_the_table_in_the_documentation_is_current() -> None:
    page = Path(__file__).parents[2] / "docs" / "operators.md"
    assert page.read_text(encoding="utf-8") == table()
