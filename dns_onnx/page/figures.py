"""The figures of the page: drawn for a wide and for a narrow screen, each with its table."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

from markupsafe import Markup

from dns_onnx.budget import DEFAULT_DROP
from dns_onnx.journal import Progress
from dns_onnx.page.story import Histogram, Story, lineage, thinned
from dns_onnx.page.svg import Axis, Plot, Point, around
from dns_onnx.page.words import compact, listed, reading, share, signless
from dns_onnx.report import Table
from dns_onnx.runtime.metrics import Metric
from dns_onnx.trials import Plan, Trial

WIDE, NARROW = 880, 360  # pixels: the sizes that a figure is drawn for
LINES = 6  # layers that get a line of their own, the largest ones
Draw = Callable[[int], Markup]


@dataclass(frozen=True)
class Figure:
    """A drawing with its words.

    key: (class, meaning) of each colour.  table: what it is made of.
    """

    title: str
    words: str
    image: Markup
    table: Table
    key: list[tuple[str, str]] = field(default_factory=list)


def both(draw: Draw) -> Markup:
    """The drawing in both sizes; the style sheet shows the one that fits."""
    return Markup('<div class="wide">{}</div><div class="narrow">{}</div>').format(
        draw(WIDE), draw(NARROW)
    )


def shape(width: int, share: float = 0.36) -> tuple[int, int]:
    """(width, height) of a plot; narrow ones are higher for their width."""
    return width, round(width * share) if width >= WIDE else round(width * share * 1.8)


# ------------------------------------------------------------------ the front


def trials_of(story: Story) -> list[Trial]:
    """The search's trials; without a search, the run itself as the only one."""
    if story.trials:
        return story.trials
    check, outcome, m = story.result.check, story.result.outcome, story.result.check.metric
    if m is None:
        return []
    return [
        Trial(0, Plan(check.ratio, None), check.ratio, check.kept, check.total, m.after, m.name,
              m.before, m.before, m.drop, check.ok, outcome.iterations, outcome.seconds, {}, "",
              {}, {})
    ]  # fmt: skip


def front(story: Story) -> Figure | None:
    """Size against metric: a dot for each trial."""
    trials = trials_of(story)
    seen = [t for t in trials if t.metric is not None]
    if not seen:
        return None
    metric, original = story.result.metric, seen[0].original_metric
    name, say = metric.name, reading(metric)
    budget = _budget(story, seen)
    rules = [original] if budget is None else [original, budget]
    ratios = [t.ratio for t in seen]

    def draw(width: int) -> Markup:
        low = 1.0 if len(seen) == 1 else min(ratios) / 1.6
        x = Axis(low, max(ratios) * 1.4, "log", words=lambda v: f"{compact(v)}x")
        y = replace(_near(rules, seen), words=say)
        plot = Plot(shape(width, 0.42 if len(seen) > 1 else 0.28), x, y, (26, 14, 38, 62))
        plot.grid("compression (parameters of the original over those kept)", name)
        if len(seen) > 1:
            line = [(t.ratio, t.metric or 0.0) for t in undominated(seen)]
            plot.line([(r, y.clipped(m)) for r, m in line], "line front")
        below = budget is not None and budget >= original
        plot.across(original, "rule", f"original {metric.text(original)}", below)
        if budget is not None and budget != original:
            plot.across(budget, "rule budget", f"allowed {metric.text(budget)}", budget < original)
        for t in seen:
            m = t.metric or 0.0
            said = f"trial {t.trial}: {t.ratio:.1f}x, {name} {metric.text(m)}, {t.verdict}"
            outside = "" if y.inside(m) else " outside"
            plot.dot(t.ratio, y.clipped(m), f"mark {t.verdict}{outside}", said,
                     8 if t is story.chosen else 5)  # fmt: skip
        return plot.svg(f"{name} against compression, {len(seen)} trials")

    words = (
        "Each dot is a trial of the search, the large one the result; the line joins those that no "
        "other beats. A faint dot at the rim lies further out than is drawn."
        if story.trials
        else "There was no search: the one run is the one dot."
    )
    if len(seen) < len(trials):
        words += f" {len(trials) - len(seen)} diverged and have no dot."
    if story.result.reference is not None and story.result.reference.said:
        said = story.result.reference.said
        words += f" {said[:1].upper()}{said[1:]}."
    key = [(v, v) for v in ("accepted", "rejected") if any(t.verdict == v for t in seen)]
    return Figure("Size against quality", words, both(draw), _trial_table(trials, metric), key)


def _near(rules: list[float], trials: list[Trial]) -> Axis:
    """The metrics worth drawing: those of the rules and of accepted trials, and what is near."""
    found = [t.metric for t in trials if t.metric is not None]
    core = rules + [t.metric for t in trials if t.accepted and t.metric is not None] or found
    reach = 4 * (max(core) - min(core)) or max(map(abs, core))
    return around([*core, *(v for v in found if min(core) - reach < v < max(core) + reach)])


def undominated(trials: list[Trial]) -> list[Trial]:
    """The front: trials that no other beats in both size and drop, the smallest model last."""
    found: list[Trial] = []
    for t in sorted(trials, key=lambda t: (-t.ratio, t.drop or 0.0)):
        if not found or (t.drop or 0.0) < (found[-1].drop or 0.0):
            found.append(t)
    return found[::-1]


def _budget(story: Story, trials: list[Trial]) -> float | None:
    """The worst value of the metric that is allowed, where one is."""
    metric, target, drop = story.result.metric, story.result.config.target, story.result.max_drop
    drop = target.max_drop if drop is None else drop
    if drop is None and story.trials and target.density is None and target.min_metric is None:
        drop = DEFAULT_DROP
    if drop is None or not trials:
        return target.min_metric
    start = trials[0].reference
    unit = {"fraction": 0.01, "ratio": abs(start) / 100}.get(metric.kind, 1.0)
    value = start - unit * drop if metric.higher_is_better else start + unit * drop
    least = target.min_metric
    return value if least is None or metric.better(value, least) else least


def _trial_table(trials: list[Trial], metric: Metric) -> Table:
    header = ["trial", "compression", "kept", metric.name, "original", "reference",
              f"drop ({metric.drop_unit})", "verdict", "iterations", "seconds", "plan",
              "kept by layer", "note"]  # fmt: skip
    return header, [
        [str(t.trial), f"{t.ratio:.1f}x", f"{t.kept:,}", metric.text(t.metric),
         metric.text(t.original_metric), metric.text(t.reference),
         _drop(t), t.verdict, f"{t.iterations:,}",
         f"{t.seconds:.0f}", listed(asdict(t.plan)), listed(t.layers), t.note]
        for t in trials
    ]  # fmt: skip


def _drop(trial: Trial) -> str:
    if trial.drop is None:
        return "-"
    return f"{trial.drop:.2f} ± {trial.error:.2f}" if trial.error else f"{trial.drop:.2f}"


# ------------------------------------------------------------------ the course of the run


def course(story: Story) -> Figure | None:
    """Loss and the held-out metric over the iterations."""
    looks = thinned(story.looks, 160)
    if len(looks) < 2:
        return None
    losses = [(float(k.iteration), k.loss) for k in looks]
    values = [(float(k.iteration), k.value) for k in looks if k.value is not None]
    values = [(i, v) for i, v in values if math.isfinite(v)]
    outcome, metric = story.result.outcome, story.result.metric
    best = None if story.trials else outcome.best_metric

    def panel(width: int, points: list[Point], y: Axis, name: str, class_: str) -> Plot:
        plot = Plot(shape(width, 0.22), Axis(0, looks[-1].iterations), y, (24, 14, 34, 56))
        plot.grid("iteration", name)
        if story.frozen_at is not None:
            plot.upright(story.frozen_at, "rule", "masks at rest")
        plot.line(points, f"line {class_}")
        if len(points) <= 40:
            for i, v in points:
                plot.dot(i, v, f"point {class_}", f"iteration {i:,.0f}: {y.words(v)}", 2.5)
        return plot

    def draw(width: int) -> Markup:
        low, high = min(v for _, v in losses), max(v for _, v in losses)
        y = around([low, high], "log" if 0 < 5 * low < high else "linear")
        panels = [panel(width, losses, y, "loss", "loss").svg("Training loss over the iterations")]
        if values:
            y = replace(around(v for _, v in values), words=reading(metric))
            plot = panel(width, values, y, f"{metric.name}, held-out", "metric")
            if best is not None and y.inside(best):
                said = f"the result: iteration {outcome.best_iteration:,}"
                plot.dot(outcome.best_iteration, best, "mark accepted", said)
            panels.append(plot.svg(f"Held-out {metric.name} over the iterations"))
        return Markup("\n").join(panels)

    words = "Each loss is the mean since the look before."
    if story.chosen is not None:
        behind = ", ".join(str(t.trial) for t in lineage(story.trials, story.chosen))
        words += f" The trials that led to the result, one after the other: {behind}."
    elif best is not None:
        words += f" The state at iteration {outcome.best_iteration:,} is the result."
    rows = [
        [f"{k.iteration:,}", f"{k.loss:.4g}", f"{k.rate:.3g}", metric.text(k.value),
         f"{k.kept:,}"]
        for k in looks
    ]  # fmt: skip
    table = (["iteration", "loss", "learning rate", f"{metric.name}, held-out", "kept"], rows)
    return Figure("Loss and quality", words, both(draw), table)


# ------------------------------------------------------------------ connections


def changes(story: Story) -> Figure | None:
    """Connections spliced back (upwards) and cut (downwards) between looks."""
    if not story.looks:
        return None

    def sums(looks: list[Progress]) -> list[tuple[int, int, int]]:
        return [
            (k.iteration, sum(c.cut for c in k.layers.values()),
             sum(c.spliced for c in k.layers.values()))
            for k in looks
        ]  # fmt: skip

    def draw(width: int) -> Markup:
        found = sums(thinned(story.looks, 80 if width >= WIDE else 36))
        top = float(max(max(c, s) for _, c, s in found)) or 1.0
        y = Axis(-top * 1.2, top * 1.2, "counts", words=signless)
        plot = Plot(shape(width, 0.34), Axis(0, found[-1][0]), y, (24, 14, 34, 56))
        plot.grid("iteration", "connections", y_ticks=3)
        start = 0
        for i, cut, spliced in found:
            gap = 0.12 * (i - start)
            for count, class_, word in ((spliced, "spliced", "spliced back"), (-cut, "cut", "cut")):
                if count:
                    said = f"iterations {start:,} to {i:,}: {abs(count):,} {word}"
                    plot.box((start + gap, i - gap), (0, count), class_, said)
            start = i
        plot.across(0, "axis")
        return plot.svg("Connections spliced back and cut over the iterations")

    rows = [[f"{i:,}", f"{c:,}", f"{s:,}"] for i, c, s in sums(thinned(story.looks, 80))]
    words = (
        "Counted between looks at the masks, on a logarithmic scale: what was cut and came back "
        "between two looks is not in it."
    )
    return Figure("Cut, and spliced back", words, both(draw),
                  (["up to iteration", "cut", "spliced back"], rows),
                  [("spliced", "spliced back"), ("cut", "cut")])  # fmt: skip


def kept_by_layer(story: Story) -> Figure | None:
    """The share kept of all layers, and of the largest ones, over the iterations."""
    looks = thinned(story.looks, 160)
    if len(looks) < 2:
        return None
    sizes = {layer.weight: layer.size for layer in story.result.layers}
    names = {layer.weight: layer.name or layer.weight for layer in story.result.layers}
    largest = sorted((n for n in sizes if n in looks[-1].layers), key=lambda n: -sizes[n])[:LINES]
    start = {n: c.kept + c.cut - c.spliced for n, c in looks[0].layers.items()}
    lines = {
        n: [(0.0, start[n] / sizes[n]),
            *((float(k.iteration), k.layers[n].kept / sizes[n]) for k in looks)]
        for n in largest
    }  # fmt: skip
    everything = [(0.0, sum(start.values()) / looks[0].size),
                  *((float(k.iteration), k.kept / k.size) for k in looks)]  # fmt: skip
    low = min((v for line in [*lines.values(), everything] for _, v in line if v > 0), default=0.1)

    def draw(width: int) -> Markup:
        y = Axis(low / 1.5, 1.0, "log", words=share)
        plot = Plot(shape(width, 0.34), Axis(0, looks[-1].iterations), y, (24, 14, 34, 56))
        plot.grid("iteration", "kept")
        for i, line in enumerate(lines.values()):
            plot.line([(x, max(v, y.low)) for x, v in line], f"line c{i}")
        plot.line([(x, max(v, y.low)) for x, v in everything], "line all")
        return plot.svg("Share of each layer kept over the iterations")

    rows = [[f"{k.iteration:,}", f"{k.kept:,}", *(f"{k.layers[n].kept:,}" for n in sizes)]
            for k in thinned(looks, 80)]  # fmt: skip
    words = "" if len(sizes) <= LINES else f"The {LINES} largest layers; the table has all."
    key = [("all", "all together"), *((f"c{i}", names[n]) for i, n in enumerate(lines))]
    table = (["iteration", "all", *(names[n] for n in sizes)], rows)
    return Figure("Kept over time", words, both(draw), table, key)


# ------------------------------------------------------------------ weights


def weights(histogram: Histogram) -> Figure:
    """How the weights of a layer lie before and after, and the band of the threshold."""
    h = histogram
    y = Axis(0, max(h.before) * 1.3 or 1.0, "counts")
    plot = Plot((360, 190), Axis(h.edges[0], h.edges[-1]), y, (24, 10, 32, 44))
    plot.grid("weight", "entries", x_ticks=5)
    if h.a is not None and h.b:
        for low, high in ((h.a, h.b), (-h.b, -h.a)):
            plot.box((low, high), (0, y.high), "band", f"threshold: a {h.a:.4g}, b {h.b:.4g}")
    for counts, class_ in ((h.before, "before"), (h.after, "after")):
        for i, n in enumerate(counts):
            if n:
                said = f"{h.edges[i]:.3g} to {h.edges[i + 1]:.3g}: {n:,} {class_}"
                plot.box((h.edges[i], h.edges[i + 1]), (0, n), class_, said)
    band = "" if h.a is None else f"a {h.a:.4g}, b {h.b:.4g}"
    rows = [
        [f"{low:.4g}", f"{high:.4g}", f"{b:,}", f"{a:,}"]
        for low, high, b, a in zip(h.edges, h.edges[1:], h.before, h.after, strict=False)
    ]
    table = (["from", "to", "before", "after"], rows)
    return Figure(h.name, band, plot.svg(f"Weights of {h.name} before and after"), table)
