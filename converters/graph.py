"""The imported graph: a torch.fx.GraphModule that pickles with its node metadata."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn


class ImportedGraph(fx.GraphModule):
    """An ONNX graph as torch.fx.

    Every fx node that yields an ONNX value bears its name in `node.meta["onnx"]`.  `self.meta`
    holds what the importer found out about the model ("layers", "opaque", ...).
    Unlike plain fx.GraphModule it is pickled node by node: nothing is traced again at load, so
    operator functions need not be traceable and no metadata get lost.
    Its Python code is written when somebody first runs or reads it: a model that is imported to
    be looked at or changed never needs it.
    """

    def recompile(self) -> None:  # type: ignore[override]
        """Have the code written anew at its next use; to be called after a change of the graph."""
        type(self).forward = property(_written_forward)  # type: ignore[assignment]

    @property
    def code(self) -> str:
        """The Python code of the graph."""
        self.forward  # noqa: B018  (writes the code)
        return super().code

    def __str__(self) -> str:
        self.forward  # noqa: B018  (writes the code)
        return super().__str__()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        state = {key: value for key, value in self.__dict__.items() if key not in _CODE}
        return _rebuild, (state, [_row(node) for node in self.graph.nodes])


def _written_forward(module: ImportedGraph) -> Callable[..., Any]:
    """Write the code of a graph; what it leaves in this property's place is the method itself."""
    fx.GraphModule.recompile(module)
    del type(module).__call__  # torch.fx's prints the code where an operator refuses its operands
    forward: Callable[..., Any] = module.forward
    return forward


_CODE = frozenset({"_graph", "_code", "_lineno_map", "_prologue_start", "_forward", "_codegen"})


class _Ref(str):
    """The name of another node, in a pickled argument list."""

    __slots__ = ()


def _row(node: fx.Node) -> tuple[Any, ...]:
    args = fx.node.map_arg((node.args, node.kwargs), lambda other: _Ref(other.name))
    return node.op, node.name, _portable(node.target), args, node.type, dict(node.meta)


def _portable(target: Any) -> Any:
    # operator.getitem and friends pickle by reference; a boolean_dispatch of torch does not
    return target


def _rebuild(state: dict[str, Any], rows: list[tuple[Any, ...]]) -> ImportedGraph:
    graph = fx.Graph()
    made: dict[str, fx.Node] = {}

    def resolve(item: Any) -> Any:
        if isinstance(item, _Ref):
            return made[str(item)]
        if isinstance(item, (tuple, list)):
            return type(item)(resolve(part) for part in item)
        if isinstance(item, dict):
            return {key: resolve(part) for key, part in item.items()}
        if isinstance(item, slice):
            return slice(resolve(item.start), resolve(item.stop), resolve(item.step))
        return item

    for kind, name, target, (args, kwargs), annotation, meta in rows:
        node = graph.create_node(
            kind, target, resolve(tuple(args)), resolve(dict(kwargs)), name, annotation
        )
        node.meta.update(meta)
        made[name] = node
    root = nn.Module()
    root.__dict__.update(state)
    module = ImportedGraph(root, graph)
    module.__dict__.update(state)
    module.train(bool(state.get("training", True)))
    return module


def item(values: Any, index: int) -> Any:
    """Output `index` of an operator with several outputs."""
    return operator.getitem(values, index)


def host_tensor(entries: Any, dtype: torch.dtype) -> torch.Tensor:
    """A small tensor of shape arithmetic, on the CPU whatever the model's device."""
    return torch.tensor(entries, dtype=dtype)


def host_value(tensor: Any) -> Any:
    """Python value(s) of an operand that must be known to compute a node.

    Waits for the device only where the value was computed there.
    """
    return tensor.tolist() if hasattr(tensor, "tolist") else tensor


def to_device_of(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Move a CPU value next to the data it meets."""
    if isinstance(tensor, torch.Tensor) and isinstance(like, torch.Tensor):
        return tensor.to(like.device, non_blocking=True)
    return tensor
