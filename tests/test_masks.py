from __future__ import annotations

import copy
import pickle

import pytest
import torch

from dns_onnx import masks
from dns_onnx.masks import Masked, holders
from dns_onnx.surgery import prune_and_splice


def masked() -> Masked:
    holder = Masked("w", torch.tensor([[1.0, -2.0], [3.0, 0.5]]))
    holder.attach_mask(torch.tensor([[True, False], [True, False]]))
    return holder


def test_without_a_mask_the_weight_itself_comes_out() -> None:
    holder = Masked("w", torch.ones(3))
    assert holder() is holder.weight


def test_the_effective_weight_is_zero_where_cut() -> None:
    assert torch.equal(masked()(), torch.tensor([[1.0, 0.0], [3.0, 0.0]]))


def test_cut_entries_receive_the_gradient_of_the_effective_weight() -> None:
    holder = masked()
    target = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    (holder() * target).sum().backward()
    assert torch.equal(holder.weight.grad, target)


def test_sgd_with_momentum_and_decay_moves_cut_entries_as_by_hand() -> None:
    holder = masked()
    optimizer = torch.optim.SGD(holder.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    by_hand, velocity = holder.weight.detach().clone(), torch.zeros(2, 2)
    for _ in range(3):
        optimizer.zero_grad()
        (holder() ** 2).sum().backward()
        optimizer.step()
        gradient = 2 * by_hand * holder.mask
        velocity = 0.9 * velocity + gradient + 0.01 * by_hand
        by_hand = by_hand - 0.1 * velocity
    torch.testing.assert_close(holder.weight.detach(), by_hand, rtol=1e-6, atol=1e-7)
    assert not torch.equal(by_hand[~holder.mask], masked().weight.detach()[~holder.mask])


def test_a_mask_of_another_shape_or_dtype_is_refused() -> None:
    holder = Masked("conv.w", torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"mask of 'conv.w': expected bool \(2, 2\)"):
        holder.attach_mask(torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="expected bool"):
        holder.attach_mask(torch.ones(2, 2))


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_keep_values_and_mask(copier) -> None:
    holder = copier(masked())
    assert torch.equal(holder(), masked()())
    assert holder.name == "w"


def test_the_mask_is_part_of_the_state() -> None:
    assert set(masked().state_dict()) == {"weight", "mask"}


def test_holders_are_found_by_initializer_name() -> None:
    module = torch.nn.ModuleList([Masked("a", torch.ones(1)), Masked("b", torch.ones(2))])
    assert list(holders(module)) == ["a", "b"]


def test_the_product_follows_every_change_of_weight_and_mask() -> None:
    holder = masked()
    optimizers = [torch.optim.SGD([holder.weight], lr=0.5, fused=fused) for fused in (True, False)]
    for optimizer in optimizers:
        holder().sum().backward()
        optimizer.step()
        assert torch.equal(holder(), holder.weight * holder.mask)
    holder.mask.logical_not_()
    assert torch.equal(holder(), holder.weight * holder.mask)
    with torch.no_grad():
        holder.weight.copy_(torch.ones(2, 2))
    assert torch.equal(holder(), holder.mask.float())


def test_a_weight_used_twice_gets_both_gradients() -> None:
    holder = masked()
    x = torch.ones(1, 2)
    ((x @ holder() @ holder()).sum() + holder().sum()).backward()
    reference = (holder.weight * holder.mask).detach().requires_grad_()
    ((x @ reference @ reference).sum() + reference.sum()).backward()
    assert torch.equal(holder.weight.grad, reference.grad)


def test_several_forwards_may_go_before_one_backward() -> None:
    holder = masked()
    ((holder() ** 2).sum() + (holder() ** 3).sum()).backward()
    w = masked()().detach()
    torch.testing.assert_close(holder.weight.grad, 2 * w + 3 * w**2)


def test_a_change_between_forward_and_backward_is_an_error_not_a_wrong_gradient() -> None:
    holder = masked()
    first = (holder() ** 2).sum()
    with torch.no_grad():
        holder.weight.mul_(2)
    holder()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        first.backward()


def test_a_mask_update_between_forward_and_backward_is_an_error_too() -> None:
    holder = masked()
    first = (holder() ** 2).sum()
    prune_and_splice(holder.weight.detach(), holder.mask, 2.5, 2.6)
    holder()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        first.backward()


def test_large_products_are_made_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "CACHE_CHUNK", 64)
    weight, mask = torch.randn(13, 11), torch.rand(13, 11) > 0.5
    out = torch.empty(13, 11)
    masks.multiply(weight, mask, out=out)
    assert torch.equal(out, weight * mask)


def channels_last(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("chunk", [64, 1 << 17])
def test_a_weight_that_lies_channels_last(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(masks, "CACHE_CHUNK", chunk)
    weight, mask = channels_last(7, 5, 3, 3), torch.rand(7, 5, 3, 3) > 0.5
    holder = Masked("w", weight.clone())
    holder.attach_mask(mask)
    assert torch.equal(holder(), weight * mask)
    prune_and_splice(holder.weight.detach(), holder.mask, 0.5, 0.6)
    kept = (mask & (weight.abs() > 0.5)) | (weight.abs() > 0.6)
    assert torch.equal(holder.mask, kept)


def test_the_fused_optimizer_moves_a_weight_that_lies_channels_last() -> None:
    holder = Masked("w", channels_last(7, 5, 3, 3))
    holder.attach_mask()
    x = torch.randn(2, 5, 8, 8)
    before = holder.weight.detach().clone()
    optimizer = torch.optim.SGD(holder.parameters(), lr=0.1, momentum=0.9, fused=True)
    torch.conv2d(x, holder()).square().mean().backward()
    optimizer.step()
    plain = before.contiguous().requires_grad_(True)
    torch.conv2d(x, plain).square().mean().backward()
    torch.testing.assert_close(holder.weight, before - 0.1 * plain.grad)


def test_compiled_gate_equals_eager() -> None:
    holder = masked()
    compiled = torch.compile(holder, backend="eager", fullgraph=True)
    assert torch.equal(compiled(), holder())
