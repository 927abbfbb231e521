"""The run as one HTML file that needs nothing else: no network, no script, no font."""

from __future__ import annotations

import shlex
from importlib import resources
from typing import Any

import torch
from jinja2 import Environment, FunctionLoader, StrictUndefined

from dns_onnx.config_files import to_toml
from dns_onnx.page import bars, figures
from dns_onnx.page.story import Story
from dns_onnx.page.words import duration, nbytes, unbroken
from dns_onnx.report import (
    Table,
    check_table,
    layer_table,
    machine,
    percent,
    spared_table,
    tensor_table,
    units_table,
)


def render(story: Story) -> str:
    """The page.  Whatever comes from the model or the user is escaped on its way in."""
    environment = Environment(
        loader=FunctionLoader(_source), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["numeric"] = numeric
    return environment.get_template("page.html").render(context(story))


def _source(name: str) -> str:
    return resources.files("dns_onnx.page").joinpath(name).read_text("utf-8")


def context(story: Story) -> dict[str, Any]:
    """What the template fills in."""
    result = story.result
    layer_bars, marks = bars.layers(story)
    course = [f(story) for f in (figures.course, figures.changes, figures.kept_by_layer)]
    return {
        "result": result,
        "check": result.check,
        "headline": headline(story),
        "tiles": tiles(story),
        "front": figures.front(story),
        "course": [f for f in course if f is not None],
        "totals": totals_table(story),
        "layers": {"bars": layer_bars, "marks": marks, "table": layer_table(result)},
        "weights": [figures.weights(h) for h in story.histograms],
        "bands": any(h.a is not None for h in story.histograms),
        "sizes": bars.sizes(story),
        "latencies": bars.latencies(story),
        "figures": check_table(result.check),
        "timings": timing_table(story),
        "spared": spared_table(result),
        "tensors": tensor_table(result.export.tensors),
        "units": units_table(result.export.dropped),
        "repeat": repeat_table(story),
        "command": in_lines(story.command) if story.command else None,
        "settings": to_toml(result.config),
    }


def headline(story: Story) -> str:
    """The whole result in a sentence."""
    check, m = story.result.check, story.result.check.metric
    said = f"{check.ratio:.1f} times fewer parameters"
    if m is None:
        return f"{said}; nothing was read that says how good it still is."
    where = f"on {check.rows:,} rows of {story.result.metric_source} data"
    before, after, _ = m.said
    if m.against != "labels":
        return unbroken(f"{said}, and {m.name} with the original is {after} {where}.")
    moved = f"stayed at {after}" if before == after else f"went from {before} to {after}"
    return unbroken(f"{said}, and {m.name} {where} {moved}.")


def tiles(story: Story) -> list[tuple[str, str, str]]:
    """(name, value, words) of the figures that matter most."""
    check, s = story.result.check, story.result.check.sizes
    found = [
        ("Compression", f"{check.ratio:.1f}x",
         f"{check.kept:,} of {check.total:,} parameters kept"),
        *_quality(story),
        ("File", nbytes(s.file), f"{s.original / s.file:.1f}x smaller than {nbytes(s.original)}"),
    ]  # fmt: skip
    first, *others = check.timings
    best = min(others, key=lambda t: t.latency_ms, default=first)
    found.append(
        ("Latency", duration(best.latency_ms),
         f"{best.ratio:.2f}x as fast as the original ({duration(first.latency_ms)}); {best.name}")
    )  # fmt: skip
    if story.looks:
        last = story.looks[-1]
        returned = sum(c.returned for c in last.layers.values())
        # each trial counts anew: what came back in one before it and stayed is not in its count
        least = "at least " if story.trials else ""
        found.append(
            ("Came back", unbroken(percent(returned / max(last.kept, 1), 0)),
             f"{least}{returned:,} of {last.kept:,} kept connections had been cut before")
        )  # fmt: skip
    return found


def _quality(story: Story) -> list[tuple[str, str, str]]:
    m = story.result.check.metric
    if m is None:
        return []
    before, after, _ = m.said
    moved = "worse" if m.drop > 0 else "better"
    words = f"{before} before" if m.against == "labels" else "with the original model's outputs"
    if m.drop:
        words = f"{words}; {abs(m.drop):.2f} {m.unit} {moved}"
    return [(m.name[:1].upper() + m.name[1:], unbroken(after), unbroken(words))]


def totals_table(story: Story) -> Table:
    """What surgery did to each layer over the whole run."""
    names = {layer.weight: layer.name or layer.weight for layer in story.result.layers}
    header = [
        "layer",
        "cut in all",
        "spliced back in all",
        "kept at the end",
        "of these cut before",
    ]
    rows = [
        [names.get(key, key), f"{c.cut:,}", f"{c.spliced:,}", f"{c.kept:,}",
         f"{c.returned:,} ({percent(c.returned / max(c.kept, 1), 0)})"]
        for key, c in story.totals().items()
    ]  # fmt: skip
    return header, rows


def timing_table(story: Story) -> Table:
    """Latency and load time of each contender."""
    header = ["contender", "latency, median", "quartiles", "speed", "load", "runs"]
    return header, [
        [t.name, duration(t.latency_ms), f"{duration(t.low_ms)} to {duration(t.high_ms)}",
         f"{t.ratio:.2f}x", duration(t.load_ms), f"{t.runs:,}"]
        for t in story.result.check.timings
    ]  # fmt: skip


def repeat_table(story: Story) -> Table:
    """What a second run needs to come out the same."""
    result = story.result
    rows = [
        ["model", str(result.model)],
        ["model, SHA-256", str(result.fingerprint.get("model", "-"))],
        ["training data, SHA-256", str(result.fingerprint.get("data", "-"))],
        ["recipe", result.config.name],
        ["seed", str(result.config.seed)],
        ["iterations", f"{result.outcome.iterations:,} in {result.outcome.seconds:.0f} s"],
        ["trained on", f"{result.device}, CPU threads: {torch.get_num_threads()}"],
        ["run folder", str(result.run_dir)],
        *([name, value] for name, value in machine().items()),
    ]
    return ["what", "value"], rows


def in_lines(command: str) -> str:
    """A command with a line for each option, which a shell takes as well."""
    lines: list[list[str]] = [[]]
    for word in shlex.split(command):
        if word.startswith("-"):
            lines.append([])
        lines[-1].append(word)
    return " \\\n  ".join(shlex.join(line) for line in lines)


def numeric(table: Table) -> set[int]:
    """The columns, from 0, that hold nothing but numbers and dashes: they are set to the right."""
    header, rows = table
    return {
        i
        for i in range(1, len(header))
        if rows
        and all(row[i][:1].isdigit() or row[i] in ("-", "") for row in rows)
        and any(row[i] for row in rows)
    }
