"""One-shot pruning with optimal-brain-surgeon updates, layer by layer, after SparseGPT.

    python benchmarks/sparsegpt.py

checks the update against one that solves for the remaining columns anew at each cut.
Source: Frantar and Alistarh, "SparseGPT", ICML 2023, algorithm 1; written from the paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor

from dns_onnx.runtime import session
from dns_onnx.surgery import LayerSurgery

DAMP = 0.01  # of the mean diagonal of the Hessian, added to it, as in the paper
Array = NDArray[Any]


def prune_columns(w: Tensor, hessian: Tensor, kept: int, block: int) -> tuple[Tensor, Tensor]:
    """(new weights, mask): column by column, each cut made good by the columns to its right.

    w: [rows, columns] float64.  hessian: [columns, columns] float64, X X' over calibration inputs
    X [columns, samples].  kept: entries that stay, spread evenly over the blocks.  block: columns
    whose masks are chosen together.
    """
    w, rows = w.clone(), w.shape[0]
    dead = hessian.diagonal() == 0  # inputs that are always zero
    w[:, dead] = 0
    damped = hessian + torch.diag(dead.double() + DAMP * hessian.diagonal().mean())
    # row j of this factor, over its diagonal, is the update of the columns right of j that makes
    # up for a change in column j while those left of it stand (the paper's section 3.2)
    inverse = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    mask = torch.zeros_like(w, dtype=torch.bool)
    columns, spent = w.shape[1], 0
    for start in range(0, columns, block):
        end = min(start + block, columns)
        score = (w[:, start:end] / inverse.diagonal()[start:end]).square()
        share = min(round(kept * end / columns) - spent, rows * (end - start))
        spent += share
        best = score.flatten().topk(share).indices
        mask[:, start:end] = torch.zeros(score.numel(), dtype=torch.bool).scatter_(
            0, best, torch.ones_like(best, dtype=torch.bool)
        ).view(score.shape)  # fmt: skip
        for j in range(start, end):
            error = torch.where(mask[:, j], 0.0, w[:, j]) / inverse[j, j]
            w[:, j:] -= error[:, None] * inverse[j, j:]
            w[:, j] *= mask[:, j]  # exactly zero, whatever was rounded
    return w, mask


@torch.no_grad()
def prune_model(
    model: onnx.ModelProto, layers: Sequence[LayerSurgery], inputs: Array,
    kept: Mapping[str, int], block: int | None,
) -> None:  # fmt: skip
    """Prune the layers in order; each one's inputs come from those before it, already pruned.

    model: of Conv and Gemm nodes (transB = 1).  inputs: calibration rows, as the model takes them.
    kept: entries of each layer, its bias among them: the weight of one more input that is always 1.
    block: columns whose masks are chosen together; None: all of them.
    """
    now = onnx.ModelProto()
    now.CopyFrom(model)
    for layer in layers:
        weight, bias = layer.tensors
        x = _columns(now, layer.key, inputs)
        x = torch.cat([x, x.new_ones(1, x.shape[1])])
        w = torch.cat([weight.weight.flatten(1), bias.weight[:, None]], 1).double()
        w, mask = prune_columns(w, x @ x.T, kept[layer.key], block or w.shape[1])
        for holder, part in ((weight, slice(0, -1)), (bias, slice(-1, None))):
            shape = holder.weight.shape
            holder.weight.copy_(w[:, part].reshape(shape))
            holder.attach_mask(mask[:, part].reshape(shape))
            array = numpy_helper.from_array(holder.effective().numpy(), holder.name)
            next(i for i in now.graph.initializer if i.name == holder.name).CopyFrom(array)


def _columns(model: onnx.ModelProto, weight: str, inputs: Array) -> Tensor:
    """X of the layer with this weight: [columns, samples] float64.

    A sample is a row, and for a Conv a place of its kernel on one.
    """
    node = next(n for n in model.graph.node if weight in n.input)
    x = torch.from_numpy(_value(model, node.input[0], inputs)).double()
    if node.op_type == "Gemm":
        return x.T
    a = {p.name: helper.get_attribute_value(p) for p in node.attribute}
    top, left, bottom, right = a.get("pads", (0, 0, 0, 0))
    patches = F.unfold(
        F.pad(x, (left, right, top, bottom)), tuple(a["kernel_shape"]),
        dilation=tuple(a.get("dilations", (1, 1))), stride=tuple(a.get("strides", (1, 1))),
    )  # fmt: skip
    return patches.transpose(0, 1).flatten(1)


def _value(model: onnx.ModelProto, name: str, inputs: Array) -> Array:
    """What a value of the model is on these inputs."""
    first = model.graph.input[0].name
    if name == first:
        return inputs
    wanted = onnx.ModelProto()
    wanted.CopyFrom(model)
    wanted.graph.output.append(helper.make_empty_tensor_value_info(name))
    found: Array = session(wanted.SerializeToString(), native=False).run([name], {first: inputs})[0]
    return found


def check() -> float:
    """Largest difference from solving anew for the columns to the right, at each cut."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(6, 12, generator=generator, dtype=torch.float64)
    x = torch.randn(12, 40, generator=generator, dtype=torch.float64)
    h = x @ x.T
    found, mask = prune_columns(w, h, kept=30, block=4)
    damped = h + DAMP * h.diagonal().mean() * torch.eye(12, dtype=h.dtype)
    want = w.clone()
    for j in range(12):
        rest = slice(j + 1, None)
        push = torch.linalg.solve(damped[rest, rest], damped[rest, j])  # the least-squares answer
        change = torch.where(mask[:, j], 0.0, -want[:, j])
        want[:, rest] -= change[:, None] * push
        want[:, j] += change
    # the first block's choice: what each cut would cost, from the inverse of what is left then
    cost = torch.stack([w[:, j].square() / torch.linalg.inv(damped[j:, j:])[0, 0]
                        for j in range(4)], 1)  # fmt: skip
    dearest = torch.zeros(24, dtype=torch.bool)
    dearest[cost.flatten().topk(10).indices] = True
    if int(mask.sum()) != 30 or not torch.equal(dearest.view(6, 4), mask[:, :4]):
        raise SystemExit("sparsegpt: the mask is not the one of the dearest entries")
    return float((found - want).abs().max())


if __name__ == "__main__":
    difference = check()
    print(f"largest difference from the brute-force update: {difference:.2g}")
    raise SystemExit(int(difference > 1e-9))
