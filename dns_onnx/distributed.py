"""Many processes as one run: who writes, who takes which rows, and what all agree on.

Every rank holds the whole model and the same masks; a batch is divided, its gradients are averaged.
Weights are then equal on all ranks to the last bit, and so is all that surgery derives from them.
A model that is too large for that is divided too (`shard`), its masks with their weights.
Outside of `torchrun` there is one process, and everything here leaves things as they are.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from dns_onnx.errors import ConfigError
from dns_onnx.masks import Masked, whole


@contextmanager
def processes(device: str, batch: int) -> Iterator[None]:
    """Join the processes that `torchrun` started, if it did.

    device: auto, cpu or cuda.  batch: rows of an iteration, over all processes.
    Raises ConfigError where they cannot be divided evenly.
    """
    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    if wanted == 1 or dist.is_initialized():
        yield
        return
    if batch % wanted:
        raise ConfigError(
            f"data.batch: expected a multiple of the {wanted} processes, got {batch}; "
            "each takes the same share of a batch"
        )
    on_cuda = device != "cpu" and torch.cuda.is_available()
    if on_cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # NCCL for what is on the devices; gloo for flags, without waiting for a device
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_cuda else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return rank() == 0


def share(rows: int) -> slice:
    """The rows of a batch that this process takes."""
    each = rows // size()
    return slice(rank() * each, (rank() + 1) * each)


def parallel(model: nn.Module) -> Callable[..., list[Tensor]]:
    """The model as a training step calls it: its gradients become means over all processes."""
    if size() == 1 or isinstance(model, FSDPModule):
        return model
    with warnings.catch_warnings():
        # the name is changing; the one that torch 2.5 to 2.13 all know says what is meant here
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(model, broadcast_buffers=False)  # masks are equal already


def shard(model: nn.Module, holders: Iterable[Masked], *also: str) -> None:
    """Divide weights, masks, gradients and what the optimizer remembers over all processes.

    Each holds a part of the rows of every tensor; a forward or backward pass brings the weights
    together while it lasts.  also: names of further methods that run the model.
    """
    where = next(model.parameters()).device.type
    mesh = init_device_mesh(where, (size(),))
    scalars = {p for p in model.parameters() if p.ndim == 0}
    for weight in model.parameters():
        weight.data = weight.data.contiguous()  # FSDP2 divides nothing else
    fully_shard(model, mesh=mesh, reshard_after_forward=True, ignored_params=scalars)
    for method in also:
        register_fsdp_forward_method(model, method)
    for holder in holders:
        if holder.mask is not None:
            holder.mask = distribute_tensor(holder.mask.contiguous(), mesh, [Shard(0)])


@torch.no_grad()
def unshard(holders: Iterable[Masked]) -> None:
    """Give every process the whole weights and masks again, in ordinary tensors on the CPU."""
    for holder in holders:
        if isinstance(holder.weight, DTensor):
            trained = holder.weight.requires_grad
            holder.weight = nn.Parameter(whole(holder.weight).cpu(), requires_grad=trained)
            holder.mask = None if holder.mask is None else whole(holder.mask).cpu()


def like(values: Tensor, other: Tensor) -> Tensor:
    """The whole `values`, divided and laid out as `other`, of the same shape, is; on its device.

    An optimizer's fused kernels walk through weights and momenta as these lie in memory.
    """
    if not isinstance(other, DTensor):
        return torch.empty_like(other, dtype=values.dtype).copy_(values)
    return distribute_tensor(values.to(other.device), other.device_mesh, other.placements)


def total(counts: Tensor, of: Tensor) -> Tensor:
    """Counts of parts of `of`, over all its parts."""
    if isinstance(of, DTensor):
        dist.all_reduce(counts)
    return counts


def mean(value: Tensor) -> Tensor:
    """The mean of a tensor over all processes."""
    if size() == 1:
        return value
    total = value.clone(memory_format=torch.contiguous_format)  # NCCL takes nothing else
    dist.all_reduce(total)
    return total / size()


def agree(*flags: bool) -> list[bool]:
    """Which of the flags any process has raised."""
    if size() == 1:
        return list(flags)
    raised = torch.tensor(flags, dtype=torch.uint8)
    dist.all_reduce(raised, dist.ReduceOp.MAX)
    return [bool(flag) for flag in raised.tolist()]


def from_main(value: float) -> float:
    """The first process's value, bit by bit."""
    if size() == 1:
        return value
    sent = torch.tensor(value, dtype=torch.float64)
    dist.broadcast(sent, 0)
    return float(sent)


def gather(state: Tensor) -> Tensor:
    """The tensors of all processes, [size, ...]; on the CPU, and of one process as it is."""
    if size() == 1:
        return state
    found = [torch.empty_like(state) for _ in range(size())]
    dist.all_gather(found, state)
    return torch.stack(found)


def own(gathered: Tensor) -> Tensor:
    """This process's part of what `gather` brought together.

    Raises ConfigError where it came from another number of processes.
    """
    came_from = len(gathered) if gathered.ndim == 2 else 1
    if came_from != size():
        raise ConfigError(
            f"checkpoint: written by {came_from} process(es), read by {size()}; "
            f"resume with --nproc-per-node {came_from}"
        )
    return gathered[rank()].clone() if size() > 1 else gathered


def wait() -> None:
    """Wait until every process is here."""
    if size() > 1:
        dist.barrier()
