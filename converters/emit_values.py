"""Writing fx nodes: the values that a graph holds, be they weights, constants or shapes."""

from __future__ import annotations

import re
from keyword import kwlist
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from dns_onnx.converters.dtypes import torch_dtype
from dns_onnx.converters.graph import host_tensor
from dns_onnx.converters.values import Value
from dns_onnx.masks import Masked

if TYPE_CHECKING:
    from dns_onnx.converters.builder import Builder

# Known CPU operands up to this many entries are written into the code itself.
_LITERAL = 64
_ILLEGAL = re.compile(r"\W")
# Names that a graph's module uses itself, and those that Python does.
_TAKEN = frozenset(dir(fx.GraphModule(nn.Module(), fx.Graph()))) | frozenset(kwlist)


class HostConstant(nn.Module):
    """A constant that stays on the CPU when the module moves; called without arguments."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self) -> Any:
        return self.value


def safe_name(name: str) -> str:
    """An ONNX name as a Python identifier."""
    plain = name if name.isidentifier() else _ILLEGAL.sub("_", name) or "value"
    return f"_{plain}" if plain[0].isdigit() else plain


def attach(builder: Builder, name: str, module: nn.Module | Tensor) -> str:
    """Put a module or buffer into the graph's module under a free name like `name`."""
    root = builder.root
    wanted = safe_name(name).strip("_") or "value"
    if wanted[0].isdigit() or _is_held(root, wanted):
        wanted = f"onnx_{wanted}"
    free, count = wanted, 1
    while _is_held(root, free):
        free, count = f"{wanted}_{count}", count + 1
    if isinstance(module, nn.Module):
        root._modules[free] = module
    else:
        root._buffers[free] = module
    return free


def _is_held(root: nn.Module, name: str) -> bool:
    return name in _TAKEN or name in root._modules or name in root._buffers


def emit_held(builder: Builder, value: Value, use: str) -> fx.Node:
    """The call of a float initializer's holder, made once; trained if anybody trains it."""
    if value.node is None:
        name = builder.unique_holder_name(value.name)
        tensor = value.tensor()
        if value.channels_last:
            # (`contiguous` would leave the strides of a single channel as they are)
            tensor = tensor.to(memory_format=torch.channels_last)
        holder = Masked(name, tensor, trainable=False)
        # the holder owns the values from here on: a second reference would double the memory
        value.constant = holder.weight.detach
        value.cache.pop("constant", None)
        value.cache["holder"] = holder
        target = attach(builder, name, holder)
        value.node = builder.graph.call_module(target)
        value.node.meta["onnx"] = value.name
    if use == "train":
        value.cache["holder"].weight.requires_grad_(True)
    return value.node


def emit_known(builder: Builder, value: Value) -> fx.Node:
    """A constant of the graph: a buffer, or a CPU value if the data are no tensor."""
    held = value.tensor()
    if isinstance(held, Tensor):
        node = builder.graph.get_attr(attach(builder, value.name, held))
    else:
        node = builder.graph.call_module(attach(builder, value.name, HostConstant(held)))
    node.meta["onnx"] = value.name
    return node


def emit_host_known(builder: Builder, value: Value) -> fx.Node:
    """A known value as an operand of shape arithmetic: it must not follow the model's device."""
    held = value.tensor()
    if isinstance(held, Tensor) and held.numel() <= _LITERAL and held.dtype is not torch.bfloat16:
        node = builder.graph.call_function(host_tensor, (held.tolist(), held.dtype))
    else:
        node = builder.graph.call_module(attach(builder, value.name, HostConstant(held)))
    return node


def emit_dims(builder: Builder, value: Value) -> fx.Node:
    """Shape arithmetic as a CPU tensor, for an operator that wants one."""
    assert value.dims is not None
    dtype = torch_dtype(value.elem)
    node = builder.graph.call_function(host_tensor, (value.dims.python(), dtype))
    node.meta["onnx"] = value.name
    return node
