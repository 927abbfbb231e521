"""Just enough SVG: an axis, and a plot of lines, dots and rectangles with ticks and labels.

Colours and fonts come from the page's style sheet, by class; every string is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from markupsafe import Markup, escape

from dns_onnx.page.words import compact

Point = tuple[float, float]
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Axis:
    """Values from low to high, on one of three scales.

    counts: log(1 + |v|) with the sign of v, for counts that may be 0 and are drawn both ways.
    """

    low: float
    high: float
    scale: Literal["linear", "log", "counts"] = "linear"
    words: Callable[[float], str] = field(default=compact)

    def at(self, value: float) -> float:
        """Where a value lies: 0 at low, 1 at high."""
        low, high = self._unscaled(self.low), self._unscaled(self.high)
        return (self._unscaled(value) - low) / ((high - low) or 1.0)

    def _unscaled(self, value: float) -> float:
        if self.scale == "log":
            return math.log10(max(value, 1e-300))
        return math.copysign(math.log10(1 + abs(value)), value) if self.scale == "counts" else value

    def ticks(self, about: int = 5) -> list[float]:
        """Round values between low and high."""
        if self.scale == "linear":
            return _round_values(self.low, self.high, about)
        top = max(abs(self.low), abs(self.high))
        least = (10 if top > 100 else 1) if self.scale == "counts" else self.low
        first = math.floor(math.log10(least))
        powers = range(first, math.floor(math.log10(max(top, 1e-300))) + 1)
        found = [10.0**p for p in powers[:: max(1, math.ceil(len(powers) / about))]]
        if self.scale == "counts":
            return [v for v in (*(-v for v in found[::-1]), 0.0, *found) if self.inside(v)]
        if len(found) < 4:
            found = [m * 10.0**p for p in powers for m in (1, 2, 5)]
        found = [v for v in found if self.inside(v)]
        return found if len(found) > 1 else _round_values(self.low, self.high, about)

    def clipped(self, value: float) -> float:
        """The value, or the end of the axis that it lies beyond."""
        return min(max(value, self.low), self.high)

    def inside(self, value: float) -> bool:
        """Whether the value lies on the axis."""
        return -1e-9 <= self.at(value) <= 1 + 1e-9


def _round_values(low: float, high: float, about: int) -> list[float]:
    span = (high - low) or 1.0
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(s * power for s in _STEPS if s * power >= span / about * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def around(values: Iterable[float], scale: Literal["linear", "log"] = "linear") -> Axis:
    """An axis with some air around the values."""
    found = list(values)
    low, high = min(found), max(found)
    if scale == "log":
        air = max((high / low) ** 0.08, 1.1)
        return Axis(low / air, high * air, "log")
    air = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return Axis(low - air, high + air)


class Plot:
    """One set of axes, `size` pixels wide and high; what is drawn later lies above."""

    def __init__(
        self, size: tuple[int, int], x: Axis, y: Axis,
        margins: tuple[int, int, int, int] = (10, 12, 34, 52),
    ) -> None:  # fmt: skip
        """margins: above, right, below, left."""
        self.width, self.height = size
        self.x, self.y = x, y
        self.above, self.right, self.below, self.left = margins
        self.parts: list[Markup] = []

    def px(self, value: float) -> float:
        return self.left + self.x.at(value) * (self.width - self.left - self.right)

    def py(self, value: float) -> float:
        return self.height - self.below - self.y.at(value) * (self.height - self.above - self.below)

    def draw(self, name: str, title: str = "", text: str = "", **attributes: object) -> None:
        """An SVG element.  class_: for the style sheet.  title: shown under the pointer."""
        said = "".join(
            f' {key.strip("_").replace("_", "-")}="{escape(_short(value))}"'
            for key, value in attributes.items()
        )
        inner = f"<title>{escape(title)}</title>" if title else ""
        self.parts.append(Markup(f"<{name}{said}>{inner}{escape(text)}</{name}>"))

    def grid(self, x_name: str, y_name: str, x_ticks: int = 6, y_ticks: int = 4) -> None:
        """Grid lines, tick labels and the names of both axes."""
        bottom, end = self.height - self.below, self.width - self.right
        for v in self.y.ticks(y_ticks):
            y = self.py(v)
            self.draw("line", class_="grid", x1=self.left, x2=end, y1=y, y2=y)
            self.text(self.left - 6, y + 4, self.y.words(v), "tick", "end")
        for v in self.x.ticks(x_ticks):
            self.draw("line", class_="grid", x1=self.px(v), x2=self.px(v), y1=bottom, y2=bottom + 4)
            self.text(self.px(v), bottom + 16, self.x.words(v), "tick", "middle")
        self.draw("line", class_="axis", x1=self.left, x2=end, y1=bottom, y2=bottom)
        self.text(end, self.height - 4, x_name, "name", "end")
        self.text(self.left, self.above - 8, y_name, "name", "start")

    def text(self, x: float, y: float, words: str, class_: str, anchor: str = "start") -> None:
        """Words at a place in pixels."""
        self.draw("text", text=words, class_=class_, x=x, y=y, text_anchor=anchor)

    def line(self, points: Sequence[Point], class_: str) -> None:
        path = " ".join(f"{_short(self.px(x))},{_short(self.py(y))}" for x, y in points)
        self.draw("polyline", class_=class_, points=path)

    def dot(self, x: float, y: float, class_: str, title: str, radius: float = 5) -> None:
        self.draw("circle", title, class_=class_, cx=self.px(x), cy=self.py(y), r=radius)

    def box(self, x: tuple[float, float], y: tuple[float, float], class_: str, title: str) -> None:
        """A rectangle between two values on each axis."""
        left, right = sorted(map(self.px, x))
        top, bottom = sorted(map(self.py, y))
        self.draw("rect", title, class_=class_, x=left, y=top, width=right - left,
                  height=bottom - top)  # fmt: skip

    def across(self, value: float, class_: str, words: str = "", below: bool = False) -> None:
        """A horizontal rule at a value of y, with words at its start."""
        y, end = self.py(value), self.width - self.right
        self.draw("line", class_=class_, x1=self.left, x2=end, y1=y, y2=y)
        if words:
            self.text(self.left + 4, y + (13 if below else -5), words, "note")

    def upright(self, value: float, class_: str, words: str) -> None:
        """A vertical rule at a value of x, with words at its top."""
        x, left = self.px(value), self.x.at(value) > 0.7
        self.draw("line", class_=class_, x1=x, x2=x, y1=self.above, y2=self.height - self.below)
        self.text(
            x + (-5 if left else 5), self.above + 11, words, "note", "end" if left else "start"
        )

    def svg(self, label: str, class_: str = "") -> Markup:
        """The whole image.  label: what it shows, for those who cannot see it."""
        body = Markup("\n").join(self.parts)
        return Markup(
            '<svg role="img" class="{}" viewBox="0 0 {} {}" aria-label="{}">\n{}\n</svg>'
        ).format(class_, self.width, self.height, label, body)


def _short(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
