"""The page: whole, quiet, honest about its figures, and deaf to what a model's names say."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx
import pytest

from dns_onnx import compress, page
from dns_onnx.config import parse_config
from dns_onnx.config_files import load_config
from dns_onnx.errors import CheckpointError
from dns_onnx.journal import Change, Progress
from dns_onnx.page.figures import _budget, undominated
from dns_onnx.page.render import in_lines, numeric, render
from dns_onnx.page.story import Story, gather, lineage, thinned
from dns_onnx.page.svg import Axis, Plot, around
from dns_onnx.page.words import compact, duration, listed, nbytes, share
from dns_onnx.reference import Reference
from dns_onnx.result import Result
from tests.conftest import small_net

HOSTILE = ("<script>alert(1)</script>", "\"'><img src=x onerror=alert(1)>", "{{ 7 * 7 }} &amp; ]]>")
VOID = {"meta", "line", "rect", "circle", "polyline", "text"}


class Page(HTMLParser):
    """The elements of a page, its text, and whether every tag is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str, class_: str | None = None) -> list[dict[str, str | None]]:
        return [
            a for t, a in self.elements
            if t == tag and (class_ is None or class_ in (a.get("class") or "").split())
        ]  # fmt: skip


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A short run of a model whose names are an attack."""
    folder = tmp_path_factory.mktemp("<b>run")
    names = {"fc1": HOSTILE[0], "fc1.w": HOSTILE[1], "fc2": HOSTILE[2]}
    model = small_net()
    for node in model.graph.node:
        node.name = names.get(node.name, node.name)
        for i, name in enumerate(node.input):
            node.input[i] = names.get(name, name)
    for tensor in model.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    onnx.save(model, folder / "<i>.onnx")
    rng = np.random.default_rng(0)
    centres = 2 * rng.standard_normal((4, 8))
    labels = rng.integers(0, 4, 300)
    x = (centres[labels] + rng.standard_normal((300, 8))).astype(np.float32)
    np.savez(folder / "train.npz", x=x, labels=labels)
    config = parse_config(
        {"name": "<u>", "train": {"iterations": 200, "eval_every": 50, "log_every": 10},
         "solver": {"lr": 0.05}, "surgery": {"c_rate": 0.8, "iter_stop": 120},
         "layer": [{"match": HOSTILE[2], "c_rate": 0.5}]}, "test",
    )  # fmt: skip
    return compress(folder / "<i>.onnx", folder / "out.onnx", train=f"{folder}/train.npz",
                    config=config, max_drop=1.0, bench_seconds=0.01)  # fmt: skip


def trials() -> list[dict]:
    rows = [
        (20.0, 0.97, 0.0, True, ""),
        (40.0, 0.96, 1.0, True, "<script>"),
        (80.0, 0.9, 7.0, False, ""),
        (60.0, 0.2, 77.0, False, ""),
        (90.0, None, None, False, "loss nan; rolled back"),
    ]
    return [
        {"trial": i, "ratio": r, "kept": 10, "size": 400, "metric": m, "metric_name": "accuracy",
         "original_metric": 0.972, "reference": 0.97, "drop": d, "accepted": ok, "iterations": 100,
         "seconds": 1.5, "plan": {"ratio": r, "parent": None if i == 0 else 0}, "note": note,
         "layers": {HOSTILE[0]: 5}, "thresholds": {}, "settings": {"seed": 3}}
        for i, (r, m, d, ok, note) in enumerate(rows)
    ]  # fmt: skip


@pytest.fixture
def searched(result: Result, tmp_path: Path) -> Story:
    """The same run as the result of a search: its second trial, which went on from the first."""
    run, rows = tmp_path / "run", trials()
    for i in (0, 1):
        shutil.copytree(result.run_dir, run / f"trial-{i:03d}")
    rows[1]["layers"] = {layer.weight: layer.kept for layer in result.layers}
    (run / "trials.jsonl").write_text("".join(json.dumps(t) + "\n" for t in rows))
    known = Reference(0.97, 0.972, "the original knows the held-out rows by heart <b>")
    told = replace(result, run_dir=run, reference=known)
    return gather(told, "dns-onnx compress '<i>.onnx' -o out.onnx")


def test_the_page_is_whole_and_quiet(searched: Story) -> None:
    html = render(searched)
    found = Page(html)
    assert not found.all("script")
    assert not found.all("img")
    for tag, attributes in found.elements:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("src", "href", "xlink:href", "action"):
            assert (attributes.get(name) or "#").startswith("#"), attributes
    assert "@import" not in html
    assert "url(" not in html
    assert "http" not in html.replace("http-equiv", "")
    ids = [a["id"] for _, a in found.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"] for a in found.all("a")} <= {f"#{i}" for i in ids}


def test_names_are_shown_and_not_obeyed(searched: Story) -> None:
    text = Page(render(searched)).text
    for name in HOSTILE:
        assert name in text
    assert "<u>" in text
    assert "loss nan; rolled back" in text


def test_every_image_has_words_and_a_table(searched: Story) -> None:
    found = Page(render(searched))
    images = found.all("svg")
    assert len(images) >= 2 * 4 + 2  # each figure wide and narrow, the histograms once
    assert all(a["role"] == "img" and a["aria-label"] for a in images)
    figures = [i for i, (tag, _) in enumerate(found.elements) if tag == "figure"]
    for start, end in zip(figures, [*figures[1:], len(found.elements)], strict=True):
        tags = [tag for tag, _ in found.elements[start:end]]
        if "svg" in tags:
            assert tags.count("table") >= 1
    assert len(found.all("main")) == len(found.all("h1")) == 1


def test_the_figures_are_those_of_the_run(result: Result) -> None:
    story = gather(result)
    found = Page(render(story))
    check, last = result.check, story.looks[-1]
    assert f"{check.ratio:.1f} times fewer parameters" in found.text
    assert f"{check.kept:,} of {check.total:,} parameters kept" in found.text
    assert f"{check.sizes.file:,} bytes" in found.text
    for layer in result.layers:
        assert f"{layer.kept:,} of {layer.size:,}" in found.text
    returned = sum(c.returned for c in last.layers.values())
    assert f"{returned:,} of {last.kept:,} kept connections had been cut before" in found.text
    drawn = len(found.all("rect", "spliced"))
    spliced = [k for k in story.looks if any(c.spliced for c in k.layers.values())]
    assert drawn == 2 * len(spliced) > 0
    assert len(found.all("circle", "accepted")) >= 1
    assert "There was no search" in found.text
    assert str(result.fingerprint["model"]) in found.text
    assert "load_config" in found.text  # started from Python: no command to show


def test_totals_add_up(result: Result) -> None:
    story = gather(result)
    sizes = {layer.weight: layer.size for layer in result.layers}
    for name, total in story.totals().items():
        assert sizes[name] - total.cut + total.spliced == total.kept
    moved = [k.iteration for k in story.looks if any(c.cut + c.spliced for c in k.layers.values())]
    assert story.frozen_at == moved[-1] + 10 <= 130


def test_histograms_count_every_weight(result: Result) -> None:
    story = gather(result)
    for histogram, layer in zip(story.histograms, result.layers, strict=True):
        assert histogram.name == layer.name
        assert sum(histogram.before) == {8 * 32 + 32: 256, 4 * 32 + 4: 128}[layer.size]
        assert sum(histogram.after) <= layer.kept
        t = layer.threshold
        assert (histogram.a, histogram.b) == pytest.approx((0.9 * t, 1.1 * t))


def test_the_front_of_a_search(searched: Story) -> None:
    found = Page(render(searched))
    marks = {c: len(found.all("circle", c)) for c in ("rejected", "outside")}
    assert marks == {"rejected": 4, "outside": 4}
    assert [a["r"] for a in found.all("circle", "mark")].count("8") == 2
    assert "1 diverged and have no dot" in found.text
    assert "at least" in found.text
    assert "The trials that led to the result, one after the other: 0, 1." in found.text
    assert "The original knows the held-out rows by heart <b>." in found.text
    assert "allowed 96" in found.text.replace("\u00a0", " ")
    seen = [t for t in searched.trials if t.metric is not None]
    assert [t.trial for t in undominated(seen)] == [0, 1, 2]


def test_the_course_of_a_search_is_that_of_the_trials_behind_its_result(
    result: Result, searched: Story
) -> None:
    assert searched.chosen is not None
    assert [t.trial for t in lineage(searched.trials, searched.chosen)] == [0, 1]
    alone = gather(result).looks
    iterations = [look.iteration for look in searched.looks]
    assert iterations == [k.iteration for k in alone] + [200 + k.iteration for k in alone]
    assert {look.iterations for look in searched.looks} == {400}
    assert searched.looks[-1].seconds == pytest.approx(2 * alone[-1].seconds)


def test_broken_files_are_named(result: Result, tmp_path: Path) -> None:
    (tmp_path / "trials.jsonl").write_text('{"trial": 0}\n')
    with pytest.raises(CheckpointError, match=r"trials\.jsonl: expected one trial of this version"):
        gather(replace(result, run_dir=tmp_path))
    (tmp_path / "trials.jsonl").unlink()
    (tmp_path / "log.jsonl").write_text('{"iteration": 100, "layers": {"fc1": 3}}\n')
    with pytest.raises(CheckpointError, match=r"log\.jsonl: expected a log of this version"):
        gather(replace(result, run_dir=tmp_path))


def test_a_run_without_a_log_has_a_page(result: Result, tmp_path: Path) -> None:
    text = Page(render(gather(replace(result, run_dir=tmp_path)))).text
    assert "Cut, and spliced back" not in text
    assert "times fewer parameters" in text


def test_the_settings_beside_the_page_are_the_same(result: Result, tmp_path: Path) -> None:
    page.write(result, tmp_path / "report", "dns-onnx compress")
    assert load_config(tmp_path / "report" / "config.toml") == result.config
    assert (tmp_path / "report" / "index.html").stat().st_size < 500_000


def look(iteration: int, loss: float, cut: int, spliced: int, value: float | None) -> Progress:
    change = {"w": Change(100 - iteration, cut, spliced, iteration)}
    return Progress(iteration, 100, loss, 0.1, 100 - iteration, 200, 1.0, "f1", value, change)


def test_thinning_loses_no_change() -> None:
    looks = [look(10, 4.0, 5, 1, None), look(20, 2.0, 3, 2, 0.5), look(40, 1.0, 1, 4, None)]
    (joined,) = thinned(looks, 1)
    assert joined.layers == {"w": Change(60, 9, 7, 40)}
    assert joined.loss == (10 * 4 + 10 * 2 + 20 * 1) / 40
    assert (joined.iteration, joined.value) == (40, 0.5)
    assert thinned(looks, 3) == looks
    assert thinned([], 3) == []


def test_a_verdict_a_trial(searched: Story) -> None:
    said = [t.verdict for t in searched.trials]
    assert said == ["accepted", "accepted", "rejected", "rejected", "diverged"]


@pytest.mark.parametrize(
    ("axis", "ticks"),
    [
        (Axis(0, 1000), [0, 200, 400, 600, 800, 1000]),
        (Axis(0.021, 0.026), [0.021, 0.022, 0.023, 0.024, 0.025, 0.026]),
        (Axis(1, 250, "log"), [1, 2, 5, 10, 20, 50, 100, 200]),
        (Axis(0.001, 1, "log"), [0.001, 0.01, 0.1, 1]),
        (Axis(1.1, 1.3, "log"), [1.1, 1.15, 1.2, 1.25, 1.3]),
        (Axis(-500, 500, "counts"), [-100, -10, 0, 10, 100]),
        (Axis(0, 30, "counts"), [0, 1, 10]),
    ],
    ids=[
        "linear",
        "linear-narrow",
        "log",
        "log-below-one",
        "log-narrow",
        "counts-both-ways",
        "counts-one-way",
    ],
)
def test_ticks_are_round_and_inside(axis: Axis, ticks: list[float]) -> None:
    assert axis.ticks() == pytest.approx(ticks)


def test_axes_place_their_values() -> None:
    assert Axis(1, 100, "log").at(10) == pytest.approx(0.5)
    assert Axis(-99, 99, "counts").at(9) == pytest.approx(0.75)
    assert Axis(3, 3).at(3) == 0.0
    assert around([2.0, 2.0]).inside(2.0)
    assert around([1.0, 9.0], "log").low < 1


def test_plots_escape_their_words() -> None:
    plot = Plot((100, 50), Axis(0, 1), Axis(0, 1))
    plot.text(1, 2, "a<b", "tick")
    plot.dot(0.5, 0.5, 'x" onclick="y', "<title>")
    image = str(plot.svg('"><b>'))
    assert "a&lt;b" in image
    assert "<b>" not in image
    assert 'onclick="' not in image


def test_words() -> None:
    found = [compact(1_234_567), compact(0.0312), share(0.0153), nbytes(25_358), nbytes(900),
             duration(0.0127), duration(12.34)]  # fmt: skip
    assert [w.replace("\u00a0", " ") for w in found] == [
        "1.23M", "0.0312", "1.53 %", "25.4 kB", "900 B", "12.7 µs", "12.3 ms",
    ]  # fmt: skip
    assert listed({"a": 0.51234, "b": 2}) == "a 0.512, b 2"
    assert listed({str(i): i for i in range(5)}, 2) == "0 0, 1 1, and 3 more"
    assert in_lines("dns-onnx compress 'a b.onnx' -o c --seed 3") == (
        "dns-onnx compress 'a b.onnx' \\\n  -o c \\\n  --seed 3"
    )
    assert numeric((["a", "b", "c"], [["1", "2", "x"], ["1", "-", "3"]])) == {1}


@pytest.mark.parametrize(
    ("max_drop", "target", "worst"),
    [
        (2.0, {}, 0.95),
        (None, {"max_drop": 1.0}, 0.96),
        (None, {}, 0.969),
        (None, {"compression": 20}, None),
        (None, {"min_metric": 0.9}, 0.9),
        (2.0, {"min_metric": 0.96}, 0.96),
    ],
    ids=str,
)
def test_the_budget_is_the_strictest_that_was_asked_for(
    searched: Story, max_drop: float | None, target: dict, worst: float | None
) -> None:
    config = parse_config({"target": target}, "test")
    changed = replace(searched.result, config=config, max_drop=max_drop)
    budget = _budget(replace(searched, result=changed), searched.trials)
    assert budget == (None if worst is None else pytest.approx(worst))
