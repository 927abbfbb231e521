"""Groups of entries: their magnitudes, their masks, and the settings that name them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dns_onnx.errors import ConfigError
from dns_onnx.granularity import Blocks, Channels, Elements, NOfM, grain_of
from dns_onnx.masks import Masked
from dns_onnx.surgery import LayerSurgery, Schedule

SHAPES = [
    pytest.param((6, 8), 0, 1, id="rows-are-outputs"),
    pytest.param((8, 6), 1, 0, id="columns-are-outputs"),
    pytest.param((5, 7, 3, 3), 0, 1, id="convolution-with-a-remainder"),
    pytest.param((7, 5, 2), 1, 0, id="transposed-convolution"),
]


@pytest.mark.parametrize(("shape", "out_axis", "in_axis"), SHAPES)
@pytest.mark.parametrize(("rows", "cols"), [(1, 4), (4, 1), (2, 3)])
def test_blocks_are_measured_and_spread(
    shape: tuple[int, ...], out_axis: int, in_axis: int, rows: int, cols: int
) -> None:
    grain = Blocks(rows, cols, out_axis, in_axis)
    weight = torch.from_numpy(np.random.default_rng(0).normal(size=shape))
    found = grain.magnitudes(weight)
    matrix = weight.movedim((out_axis, in_axis), (-2, -1)).reshape(-1, *_two(weight, grain)).numpy()
    for rest in range(len(matrix)):
        for i in range(found.shape[1]):
            for j in range(found.shape[2]):
                block = matrix[rest, i * rows : (i + 1) * rows, j * cols : (j + 1) * cols]
                assert found[rest, i, j] == pytest.approx(np.sqrt((block**2).mean()))
    kept = found > found.median()
    mask = grain.entries(kept, weight)
    assert mask.shape == weight.shape
    assert torch.equal(grain.groups(mask), kept)


def _two(weight: torch.Tensor, grain: Blocks) -> tuple[int, int]:
    return weight.shape[grain.out_axis], weight.shape[grain.in_axis]


@pytest.mark.parametrize(("shape", "out_axis", "in_axis"), SHAPES)
def test_channels(shape: tuple[int, ...], out_axis: int, in_axis: int) -> None:
    grain = Channels(out_axis)
    weight = torch.from_numpy(np.random.default_rng(1).normal(size=shape))
    axes = tuple(a for a in range(len(shape)) if a != out_axis)
    expected = np.sqrt((weight.numpy() ** 2).mean(axes))
    assert grain.magnitudes(weight).numpy() == pytest.approx(expected)
    kept = torch.arange(shape[out_axis]) % 2 == 0
    mask = grain.entries(kept, weight)
    assert torch.equal(grain.groups(mask), kept)
    assert int(mask.sum()) == int(kept.sum()) * grain.size(weight)


@pytest.mark.parametrize(("shape", "out_axis", "in_axis"), SHAPES)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 5)])
def test_n_of_m_keeps_the_largest_of_each(
    shape: tuple[int, ...], out_axis: int, in_axis: int, n: int, m: int
) -> None:
    grain = NOfM(n, m, in_axis)
    weight = torch.from_numpy(np.random.default_rng(2).normal(size=shape))
    mask = grain.choose(weight, torch.ones_like(weight, dtype=torch.bool), n, 1.0)
    values = weight.abs().movedim(in_axis, -1).reshape(-1, shape[in_axis]).numpy()
    masks = mask.movedim(in_axis, -1).reshape(-1, shape[in_axis]).numpy()
    for value, kept in zip(values, masks, strict=True):
        for start in range(0, len(value), m):
            part, chosen = value[start : start + m], kept[start : start + m]
            assert chosen.sum() == min(n, len(part))
            assert set(np.flatnonzero(chosen)) == set(np.argsort(-part)[:n])


def test_n_of_m_gives_a_place_back_only_to_what_is_clearly_larger() -> None:
    grain = NOfM(1, 2, 1)
    mask = torch.tensor([[True, False], [True, False]])
    weight = torch.tensor([[1.0, 1.1], [1.0, 1.3]])
    chosen = grain.choose(weight, mask, 1, 1.1 / 0.9)
    assert chosen.tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("element", Elements()),
        ("1x4", Blocks(1, 4, 0, 1)),
        ("4x1", Blocks(4, 1, 0, 1)),
        ("2:4", NOfM(2, 4, 1)),
        ("channel", Channels(0)),
    ],
)
def test_names(name: str, expected: object) -> None:
    assert grain_of(name, 0, 1, "conv") == expected


@pytest.mark.parametrize("name", ["row", "4:4", "0x4", "5:4", "1x", ""])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="granularity: expected"):
        grain_of(name, 0, 1, "conv")


def test_a_weight_without_axes_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match=r"layer 'lstm'.*granularity = 'element'"):
        grain_of("1x4", None, None, "lstm")


def operated(grain: object, weight: torch.Tensor, bias: torch.Tensor) -> LayerSurgery:
    holders = [Masked("w", weight), Masked("b", bias)]
    for holder in holders:
        holder.attach_mask()
    return LayerSurgery("layer", holders, Schedule(0.0, iter_stop=9), grain)  # type: ignore[arg-type]


def test_channels_take_their_bias_along_and_come_back_with_it() -> None:
    weight = torch.tensor([[1.0, 1.0], [0.1, 0.1]])
    layer = operated(Channels(0), weight, torch.tensor([0.0, 9.0]))
    layer.cut_and_splice(0.5, 0.6)
    assert [t.mask.tolist() for t in layer.tensors] == [[[True] * 2, [False] * 2], [True, False]]
    layer.tensors[0].weight.data[1] = 0.7
    layer.cut_and_splice(0.5, 0.6)
    assert all(bool(t.mask.all()) for t in layer.tensors)


def test_blocks_are_cut_and_spliced_as_one_and_biases_entry_by_entry() -> None:
    weight = torch.tensor([[0.1, 0.2, 3.0, 0.0]])
    layer = operated(Blocks(1, 2, 0, 1), weight, torch.tensor([0.1]))
    layer.cut_and_splice(0.5, 0.6)
    assert layer.tensors[0].mask.tolist() == [[False, False, True, True]]
    assert layer.tensors[1].mask.tolist() == [False]
