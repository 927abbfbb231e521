"""What is cut and spliced as one: single entries, blocks, N of M, or whole channels.

A grain turns a weight into the magnitudes of its groups (the root mean square, so that a group is
measured by the same thresholds as an entry), and a decision on groups back into a mask on entries.
The rule of cutting and splicing is the same for all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dns_onnx.errors import ConfigError

_BLOCKS = re.compile(r"([1-9]\d*)x([1-9]\d*)")
_N_OF_M = re.compile(r"([1-9]\d*):([1-9]\d*)")
DAMPING = 0.1  # of the mean curvature of a layer, in that of each entry


class _Single:
    """Groups of one entry each."""

    def groups(self, mask: Tensor) -> Tensor:
        """Which groups are kept: bool, in the shape of `magnitudes`."""
        return mask

    def entries(self, groups: Tensor, like: Tensor) -> Tensor:
        """The mask, in the shape of `like`, that keeps these groups."""
        return groups

    def size(self, weight: Tensor) -> int:
        """Entries in a (whole) group."""
        return 1


@dataclass(frozen=True)
class Elements(_Single):
    """Every entry by itself."""

    def magnitudes(self, weight: Tensor) -> Tensor:
        """The root mean square of each group: float, one number a group."""
        return weight.abs()


class Weighed(_Single):
    """Every entry by itself, its magnitude weighed by how its curvature compares with its layer's.

    To second order, cutting an entry w raises the loss by F w^2 / 2, F its mean squared gradient.
    So entries of a layer compare by |w| sqrt(F / mean F), with `DAMPING` of the mean mixed in: a
    few gradients say little of one entry.

    squares: F, a moving average.  factors: what magnitudes are multiplied by.  Both float32, in the
    weight's shape and layout.
    Source: LeCun, Denker, Solla, "Optimal Brain Damage", NIPS 1989.
    """

    def __init__(self, weight: Tensor) -> None:
        self.squares = torch.zeros_like(weight, dtype=torch.float32)
        self.factors = torch.ones_like(self.squares)

    def listen(self, gradient: Tensor, memory: float) -> None:
        """Take in a gradient; `memory` of what was known stays."""
        g = gradient.float()
        self.squares.mul_(memory).addcmul_(g, g, value=1 - memory)

    def weigh(self, mask: Tensor) -> None:
        """Set the factors; the mean is that over the kept entries."""
        mean = (self.squares * mask).sum() / mask.sum().clamp_min(1)
        share = (1 - DAMPING) / mean.clamp_min(torch.finfo(torch.float32).tiny)
        torch.sqrt(self.squares * share + DAMPING, out=self.factors)

    def magnitudes(self, weight: Tensor) -> Tensor:
        return weight.abs() * self.factors


@dataclass(frozen=True)
class Blocks:
    """Blocks of `rows` outputs by `cols` inputs; what does not fill a block is one too.

    out_axis, in_axis: of the weight.  Other axes (a kernel's height and width) are walked one by
    one.
    """

    rows: int
    cols: int
    out_axis: int
    in_axis: int

    def magnitudes(self, weight: Tensor) -> Tensor:
        return (self._sums(weight.square()) / self.sizes(weight)).sqrt()

    def sizes(self, weight: Tensor) -> Tensor:
        """Entries in each block."""
        return self._sums(torch.ones_like(weight))

    def groups(self, mask: Tensor) -> Tensor:
        return self._sums(mask.float()) > 0

    def entries(self, groups: Tensor, like: Tensor) -> Tensor:
        wide = groups.repeat_interleave(self.rows, -2).repeat_interleave(self.cols, -1)
        moved = like.movedim((self.out_axis, self.in_axis), (-2, -1))
        wide = wide.view(*moved.shape[:-2], *wide.shape[-2:])
        wide = wide[..., : moved.shape[-2], : moved.shape[-1]]
        return wide.movedim((-2, -1), (self.out_axis, self.in_axis))

    def size(self, weight: Tensor) -> int:
        return self.rows * self.cols

    def _sums(self, x: Tensor) -> Tensor:
        """Sums over the blocks: [rest, ceil(out / rows), ceil(in / cols)]."""
        x = x.movedim((self.out_axis, self.in_axis), (-2, -1))
        x = x.reshape(-1, *x.shape[-2:])
        x = F.pad(x, (0, -x.shape[-1] % self.cols, 0, -x.shape[-2] % self.rows))
        blocked = x.unflatten(-1, (-1, self.cols)).unflatten(-3, (-1, self.rows))
        total: Tensor = blocked.sum((-3, -1))
        return total


@dataclass(frozen=True)
class Channels:
    """Whole output channels (Conv), or units (Gemm, MatMul).

    out_axis: of the weight; a bias has axis 0.
    """

    out_axis: int

    def magnitudes(self, weight: Tensor) -> Tensor:
        return self._flat(weight).square().mean(1).sqrt()

    def groups(self, mask: Tensor) -> Tensor:
        return self._flat(mask).any(1)

    def entries(self, groups: Tensor, like: Tensor) -> Tensor:
        shape = [1] * like.ndim
        shape[self.out_axis] = -1
        return groups.view(shape).expand_as(like)

    def size(self, weight: Tensor) -> int:
        return weight.numel() // weight.shape[self.out_axis]

    def _flat(self, x: Tensor) -> Tensor:
        return x.movedim(self.out_axis, 0).flatten(1) if x.ndim > 1 else x[:, None]


@dataclass(frozen=True)
class NOfM:
    """At most `n` of every `m` entries that follow each other along the input axis.

    Sparse tensor cores read 2:4 along a convolution's input channels, and along the summed axis of
    a matrix product.  What remains at the end of the axis, shorter than `m`, keeps up to `n`.
    Source: Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021.
    """

    n: int
    m: int
    in_axis: int

    def choose(self, weight: Tensor, mask: Tensor, keep: int, bonus: float) -> Tensor:
        """The mask that keeps the `keep` largest of every `m`.

        bonus: factor on what is kept now, so that an entry comes back only when it is clearly
        larger than the one whose place it takes.
        """
        value = torch.where(mask, weight.abs() * bonus, weight.abs()).movedim(self.in_axis, -1)
        padded = F.pad(value, (0, -value.shape[-1] % self.m), value=-1.0)
        grouped = padded.unflatten(-1, (-1, self.m))
        best = grouped.topk(min(keep, self.m), dim=-1).indices
        chosen = torch.zeros_like(grouped, dtype=torch.bool).scatter_(-1, best, True)
        flat = chosen.flatten(-2)[..., : value.shape[-1]]
        return flat.movedim(-1, self.in_axis)


Thresholded = Elements | Weighed | Blocks | Channels  # what a threshold decides about
AnyGrain = Thresholded | NOfM


def group_sizes(grain: Thresholded, weight: Tensor) -> Tensor:
    """How many entries each group has: float, in the shape of its magnitudes."""
    if isinstance(grain, Blocks):
        return grain.sizes(weight)  # those at the edges are smaller
    return torch.full_like(grain.magnitudes(weight), grain.size(weight))


def grain_of(name: str, out_axis: int | None, in_axis: int | None, layer: str) -> AnyGrain:
    """The grain that a setting names: `element`, `1x4`, `2:4` or `channel`.

    out_axis, in_axis: of the layer's weight; None where it has none (an RNN's stacked gates).
    Raises ConfigError for another name, and for a layer without these axes.
    """
    if name == "element":
        return Elements()
    blocks, n_of_m = _BLOCKS.fullmatch(name), _N_OF_M.fullmatch(name)
    if not blocks and not n_of_m and name != "channel":
        raise ConfigError(
            f"granularity: expected element, channel, blocks such as 1x4, or 2:4, got '{name}'"
        )
    if out_axis is None or in_axis is None:
        raise ConfigError(
            f"layer '{layer}': granularity '{name}' needs a weight with one output and one input "
            "axis (Conv, ConvTranspose, Gemm, MatMul); give the layer granularity = 'element'"
        )
    if blocks:
        return Blocks(int(blocks[1]), int(blocks[2]), out_axis, in_axis)
    if n_of_m:
        n, m = int(n_of_m[1]), int(n_of_m[2])
        if n >= m:
            raise ConfigError(f"granularity: expected N below M in N:M, got '{name}'")
        return NOfM(n, m, in_axis)
    return Channels(out_axis)
