"""Parts of a weight, wherever they lie in what a layer is called with."""

from __future__ import annotations

import pytest
import torch

from dns_onnx.fit.terms import Origin, Term, fit_sum, sample
from dns_onnx.masks import Masked


def holder(*shape: int) -> Masked:
    found = Masked("w", torch.arange(1.0, 1.0 + torch.Size(shape).numel()).reshape(shape))
    found.attach_mask(found.weight % 2 == 0)
    return found


@pytest.mark.parametrize(
    ("view", "index"),
    [
        (lambda w: w[1:].T, None),
        (lambda w: w.flip(0)[:2], torch.tensor([4, 5, 2, 3, 0, 1])),
    ],
    ids=["a view", "in another order"],
)
def test_a_term_reads_and_writes_its_part_of_the_weight(view, index) -> None:
    held = holder(3, 2)
    before = held.weight.detach().clone()
    value = view(held()) if index is None else held().flip(0)[:2]
    term = Term(value, Origin(held, index), lambda v: v[None], lambda m: m[0])
    assert torch.equal(term.now(), view(before * held.mask))
    assert torch.equal(term.kept(), view(held.mask))
    term.put(term.matrix(-view(before)))
    after = held.weight.detach()
    part = torch.zeros_like(held.mask)
    part[1:] = True
    assert torch.equal(after, torch.where(held.mask & part, -before, before))


def test_what_cannot_be_changed_is_taken_from_what_is_wanted() -> None:
    """y = 2 a + 3 b, where the 3 is given and the other begins at one."""
    held = Masked("w", torch.ones(1, 1))
    held.attach_mask()
    a, b = torch.randn(1, 50, 1, generator=torch.Generator().manual_seed(0)), torch.ones(1, 50, 1)
    free = Term(held(), Origin(held), lambda v: v[None], lambda m: m[0])
    fixed = Term(torch.full((1, 1), 3.0), None, lambda v: v[None], lambda m: m[0])
    fit_sum([free, fixed], [a, b], 2 * a + 3 * b)
    torch.testing.assert_close(held.weight.detach(), torch.full((1, 1), 2.0), atol=0.02, rtol=0)


def test_a_sample_is_the_same_for_the_same_number() -> None:
    places = torch.arange(10, 60)
    assert torch.equal(sample(places, 50, 0), places)
    some = sample(places, 7, 1)
    assert torch.equal(some, sample(places, 7, 1))
    assert not torch.equal(some, sample(places, 7, 2))
    assert torch.equal(some, some.sort().values)
