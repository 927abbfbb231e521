"""The operator table of the documentation, made from the registry.

`python -m dns_onnx.converters.table > docs/operators.md` writes it.
"""

from __future__ import annotations

import sys
from collections import defaultdict

from onnx import defs

from dns_onnx.converters import ops as _ops  # noqa: F401  (fills the registry)
from dns_onnx.converters.opaque import OPAQUE
from dns_onnx.converters.registry import Operator, registered

_HEAD = """# Operators

Made from the registry by `python -m dns_onnx.converters.table`; a test keeps the two the same.

*Gradient*: gradients reach the data operands. *Prunable*: operands whose initializer surgery may
cut. *Runs in*: torch, or an opaque step in ONNX Runtime (or onnx.reference), which no gradient
passes. Every other operator that ONNX Runtime or onnx.reference knows is imported as an opaque
step too; one that nobody knows is refused by name.

Rounding has no useful derivative: that of a QuantizeLinear which a DequantizeLinear reads is taken
as 1 inside the quantised range and 0 outside (the straight-through estimator), so that QDQ models
train through their quantised activations and weights.

The com.microsoft operators are those that ONNX Runtime's optimiser, quantiser and transformer tool
write. Its com.microsoft.nchwc ones, which the optimisation level ALL may write, fit the memory
layout of one machine and are left out: optimise at level EXTENDED for a file to keep.

"""


def table() -> str:
    """The page as Markdown: one row an operator, by domain and name."""
    rows: dict[tuple[str, str], list[tuple[int, Operator]]] = defaultdict(list)
    for (domain, name, version), entry in registered().items():
        rows[domain, name].append((version, entry))
    parts = [_HEAD]
    for domain in sorted({domain for domain, _ in rows}):
        parts.append(f"## {domain or 'ai.onnx'}\n\n")
        parts.append(
            "| operator | versions | gradient | prunable | runs in |\n|---|---|---|---|---|\n"
        )
        lines = {n: _row(n, found) for (d, n), found in rows.items() if d == domain}
        if not domain:
            lines |= {name: _opaque_row(name) for name in OPAQUE}
            lines["Constant"] = _plain_row("Constant", _schema_versions("Constant"))
        parts += [lines[name] for name in sorted(lines)]
        parts.append("\n")
    return "".join(parts).rstrip("\n") + "\n"


def _row(name: str, found: list[tuple[int, Operator]]) -> str:
    versions = ", ".join(str(version) for version, _ in sorted(found, key=lambda pair: pair[0]))
    newest = max(found, key=lambda pair: pair[0])[1]
    gradient = "yes" if newest.differentiable else "no"
    return f"| {name} | {versions} | {gradient} | {', '.join(newest.prunable)} | torch |\n"


def _schema_versions(name: str) -> str:
    found = {
        s.since_version
        for s in defs.get_all_schemas_with_history()
        if s.domain == "" and s.name == name
    }
    return ", ".join(str(version) for version in sorted(found))


def _plain_row(name: str, versions: str) -> str:
    return f"| {name} | {versions} | yes | | torch |\n"


def _opaque_row(name: str) -> str:
    return f"| {name} | {_schema_versions(name)} | no | | opaque: {OPAQUE[name]} |\n"


def main() -> None:
    """Write the page to the standard output."""
    sys.stdout.write(table())


if __name__ == "__main__":
    main()
