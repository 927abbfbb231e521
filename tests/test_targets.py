"""Surgery towards a number of entries: prices, the descent, and its exact end."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dns_onnx import targets
from dns_onnx.errors import CheckpointError
from dns_onnx.granularity import Blocks, NOfM, Weighed
from dns_onnx.masks import Masked
from dns_onnx.surgery import ELEMENTS, LayerSurgery, Schedule
from dns_onnx.targets import Descent, Goal, TargetSurgery


def layers(*shapes: tuple[int, ...], grain: object = ELEMENTS, seed: int = 0) -> list[LayerSurgery]:
    rng = np.random.default_rng(seed)
    made = []
    for index, shape in enumerate(shapes):
        holders = [
            Masked(f"w{index}", torch.from_numpy(rng.normal(size=shape).astype(np.float32))),
            Masked(f"b{index}", torch.from_numpy(rng.normal(size=shape[0]).astype(np.float32))),
        ]
        for holder in holders:
            holder.attach_mask()
        made.append(LayerSurgery(f"layer{index}", holders, Schedule(0.0), grain))  # type: ignore[arg-type]
    return made


def give_gradients(made: list[LayerSurgery], sizes: list[float], iteration: int = 0) -> None:
    rng = torch.Generator().manual_seed(iteration)
    for layer, size in zip(made, sizes, strict=True):
        for holder in layer.tensors:
            holder.weight.grad = size * torch.randn(holder.weight.shape, generator=rng)


def run(surgery: TargetSurgery, iterations: int, sizes: list[float], start: int = 0) -> list[int]:
    kept = []
    for i in range(start, iterations):
        surgery.step(i)
        give_gradients(surgery.layers, sizes, i)
        surgery.listen(i)
        rng = torch.Generator().manual_seed(1000 + i)
        with torch.no_grad():  # the weights move, so that there is something to splice
            for holder in (t for layer in surgery for t in layer.tensors):
                holder.weight += 0.1 * torch.randn(holder.weight.shape, generator=rng)
        kept.append(surgery.kept())
    return kept


def made_surgery(goal: int, by_entry: bool = False) -> TargetSurgery:
    made = layers((30, 40), (10, 30))
    goals = [Goal(("w0", "w1"), goal)]
    return TargetSurgery(made, 0, goals, Descent(300, 250), by_entry=by_entry)


by_layer_or_entry = pytest.mark.parametrize("by_entry", [False, True], ids=["layer", "entry"])


@by_layer_or_entry
@pytest.mark.parametrize("goal", [1540, 700, 77, 5])
def test_the_goal_is_met_exactly(goal: int, by_entry: bool) -> None:
    assert run(made_surgery(goal, by_entry), 301, [1.0, 1.0])[-1] == goal


def test_entries_go_gradually_and_some_come_back() -> None:
    surgery = made_surgery(100)
    before = [layer.tensors[0].mask.clone() for layer in surgery]
    kept = run(surgery, 120, [1.0, 1.0])
    assert 1540 > kept[40] > kept[80] > kept[-1] > 200
    cut = [layer.tensors[0].mask.clone() for layer in surgery]
    run(surgery, 290, [1.0, 1.0], start=120)
    back = sum(
        int((layer.tensors[0].mask & ~was).sum()) for layer, was in zip(surgery, cut, strict=True)
    )
    assert back > 0
    assert all(bool(mask.all()) for mask in before)


def test_nothing_changes_after_the_stop() -> None:
    surgery = made_surgery(100)
    kept = run(surgery, 400, [1.0, 1.0])
    assert set(kept[300:]) == {100}
    assert surgery.frozen_at() == 300


def test_layers_with_larger_gradients_keep_more() -> None:
    surgery = made_surgery(300)
    run(surgery, 301, [2.0, 1.0])
    shares = [layer.kept() / layer.size() for layer in surgery]
    assert shares[0] > shares[1]
    f = [float(surgery.fisher[key]) for key in ("w0", "w1")]
    assert f[0] / f[1] == pytest.approx(4, rel=0.3)
    t = [float(surgery.t[key]) for key in ("w0", "w1")]
    assert t[1] / t[0] == pytest.approx(np.sqrt(f[0] / f[1]), rel=0.02)  # one price for both


def test_entries_with_larger_gradients_keep_more_where_each_is_weighed() -> None:
    kept = {}
    for by_entry in (False, True):
        surgery = made_surgery(300, by_entry)
        for i in range(301):
            surgery.step(i)
            give_gradients(surgery.layers, [1.0, 1.0], i)
            for layer in surgery:
                layer.tensors[0].weight.grad[:, ::2] *= 4  # every other column matters more
            surgery.listen(i)
        masks = [layer.tensors[0].mask for layer in surgery]
        kept[by_entry] = [int(m[:, ::2].sum()) / int(m.sum()) for m in masks]
    assert kept[False] == pytest.approx([0.5, 0.5], abs=0.1)
    assert min(kept[True]) > 0.8


def test_an_entry_that_has_shown_nothing_still_has_a_price() -> None:
    grain = Weighed(torch.zeros(3))
    grain.listen(torch.tensor([0.0, 1.0, 1.0]), 0.9)
    grain.weigh(torch.tensor([True, False, True]))
    mean = 0.05  # of the kept: 0 and 0.1
    expected = [np.sqrt(0.9 * f / mean + 0.1) for f in (0.0, 0.1, 0.1)]
    assert grain.magnitudes(torch.tensor([-1.0, 1.0, 2.0])).tolist() == pytest.approx(
        [expected[0], expected[1], 2 * expected[2]], rel=1e-5
    )


def test_no_layer_is_ever_closed() -> None:
    surgery = made_surgery(20)
    kept = []
    for i in range(301):
        run(surgery, i + 1, [1.0, 1e-9], start=i)
        kept.append(min(layer.kept() for layer in surgery))
    assert min(kept) > 0
    assert surgery.kept() == 20


def test_layers_with_goals_of_their_own() -> None:
    made = layers((30, 40), (10, 30))
    goals = [Goal(("w0",), 615), Goal(("w1",), 31)]
    surgery = TargetSurgery(made, 0, goals, Descent(200, 150))
    run(surgery, 201, [1.0, 1.0])
    assert [layer.kept() for layer in surgery] == [615, 31]


def test_deep_networks_come_down_group_by_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "LAYERS_AT_ONCE", 2)
    made = layers(*[(20, 20)] * 6)
    goal = Goal(tuple(x.key for x in made), 252)
    surgery = TargetSurgery(made, 0, [goal], Descent(400, 400))
    run(surgery, 100, [1.0] * 6)
    shares = [layer.kept() / layer.size() for layer in surgery]
    assert shares[0] < 0.9
    assert shares[4:] == [1.0, 1.0]
    assert [surgery.progress(x.key, 100) > 0 for x in made] == [True] * 2 + [False] * 4
    assert all(surgery.progress(x.key, 400) == 1.0 for x in made)
    assert run(surgery, 401, [1.0] * 6, start=100)[-1] == 252


def test_blocks_meet_the_goal_from_below() -> None:
    made = layers((32, 40), grain=Blocks(1, 4, 0, 1))
    surgery = TargetSurgery(made, 0, [Goal(("w0",), 210)], Descent(100, 80))
    kept = run(surgery, 101, [1.0])[-1]
    assert 206 < kept <= 210
    assert set((made[0].tensors[0].mask.view(-1, 4).sum(1)).tolist()) == {0, 4}


def test_n_of_m_ends_at_n() -> None:
    made = layers((32, 40), grain=NOfM(2, 4, 1))
    surgery = TargetSurgery(made, 0, [Goal(("w0",), 1)], Descent(100, 80))
    kept = run(surgery, 101, [1.0])
    assert set((made[0].tensors[0].mask.view(-1, 4).sum(1)).tolist()) == {2}
    assert sorted(set(kept), reverse=True) == [1312, 992, 672]  # 4, 3, 2 of 4, and the biases


@by_layer_or_entry
def test_a_resumed_surgery_goes_on_bit_for_bit(by_entry: bool) -> None:
    whole, half = made_surgery(100, by_entry), made_surgery(100, by_entry)
    run(whole, 301, [2.0, 1.0])
    run(half, 123, [2.0, 1.0])
    again = made_surgery(100, by_entry)
    again.load_state(half.state(), half.tensors())
    for there, here in zip(again, half, strict=True):
        for a, b in zip(there.tensors, here.tensors, strict=True):
            a.weight.data.copy_(b.weight.data)
            a.mask.copy_(b.mask)
    run(again, 301, [2.0, 1.0], start=123)
    for there, here in zip(again, whole, strict=True):
        for a, b in zip(there.tensors, here.tensors, strict=True):
            assert torch.equal(a.mask, b.mask)
    assert again.state() == whole.state()
    assert len(again.tensors()) == (4 if by_entry else 0)
    assert all(torch.equal(v, whole.tensors()[k]) for k, v in again.tensors().items())


def test_the_state_of_other_layers_is_refused() -> None:
    with pytest.raises(CheckpointError, match="expected the layers"):
        made_surgery(100).load_state({"readings": 1, "layers": {"x": {}}}, {})
