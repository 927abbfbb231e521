"""What an import costs in memory, measured in a process of its own."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "import_memory.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("import_memory", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
@pytest.mark.parametrize("layout", ["external data", "single file"])
def test_no_weight_is_held_twice(layout: str, benchmark: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    weights = benchmark.write_model(path, 96_000_000, layout)
    row = benchmark.measure(path, weights)
    assert row["finite"]
    assert 0.9 < row["run_growth"]  # else it measured nothing
    assert row["import_growth"] < 1.3
    assert row["run_growth"] < 1.3
