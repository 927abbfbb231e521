"""What the verbs print with: tables and bars on a terminal, plain and quiet elsewhere."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from dns_onnx import distributed, journal, report
from dns_onnx.errors import ExportError
from dns_onnx.runtime.check import Check

out = Console(soft_wrap=True, highlight=False)
errors = Console(stderr=True, soft_wrap=True, highlight=False)


def show(title: str, table: report.Table) -> None:
    """Print a table: drawn on a terminal, tab-separated elsewhere."""
    header, rows = table
    if not out.is_terminal:
        out.print(title, markup=False)
        for cells in [header, *rows]:
            out.print("\t".join(cells), markup=False)
        return
    drawn = Table(title=title, title_justify="left", title_style="bold", header_style="dim")
    for i, name in enumerate(header):
        numeric = any(row[i][:1].isdigit() for row in rows)
        drawn.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*map(Text, row))  # Text: names may hold what rich takes for markup
    out.print(drawn)


def print_verdict(check: Check) -> None:
    """What a check found, in words, and what it missed."""
    for sentence in check.words:
        out.print(sentence, markup=False)
    for problem in check.problems:
        out.print(f"MISSED: {problem}", style="red", markup=False)


def command_line() -> str:
    """The line that starts this program's work anew, as a shell takes it."""
    return shlex.join(["dns-onnx", *(word for word in sys.argv[1:] if word != "--resume")])


def write_json(path: Path, value: Any) -> None:
    """Write JSON values to a file."""
    try:
        path.write_text(json.dumps(value, indent=1, default=str), "utf-8")
    except OSError as error:
        raise ExportError(f"{path}: cannot be written: {error}") from error


@contextmanager
def training_progress() -> Iterator[journal.Observer]:
    """An observer that draws a bar on a terminal; elsewhere it says a line each tenth."""
    if not distributed.is_main():
        yield journal.silent
        return
    if not errors.is_terminal:
        yield _Tenths()
        return
    columns = (
        TextColumn("surgery"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("loss {task.fields[loss]}  {task.fields[metric]}"),
        TextColumn("kept {task.fields[kept]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=errors, transient=True) as bar:
        task = bar.add_task("surgery", total=None, loss="-", metric="", kept="-")
        metric = ""

        def observe(p: journal.Progress) -> None:
            nonlocal metric
            metric = metric if p.value is None else f"{p.metric} {p.value:.4f}"
            bar.update(
                task, total=p.iterations, completed=p.iteration, loss=f"{p.loss:.4f}",
                metric=metric, kept=report.percent(p.kept / p.size),
            )  # fmt: skip

        yield observe


class _Tenths:
    """Says a plain line at each tenth of a run."""

    def __init__(self) -> None:
        self.said = 0

    def __call__(self, p: journal.Progress) -> None:
        tenth = 10 * p.iteration // p.iterations
        if tenth <= self.said:
            return
        self.said = tenth
        left = p.seconds / p.iteration * (p.iterations - p.iteration)
        errors.print(
            f"iteration {p.iteration}/{p.iterations}  loss {p.loss:.4f}  "
            f"kept {report.percent(p.kept / p.size)}  {left:.0f} s left",
            markup=False,
        )
