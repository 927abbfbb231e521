"""Horizontal bars: names, values, and lengths in per cent of the width, for the page to lay out."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dns_onnx.page.story import Story
from dns_onnx.page.words import compact, duration
from dns_onnx.report import percent


@dataclass(frozen=True)
class Part:
    """A stretch of a bar.  class_: its colour.  start, width: in per cent.  title: what it is."""

    class_: str
    start: float
    width: float
    title: str


@dataclass(frozen=True)
class Bar:
    """A name, a value in words, and the stretches drawn under them."""

    name: str
    value: str
    parts: list[Part]


def layers(story: Story) -> tuple[list[Bar], list[tuple[str, float]]]:
    """(a bar for each layer: kept and cut entries on a logarithmic scale, the scale's marks)."""
    found = story.result.layers
    top = math.log10(max([layer.size for layer in found] + [10]))

    def place(count: int) -> float:
        return 100 * math.log10(max(count, 1)) / top

    bars = [
        Bar(
            layer.name or layer.weight,
            f"{layer.kept:,} of {layer.size:,} ({percent(layer.kept / layer.size)})",
            [
                Part("after", 0, max(place(layer.kept), 0.4), f"{layer.kept:,} kept"),
                Part("before", place(layer.kept), place(layer.size) - place(layer.kept),
                     f"{layer.size:,} before"),
            ],
        )
        for layer in found
    ]  # fmt: skip
    marks = [(compact(10.0**p), 100 * p / top) for p in range(int(top) + 1)]
    return bars, marks


def sizes(story: Story) -> list[Bar]:
    """Bytes of the file beside the original's and what they could be."""
    s = story.result.check.sizes
    rows = [
        ("original", s.original, "before"),
        (f"this file ({story.result.export.format})", s.file, "after"),
        ("this file, gzipped", s.file_gzip, "other"),
        ("zeros in place", s.dense, "other"),
        ("zeros in place, gzipped", s.dense_gzip, "other"),
        ("entropy bound: mask and float32 values", s.entropy_bound, "bound"),
    ]
    top = max(count for _, count, _ in rows)
    return [
        Bar(
            name,
            f"{count:,} bytes" + (f", {s.original / count:.1f}x smaller" if smaller else ""),
            [Part(class_, 0, 100 * count / top, f"{count:,} bytes")],
        )
        for name, count, class_ in rows
        for smaller in [count and s.original > 1.05 * count]
    ]


def latencies(story: Story) -> list[Bar]:
    """Median latency of each contender, with a mark from the lower to the upper quartile."""
    timings = story.result.check.timings
    top = max(max(t.high_ms, t.latency_ms) for t in timings)
    bars = []
    for i, t in enumerate(timings):
        speed = f", {t.ratio:.2f}x the original's speed" if i else ""
        median = Part("after" if i else "before", 0, 100 * t.latency_ms / top,
                      f"median of {t.runs:,} runs")  # fmt: skip
        quartiles = Part("whisker", 100 * t.low_ms / top, 100 * (t.high_ms - t.low_ms) / top,
                         f"quartiles {duration(t.low_ms)} to {duration(t.high_ms)}")  # fmt: skip
        bars.append(Bar(t.name, duration(t.latency_ms) + speed, [median, quartiles]))
    return bars
