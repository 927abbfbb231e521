"""The price at which a wanted number of entries stays, and the entries that are dearest.

A price is an entry's magnitude times its layer's scale.  A histogram of all prices, made of the
bits of floats, finds the threshold without sorting and without waiting for the device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dns_onnx.granularity import Elements, Thresholded, group_sizes
from dns_onnx.surgery import LOWER_EDGE, UPPER_EDGE, LayerSurgery

FINE = 10  # bits of mantissa that the histogram which finds a price tells apart: 0.1 %
LOWEST, HIGHEST = -80, 20  # log2 of the prices that it tells apart
BINS = HIGHEST - LOWEST << FINE
MANTISSA, BIAS = 23, 127  # of a float32: bits of the one, of the exponent the other
ENOUGH = 1 << 20  # entries of a tensor that thresholds and F_l are read from, at least
LEAST_SHARE = 1e-4  # of a layer that is never cut, lest the layer closes


def thresholds(
    layers: Sequence[LayerSurgery], scales: Mapping[str, Tensor], wanted: int
) -> list[Tensor]:
    """One t for each layer such that about `wanted` entries are kept; never waits for the device.

    Kept when all layers have cut and spliced by it once, that is.
    scales: what turns a layer's magnitudes into prices.
    """
    tops = []  # for each layer: how many entries lie in this bin of prices or above
    for layer in layers:
        counts: Tensor | int = 0
        for holder, mask, grain in layer.parts():
            weight, times = holder.weight.detach(), grain.size(holder.weight)
            if isinstance(grain, Elements):
                weight, mask, times = some(weight, mask)
            found = histogram(limits(weight, mask, grain).mul_(scales[layer.key].float()))
            counts = counts + times * found
        tops.append(torch.as_tensor(counts).flip(0).cumsum(0).flip(0).expand(BINS))
    # the lowest edge that has no more than the wanted number above it
    price = _edge((torch.stack(tops).sum(0) > wanted).sum())
    edges = []
    for layer, top in zip(layers, tops, strict=True):
        # the highest price that still leaves the layer its few, also when they shrink
        highest = _edge((top >= least(layer)).sum() - 1) * LOWER_EDGE / UPPER_EDGE
        edges.append(torch.minimum(price, highest) / scales[layer.key])
    return edges


def histogram(prices: Tensor) -> Tensor:
    """How many prices lie in each bin: [BINS].

    prices: float32, not negative.  Exponent and first bits of the mantissa number the bins.
    """
    bits = prices.flatten().view(torch.int32) >> (MANTISSA - FINE)
    bins = bits.sub_(LOWEST + BIAS << FINE).clamp_(0, BINS - 1)
    if bins.device.type == "cpu":
        return torch.bincount(bins, minlength=BINS)
    return torch.histc(bins.float(), BINS, 0, BINS).long()  # bincount would wait for the device


def some(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, int]:
    """(values, mask, 1), or of a large tensor every k-th entry of both, flat, and k.

    More than a million entries say how the others lie, and reading all would cost more than the
    rest of surgery does.
    """
    k = values.numel() // ENOUGH
    if k < 2 or not (values.is_contiguous() and mask.is_contiguous()):
        return values, mask, 1
    while math.gcd(k, values.shape[-1]) > 1:  # or the same few columns would speak for all
        k += 1
    return values.view(-1)[::k], mask.view(-1)[::k], k


def limits(weight: Tensor, mask: Tensor, grain: Thresholded) -> Tensor:
    """The highest t at which each group would stay, or come back: float32, one number a group."""
    edge = grain.groups(mask).float()  # faster than torch.where
    edge.mul_(1 / LOWER_EDGE - 1 / UPPER_EDGE).add_(1 / UPPER_EDGE)
    return edge.mul_(grain.magnitudes(weight))


def _edge(index: Tensor) -> Tensor:
    """The lower edge of a bin of the histogram, a price."""
    bits = index.to(torch.int32) + (LOWEST + BIAS << FINE) << (MANTISSA - FINE)
    return bits.view(torch.float32).double()


def keep_dearest(layers: Sequence[LayerSurgery], scales: Mapping[str, Tensor], wanted: int) -> None:
    """Masks that keep the entries of highest price, `wanted` of them at most, and no others.

    A cut entry takes a kept one's place only where it would at a threshold, too.  Before all others
    come the few in each layer that are never cut.
    """
    prices, sizes = [], []
    for layer in layers:
        found = [limits(h.weight.detach(), m, g).double().flatten() for h, m, g in layer.parts()]
        price = torch.cat(found) * scales[layer.key]
        size = torch.cat([group_sizes(g, h.weight.detach()).double().flatten()
                          for h, m, g in layer.parts()])  # fmt: skip
        first = price.topk(math.ceil(least(layer) / int(size.max()))).indices
        prices.append(price.scatter(0, first, math.inf))
        sizes.append(size)
    order = torch.cat(prices).argsort(descending=True, stable=True)
    above = torch.cat(sizes)[order].cumsum(0) <= wanted
    chosen = torch.zeros_like(above).scatter_(0, order, above)
    for layer, kept in zip(layers, chosen.split([len(p) for p in prices]), strict=True):
        for holder, mask, grain in list(layer.parts()):
            shape = grain.magnitudes(holder.weight.detach()).shape
            groups, kept = kept[: shape.numel()].view(shape), kept[shape.numel() :]
            if holder is layer.tensors[0]:
                layer.set_groups(groups)
            else:
                mask.copy_(groups)


def least(layer: LayerSurgery) -> int:
    """Entries of a layer that are never cut."""
    return max(math.ceil(LEAST_SHARE * layer.size()), 1)
