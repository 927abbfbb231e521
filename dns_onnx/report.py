"""A finished compression as figures: JSON for programs, Markdown for people."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch

from dns_onnx.errors import ExportError
from dns_onnx.result import Result
from dns_onnx.runtime.check import Check

Table = tuple[list[str], list[list[str]]]


def percent(fraction: float | None, digits: int = 2) -> str:
    """A fraction as per cent; a dash where there is none."""
    return "-" if fraction is None else f"{100 * fraction:.{digits}f} %"


def layer_table(result: Result) -> Table:
    """Kept entries of each layer under surgery, weights and biases together."""
    header = ["layer", "weight", "parameters", "kept", "share", "threshold"]
    rows = [
        [layer.name, layer.weight, f"{layer.size:,}", f"{layer.kept:,}",
         percent(layer.kept / layer.size),
         "-" if layer.threshold is None else f"{layer.threshold:.4g}"]
        for layer in result.layers
    ]  # fmt: skip
    return header, rows


def spared_table(result: Result) -> Table:
    """Layers that surgery left alone, and why."""
    return ["layer", "weight", "because"], [[s.name, s.weight, s.reason] for s in result.spared]


def tensor_table(rows: Sequence[Any]) -> Table:
    """How each weight is stored in the written file, and why."""
    header = ["tensor", "operator", "nonzero", "dense bytes", "bytes", "stored as", "because"]
    return header, [
        [
            r.name,
            r.op_type,
            f"{r.nnz:,}",
            f"{r.dense_bytes:,}",
            f"{r.bytes:,}",
            r.encoding,
            r.reason,
        ]
        for r in rows
    ]


def units_table(rows: Sequence[Any]) -> Table:
    """Units of each layer before and after the dead ones went."""
    header = ["node", "operator", "units before", "after", "because"]
    return header, [[r.node, r.op_type, str(r.before), str(r.after), r.reason] for r in rows]


def check_table(check: Check) -> Table:
    """What the check measured, a figure a line."""
    sizes = check.sizes
    rows = [
        ["parameters kept", f"{check.kept:,} of {check.total:,}", f"{check.ratio:.1f}x"],
        *_judged(check),
        ["bytes, original", f"{sizes.original:,}", ""],
        ["bytes, this file", f"{sizes.file:,}", f"{sizes.original / sizes.file:.1f}x"],
        ["  gzipped", f"{sizes.file_gzip:,}", ""],
        ["  dense", f"{sizes.dense:,}", "the same weights with zeros in place"],
        ["  dense, gzipped", f"{sizes.dense_gzip:,}", "its arrays"],
        ["  entropy bound", f"{sizes.entropy_bound:,}", "mask and float32 values, ideal coder"],
    ]  # fmt: skip
    for t in check.timings:
        rows.append([f"latency, {t.name}", f"{t.latency_ms:.3f} ms", f"{t.ratio:.2f}x"])
    for t in check.timings:
        rows.append([f"load, {t.name}", f"{t.load_ms:.1f} ms", ""])
    for o in check.outputs:
        rows.append([f"output '{o.name}'", f"max error {o.max_abs:.2e}", f"scale {o.scale:.3g}"])
    return ["figure", "value", ""], rows


def _judged(check: Check) -> list[list[str]]:
    """The metric of both files, and how much worse the pruned one is."""
    m = check.metric
    if m is None:
        return []
    title = f"{m.name} before / after" if m.against == "labels" else f"{m.name} with the original"
    values = " / ".join(m.said[:2]) if m.against == "labels" else m.said[1]
    return [[title, values, f"drop {m.said[2]}, {check.rows:,} rows"]]


def machine() -> dict[str, str]:
    """The machine and the versions that figures were measured with."""
    return {
        "cpu": _cpu_name(),
        "cores": str(os.cpu_count()),
        "system": platform.platform(terse=True),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "dns-onnx": version("dns-onnx"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def to_json(result: Result) -> dict[str, Any]:
    """Everything about a run, as plain JSON values."""
    return {
        "file": str(result.path),
        "device": result.device,
        "machine": machine(),
        "config": result.config.model_dump(mode="json"),
        "outcome": asdict(result.outcome),
        "metric_source": result.metric_source,
        "reference": result.reference and asdict(result.reference),
        "started_at": result.started_at,
        "layers": [asdict(layer) for layer in result.layers],
        "spared": [asdict(layer) for layer in result.spared],
        "tensors": [asdict(row) for row in result.export.tensors],
        "notes": result.export.notes,
        "units": [asdict(row) for row in result.export.dropped],
        "check": result.check.to_json(),
    }


def to_markdown(result: Result) -> str:
    """The same figures to read."""
    outcome = result.outcome
    where = ", ".join(f"{k} {v}" for k, v in machine().items())
    parts = [
        f"# {result.path.name}",
        f"Recipe {result.config.name}, seed {result.config.seed}: {outcome.iterations:,} "
        f"iterations in {outcome.seconds:.0f} s on {result.device}; "
        f"the metric was read on {result.metric_source} data.\n\n{where}",
        "## Layers", markdown(layer_table(result)),
        *(["## Layers left alone", markdown(spared_table(result))] if result.spared else []),
        "## File", markdown(tensor_table(result.export.tensors)),
        *(f"Note: {note}" for note in result.export.notes),
        *_units(result.export.dropped),
        "## Check", markdown(check_table(result.check)),
        *_counted(result),
        *result.check.words,
        *(f"**Problem:** {p}" for p in result.check.problems),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _counted(result: Result) -> list[str]:
    """What the search's drops count from, in a sentence, where there is something to say."""
    said = result.reference.said if result.reference is not None else ""
    return [f"{said[:1].upper()}{said[1:]}."] if said else []


def _units(rows: Sequence[Any]) -> list[str]:
    return ["## Units", markdown(units_table(rows))] if rows else []


def markdown(table: Table) -> str:
    """A table in Markdown."""
    header, rows = table
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def write(result: Result, folder: Path) -> None:
    """Write report.json and report.md into `folder`, which is made where it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(to_json(result), indent=1)
        (folder / "report.json").write_text(text, "utf-8")
        (folder / "report.md").write_text(to_markdown(result), "utf-8")
    except OSError as error:
        raise ExportError(f"{folder}: the report cannot be written: {error}") from error
