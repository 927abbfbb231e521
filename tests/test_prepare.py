"""What a run is put together from where the settings leave it open."""

from __future__ import annotations

import numpy as np
import pytest

from dns_onnx.config import Preprocess, parse_config
from dns_onnx.converters.layers import Layer
from dns_onnx.data import ArrayDataset
from dns_onnx.errors import ConfigError
from dns_onnx.prepare import automatic_shift, cut_singly, with_shift
from dns_onnx.preprocess import InputSpec

CLASSES = np.arange(6) % 3
GREY = (1, 28, 28)


def rows(
    *shapes: tuple[int, ...], dtype: str = "f4", labels: np.ndarray | None = CLASSES
) -> ArrayDataset:
    specs = [InputSpec(f"x{i}", np.dtype(dtype), (None, *s)) for i, s in enumerate(shapes)]
    arrays = {s.name: np.zeros((6, *s.row), dtype) for s in specs}
    return ArrayDataset(specs, arrays, labels, Preprocess(), "t")


@pytest.mark.parametrize(
    ("data", "settings", "pixels"),
    [
        pytest.param(rows(GREY), {}, 1, id="grey images"),
        pytest.param(rows((3, 16, 20)), {}, 1, id="colour images"),
        pytest.param(rows(GREY), {"distill": {"weight": 0.5}}, 1, id="labels and teacher"),
        pytest.param(rows(GREY), {"surgery": {"c_rate": 1.0}}, 0, id="the paper's way"),
        pytest.param(rows(GREY), {"distill": {"weight": 1}}, 0, id="the teacher alone"),
        pytest.param(rows(GREY, labels=None), {}, 0, id="no labels"),
        pytest.param(rows(GREY, labels=CLASSES / 2), {}, 0, id="numbers to predict"),
        pytest.param(rows(GREY, labels=np.zeros((6, 28, 28), int)), {}, 0, id="label maps"),
        pytest.param(rows((1, 8, 8)), {}, 0, id="too few pixels"),
        pytest.param(rows((28, 28, 1)), {}, 0, id="channels last"),
        pytest.param(rows((64, 28, 28)), {}, 0, id="features"),
        pytest.param(rows((784,)), {}, 0, id="flat"),
        pytest.param(rows((40, 64)), {}, 0, id="sequences"),
        pytest.param(rows(GREY, dtype="i8"), {}, 0, id="whole numbers"),
        pytest.param(rows(GREY, GREY), {}, 0, id="two inputs"),
    ],
)
def test_images_that_are_classified_move_by_a_pixel(
    data: ArrayDataset, settings: dict, pixels: int
) -> None:
    config = parse_config(settings, "test")
    assert (config.data.shift, config.data.pixels) == ("auto", 0)
    assert automatic_shift(config, data) == pixels
    assert with_shift(config, pixels).data.pixels == pixels


@pytest.mark.parametrize("shift", [0, 3])
def test_a_shift_that_is_given_stays(shift: int) -> None:
    config = parse_config({"data": {"shift": shift}}, "test")
    assert with_shift(config, 1) == config
    assert config.data.pixels == shift


def layer(axes: int | None, node: str = "fc") -> Layer:
    return Layer(node, "Gemm", f"{node}.w", None, (4, 4), True, "", axes,
                 None if axes is None else 1 - axes)  # fmt: skip


@pytest.mark.parametrize(
    ("granularity", "axes", "rule", "single"),
    [("1x4", None, None, True), ("1x4", None, "1x4", False), ("element", None, None, False),
     ("channel", 0, None, False)],
    ids=["no axes", "no axes, but told", "single anyway", "axes"],
)  # fmt: skip
def test_what_has_no_axes_is_cut_by_single_entries(
    granularity: str, axes: int | None, rule: str | None, single: bool
) -> None:
    rules = [{"match": "f*", "granularity": rule}] if rule else []
    config = parse_config({"surgery": {"granularity": granularity}, "layer": rules}, "test")
    assert cut_singly(layer(axes), config) == single
    with pytest.raises(ConfigError, match="granularity: expected"):
        cut_singly(layer(axes), parse_config({"surgery": {"granularity": "row"}}, "test"))
