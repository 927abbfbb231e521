"""What the importer knows about one ONNX value while the graph is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from onnx import TypeProto, ValueInfoProto
from torch import Tensor, fx

Shape = tuple[int | None, ...]


@dataclass
class Dims:
    """A scalar or vector of integers, each known at import or an fx node that gives an int.

    Shape arithmetic is carried in this form, so that it costs no tensor and no device.
    """

    entries: list[int | fx.Node]
    scalar: bool = False

    @property
    def known(self) -> bool:
        return all(isinstance(entry, int) for entry in self.entries)

    def python(self) -> Any:
        return self.entries[0] if self.scalar else list(self.entries)


@dataclass
class Value:
    """One ONNX value.

    node: the fx node that yields it, once there is one.
    emit: makes that node when somebody first needs it (held weights, values derived from them).
    constant: computes the value at import; None where it depends on the inputs.
    dims: integers known in part.  host: lives on the CPU whatever the model's device.
    weight: name of the float initializer it comes from through layout-only operators.
    trainable: a gradient should reach the initializers that it is computed from.
    channels_last: held with its channels innermost in memory, as image convolutions like it.
    """

    name: str
    elem: int = 0
    shape: Shape | None = None
    node: fx.Node | None = None
    emit: Callable[[str], fx.Node] | None = None
    constant: Callable[[], Any] | None = None
    dims: Dims | None = None
    host: bool = False
    weight: str = ""
    trainable: bool = False
    scalar_weight: bool = False
    channels_last: bool = False
    cache: dict[str, Any] = field(default_factory=dict)

    @property
    def known(self) -> bool:
        return self.constant is not None

    def python(self) -> Any:
        """The known value as Python numbers, nested as its shape."""
        held = self.tensor()
        return held.tolist() if hasattr(held, "tolist") else held

    def tensor(self) -> Any:
        """The known value: a CPU tensor, an array of strings, a list, or None."""
        if "constant" not in self.cache:
            if self.constant is None:
                raise LookupError(f"value '{self.name}' is not known at import")
            self.cache["constant"] = self.constant()
        return self.cache["constant"]

    def known_shape(self) -> Shape | None:
        """The shape, from inference or from the known value itself."""
        if self.shape is None and self.known:
            held = self.tensor()
            if isinstance(held, Tensor) or hasattr(held, "shape"):
                self.shape = tuple(held.shape)
        return self.shape


def element_and_shape(proto: TypeProto) -> tuple[int, Shape | None]:
    """Element type (0 = no tensor or unknown) and shape of an ONNX type."""
    if proto.WhichOneof("value") != "tensor_type":
        return 0, None
    tensor = proto.tensor_type
    if not tensor.HasField("shape"):
        return tensor.elem_type, None
    return tensor.elem_type, tuple(
        d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else None
        for d in tensor.shape.dim
    )


def type_table(infos: list[ValueInfoProto]) -> dict[str, tuple[int, Shape | None]]:
    """Name -> (element type, shape) of value infos."""
    return {info.name: element_and_shape(info.type) for info in infos}
