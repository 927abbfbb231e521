"""Imports flow one way, and the runtime stays free of torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Lower layers may not import higher ones; modules of one layer may import each other.
LAYERS = [
    {"dns_onnx.errors", "dns_onnx.entry"},
    {"dns_onnx.masks", "dns_onnx.checkpoint", "dns_onnx.config", "dns_onnx.config_files",
     "dns_onnx.pace", "dns_onnx.interrupt", "dns_onnx.distributed", "dns_onnx.precision"},
    {"dns_onnx.granularity"},
    {"dns_onnx.preprocess", "dns_onnx.data", "dns_onnx.drawn", "dns_onnx.images",
     "dns_onnx.surgery", "dns_onnx.prices", "dns_onnx.targets", "dns_onnx.solver",
     "dns_onnx.converters", "dns_onnx.runtime"},
    {"dns_onnx.sources", "dns_onnx.attach", "dns_onnx.losses", "dns_onnx.objective",
     "dns_onnx.teacher", "dns_onnx.feed", "dns_onnx.journal", "dns_onnx.train", "dns_onnx.search",
     "dns_onnx.trials", "dns_onnx.curvature", "dns_onnx.prepare", "dns_onnx.probe",
     "dns_onnx.reference", "dns_onnx.cuts", "dns_onnx.fit", "dns_onnx.snapshot", "dns_onnx.rows",
     "dns_onnx.result", "dns_onnx.budget", "dns_onnx.doubt",
     "dns_onnx.fingerprint"},
    {"dns_onnx.pipeline", "dns_onnx.demo"},
    {"dns_onnx.report"},
    {"dns_onnx.page"},
    {"dns_onnx.cli"},
    {"dns_onnx.__main__"},
]  # fmt: skip
FOLDERS = {
    "dns_onnx": "dns_onnx",
    "converters": "dns_onnx.converters",
    "runtime": "dns_onnx.runtime",
}


def level(module: str) -> int | None:
    for i, names in enumerate(LAYERS):
        if any(module == n or module.startswith(n + ".") for n in names):
            return i
    return None


def sources() -> list[tuple[str, Path]]:
    found = []
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            module = ".".join([package, *(p for p in parts if p != "__init__")])
            if module != "dns_onnx":  # the package's own door opens on everything, lazily
                found.append((module, path))
    return found


def imported(path: Path, module: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize(("module", "path"), sources(), ids=[m for m, _ in sources()])
def test_imports_flow_downwards(module: str, path: Path) -> None:
    own = level(module)
    assert own is not None, f"{module} has no layer: add it to LAYERS"
    above = {n for n in imported(path, module) if (level(n) or 0) > own}
    assert not above, f"{module} imports from above: {sorted(above)}"


@pytest.mark.parametrize("module", ["dns_onnx", "dns_onnx.runtime", "dns_onnx.converters.exporter"])
def test_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_torch_never_exports() -> None:
    """Export edits the original file; torch.onnx.export has no place here."""
    for module, path in sources():
        names = imported(path, module)
        assert not any(n.startswith("torch.onnx") for n in names), module
