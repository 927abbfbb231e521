"""Prices: which entries are the dearest, and the threshold that leaves a wanted number."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dns_onnx import prices
from dns_onnx.granularity import Blocks
from dns_onnx.masks import Masked
from dns_onnx.surgery import LOWER_EDGE, UPPER_EDGE, LayerSurgery, Schedule
from tests.test_targets import layers


def test_the_exact_end_keeps_the_dearest() -> None:
    made = layers((30, 40), (10, 30))
    scales = {"w0": torch.tensor(1.5, dtype=torch.float64), "w1": torch.tensor(1.0).double()}
    price = np.concatenate(
        [float(scales[x.key]) * t.weight.detach().abs().flatten().numpy()
         for x in made for t in x.tensors]
    )  # fmt: skip
    prices.keep_dearest(made, scales, 333)
    masks = np.concatenate([t.mask.flatten().numpy() for x in made for t in x.tensors])
    assert masks.sum() == 333
    assert price[masks].min() > price[~masks].max()


def test_blocks_at_the_edge_count_as_the_entries_that_they_have() -> None:
    weight = Masked("w", torch.arange(1.0, 31.0).reshape(5, 6))
    weight.attach_mask()
    made = LayerSurgery("w", [weight], Schedule(0.0), Blocks(4, 1, 0, 1))
    prices.keep_dearest([made], {"w": torch.tensor(1.0).double()}, 18)
    kept = torch.zeros(5, 6, dtype=torch.bool)
    kept[4], kept[:4, 3:] = True, True  # six blocks of one entry, three of four
    assert torch.equal(weight.mask, kept)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.05], ids=lambda share: f"{share:.0%} kept before")
@pytest.mark.parametrize("wanted", [14_000, 5000, 400])
def test_thresholds_leave_about_the_wanted_number(wanted: int, share: float) -> None:
    made = layers((300, 40), (100, 30))
    rng = torch.Generator().manual_seed(0)
    for holder in (t for layer in made for t in layer.tensors):
        holder.mask.copy_(torch.rand(holder.weight.shape, generator=rng) < share)
    scales = {"w0": torch.tensor(0.8, dtype=torch.float64), "w1": torch.tensor(1.0).double()}
    found = prices.thresholds(made, scales, wanted)
    for layer, t in zip(made, found, strict=True):
        layer.cut_and_splice(LOWER_EDGE * t, UPPER_EDGE * t)
    assert sum(layer.kept() for layer in made) == pytest.approx(wanted, rel=0.02, abs=3)


def test_at_the_exact_end_an_entry_comes_back_only_for_one_that_is_clearly_smaller() -> None:
    made = layers((1, 4))
    weight, bias = made[0].tensors
    weight.weight.data = torch.tensor([[3.0, 1.0, 1.1, 2.0]])
    weight.mask.copy_(torch.tensor([[True, True, False, False]]))
    bias.weight.data, bias.mask = torch.zeros(1), torch.zeros(1, dtype=torch.bool)
    prices.keep_dearest(made, {"w0": torch.tensor(1.0).double()}, 3)
    assert weight.mask.tolist() == [[True, True, False, True]]


@pytest.mark.parametrize("columns", [48, 50, 1 << 10])
def test_large_tensors_are_read_in_part(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setattr(prices, "ENOUGH", 1 << 12)
    rows = 6 * (1 << 12) // columns
    torch.manual_seed(0)
    # one column in two matters: a sample that saw but some columns would be far off
    values = torch.randn(rows, columns) * (torch.arange(columns) % 2)
    mask = torch.rand(rows, columns) > 0.3
    part, kept, k = prices.some(values, mask)
    assert k >= 5
    assert len(part) == len(kept) == -(-values.numel() // k)
    whole = (values * mask).square().sum() / mask.sum()
    assert (part * kept).square().sum() / kept.sum() == pytest.approx(float(whole), rel=0.15)
    assert prices.some(values.t(), mask.t())[2] == 1  # not in one piece
    assert prices.some(values[:2], mask[:2])[2] == 1
