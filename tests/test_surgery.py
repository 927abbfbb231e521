"""The rules of Dynamic Network Surgery, and the values that the authors' code gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from dns_onnx import masks
from dns_onnx.errors import CheckpointError, TrainingError
from dns_onnx.masks import Masked
from dns_onnx.surgery import LayerSurgery, Schedule, Surgery, mean_and_std, prune_and_splice

# Measured on the authors' dense models with their c_rates: file, layer, c_rate, mu, std, a, b,
# weights and biases kept by the first update.
PAPER = [
    ("lenet5", "conv1", 2.0, 0.186034, 0.116885, 0.377824, 0.461785, 30, 0),
    ("lenet5", "conv2", 3.0, 0.033996, 0.024249, 0.096068, 0.117417, 419, 4),
    ("lenet5", "ip1", 4.0, 0.021867, 0.013425, 0.068009, 0.083122, 255, 0),
    ("lenet5", "ip2", 2.5, 0.057739, 0.042102, 0.146696, 0.179295, 188, 0),
    ("lenet300100", "ip1", 5.0, 0.024520, 0.017425, 0.100479, 0.122808, 768, 12),
    ("lenet300100", "ip2", 3.0, 0.047063, 0.034630, 0.135858, 0.166049, 642, 3),
    ("lenet300100", "ip3", 3.0, 0.189093, 0.142803, 0.555752, 0.679253, 16, 0),
]


def layer(
    weight: torch.Tensor, schedule: Schedule, bias: torch.Tensor | None = None
) -> LayerSurgery:
    tensors = [Masked("w", weight)] + ([Masked("b", bias)] if bias is not None else [])
    for tensor in tensors:
        tensor.attach_mask()
    return LayerSurgery("layer", tensors, schedule)


@pytest.mark.parametrize("row", PAPER, ids=lambda r: f"{r[0]}-{r[1]}")
def test_first_update_of_the_authors_models(row: tuple, paper_models: Path) -> None:
    net, name, c_rate, mu, std, a, b, weights, biases = row
    model = onnx.load(paper_models / f"{net}_dense.onnx")
    arrays = {
        i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in model.graph.initializer
    }
    operated = layer(
        arrays[f"{name}.weight"], Schedule(c_rate, iter_stop=1), arrays[f"{name}.bias"]
    )
    Surgery([operated], seed=0).step(0)
    assert (operated.mu, operated.std) == pytest.approx((mu, std), abs=6e-7)
    assert operated.thresholds(0) == pytest.approx((a, b), abs=6e-7)
    assert [int(t.mask.sum()) for t in operated.tensors] == [weights, biases]


def test_statistics_are_over_nonzero_entries_of_weights_and_biases_together() -> None:
    kept = [torch.tensor([[1.0, 0.0], [-3.0, 0.0]]), torch.tensor([2.0])]
    assert mean_and_std(kept) == pytest.approx((2.0, np.std([1, 3, 2])))
    assert mean_and_std([torch.zeros(4)]) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("magnitude", "kept", "after"),
    [
        pytest.param(0.9, True, False, id="kept-at-a-is-cut"),
        pytest.param(0.91, True, True, id="kept-between-stays"),
        pytest.param(0.91, False, False, id="cut-between-stays"),
        pytest.param(1.1, False, False, id="cut-at-b-stays"),
        pytest.param(1.11, False, True, id="cut-above-b-comes-back"),
        pytest.param(1.11, True, True, id="kept-above-b-stays"),
        pytest.param(0.0, True, False, id="zero-is-cut"),
    ],
)
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_prune_and_splice(
    magnitude: float, kept: bool, after: bool, sign: float, dtype: torch.dtype
) -> None:
    weight = torch.tensor([sign * magnitude], dtype=dtype)
    before, mask = weight.clone(), torch.tensor([kept])
    # thresholds as the dtype holds them, so that "at the threshold" means the same in each
    a, b = torch.tensor([0.9, 1.1], dtype=dtype).tolist()
    prune_and_splice(weight, mask, a, b)
    assert bool(mask) is after
    assert torch.equal(weight, before)


def test_large_tensors_are_updated_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(3)
    weight, mask = torch.randn(1000, generator=rng), torch.rand(1000, generator=rng) > 0.5
    whole = mask.clone()
    prune_and_splice(weight, whole, 0.9, 1.1)
    monkeypatch.setattr(masks, "CACHE_CHUNK", 64)
    prune_and_splice(weight, mask, 0.9, 1.1)
    assert torch.equal(mask, whole)
    assert torch.equal(whole, (weight.abs() > 1.1) | (whole & (weight.abs() > 0.9)))


def test_a_negative_threshold_is_zero_and_keeps_everything_but_zeros() -> None:
    operated = layer(torch.tensor([0.0, 0.1, 1.0]), Schedule(-100.0, iter_stop=1))
    Surgery([operated], seed=0).step(0)
    assert operated.thresholds(0) == (0.0, 0.0)
    assert operated.tensors[0].mask.tolist() == [False, True, True]


def test_statistics_are_measured_once_although_the_weights_change() -> None:
    operated = layer(torch.tensor([1.0, 2.0, 3.0]), Schedule(0.0, iter_stop=9))
    operated.update(0)
    operated.tensors[0].weight.data.mul_(10)
    operated.update(1)
    assert operated.mu == pytest.approx(2.0)
    assert operated.tensors[0].mask.tolist() == [True, True, True]


def test_a_layer_without_bias_is_operated_on() -> None:
    operated = layer(torch.tensor([0.1, 5.0]), Schedule(0.0, iter_stop=1))
    Surgery([operated], seed=0).step(0)
    assert operated.kept() == 1
    assert operated.size() == 2


@pytest.mark.parametrize(
    ("gamma", "power", "iteration", "expected"),
    [(1e-4, 1.0, 0, 1.0), (1e-4, 1.0, 10_000, 0.5), (3e-4, 2.0, 10_000, 1 / 16)],
)
def test_probability(gamma: float, power: float, iteration: int, expected: float) -> None:
    assert Schedule(1.0, gamma, power).probability(iteration) == pytest.approx(expected)


def test_iteration_zero_always_fires() -> None:
    for seed in range(50):
        operated = layer(torch.ones(2), Schedule(1.0, gamma=9.0, power=9.0, iter_stop=1))
        assert Surgery([operated], seed).step(0) == ["layer"]


def test_updates_fire_as_often_as_the_probability_says() -> None:
    operated = layer(torch.ones(1), Schedule(1.0, gamma=1e-3, power=1.0, iter_stop=10**9))
    s = Surgery([operated], seed=7)
    fired = sum(bool(s.step(1000)) for s.seed in range(4000))
    assert fired / 4000 == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("iter_stop", [0, -1, 5])
def test_masks_freeze_at_iter_stop(iter_stop: int) -> None:
    operated = layer(torch.tensor([0.1, 5.0]), Schedule(0.0, gamma=0.0, iter_stop=iter_stop))
    s = Surgery([operated], seed=0)
    fired = [i for i in range(8) if s.step(i)]
    assert fired == list(range(max(iter_stop, 0)))


def test_draws_are_per_layer_and_come_from_the_seed() -> None:
    def history(seed: int) -> list[list[str]]:
        layers = []
        for name in "ab":
            one = layer(torch.ones(1), Schedule(1.0, gamma=1e-2, iter_stop=10**6))
            one.name = name
            layers.append(one)
        s = Surgery(layers, seed)
        return [s.step(i) for i in range(300)]

    assert history(1) == history(1)
    assert history(1) != history(2)
    assert {"a"} in [set(h) for h in history(1)]
    assert {"b"} in [set(h) for h in history(1)]


def test_ramp_raises_c_rate_linearly() -> None:
    schedule = Schedule(8.0, ramp_from=0.5, ramp_iters=100)
    assert [schedule.c_rate_at(i) for i in (0, 50, 100, 500)] == [4.0, 6.0, 8.0, 8.0]
    assert Schedule(8.0).c_rate_at(0) == 8.0


def test_a_ramp_to_a_negative_c_rate_rises_too() -> None:
    schedule = Schedule(-0.7, ramp_from=-1.0, ramp_iters=100)
    assert [round(schedule.c_rate_at(i), 6) for i in (0, 50, 100)] == [-2.1, -1.4, -0.7]


def test_state_survives_and_foreign_state_is_refused() -> None:
    first, second = (layer(torch.tensor([1.0, 3.0]), Schedule(0.0)) for _ in range(2))
    first.thresholds(0)
    Surgery([second], 0).load_state(Surgery([first], 0).state(), {})
    assert (second.mu, second.std) == (first.mu, first.std)
    with pytest.raises(CheckpointError, match="expected the layers"):
        Surgery([second], 0).load_state({"other": {"mu": 1.0, "std": 1.0}}, {})


def test_nothing_to_operate_on_is_an_error() -> None:
    with pytest.raises(TrainingError, match="at least one prunable layer"):
        Surgery([], 0)


def test_plain_masked_gradients_would_kill_splicing() -> None:
    """A cut entry whose gradient is alive grows until it is spliced back."""
    operated = layer(torch.tensor([1.0, 1.0, 0.2]), Schedule(-0.8, gamma=0.0, iter_stop=100))
    holder = operated.tensors[0]
    s = Surgery([operated], 0)
    optimizer = torch.optim.SGD([holder.weight], lr=0.05)
    s.step(0)
    assert holder.mask.tolist() == [True, True, False]
    for i in range(1, 40):
        s.step(i)
        optimizer.zero_grad()
        (holder() - torch.tensor([1.0, 1.0, 1.0])).square().sum().backward()
        optimizer.step()
    assert holder.mask.tolist() == [True, True, True]
