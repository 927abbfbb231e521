"""Numbers as a reader wants them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dns_onnx.runtime.metrics import Metric

_GAP = "\u00a0"  # keeps a number and its unit on one line


def compact(value: float) -> str:
    """A number in few characters: 1.5M, 12k, 0.03."""
    size = abs(value)
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def signless(value: float) -> str:
    """The same, of what is drawn downwards."""
    return compact(abs(value))


def share(fraction: float) -> str:
    """A fraction as per cent in few characters."""
    return f"{100 * fraction:.3g}{_GAP}%"


def nbytes(count: float) -> str:
    """A number of bytes: 25.4 kB."""
    number = compact(count)
    unit = number[-1] if number[-1].isalpha() else ""
    return f"{number.removesuffix(unit)}{_GAP}{unit}B"


def duration(milliseconds: float) -> str:
    """A short time: 12.7 µs, 3.4 ms."""
    if milliseconds < 0.1:
        return f"{1000 * milliseconds:.3g}{_GAP}µs"
    return f"{milliseconds:.3g}{_GAP}ms"


def reading(metric: Metric) -> Callable[[float], str]:
    """How values of a metric are written beside an axis."""
    if metric.kind == "fraction":
        return lambda value: f"{100 * value:.4g}{_GAP}%"
    return lambda value: f"{value:.4g}{_GAP}{metric.unit}".rstrip()


def listed(values: Mapping[str, object], most: int = 12) -> str:
    """Names and values in one line, the first of them where there are many."""
    parts = [f"{k} {compact(v) if isinstance(v, float) else v}" for k, v in values.items()]
    more = [f"and {len(parts) - most} more"] if len(parts) > most else []
    return ", ".join(parts[:most] + more)


def unbroken(text: str) -> str:
    """The same text, with its percentages never broken apart."""
    return text.replace(" %", f"{_GAP}%")
