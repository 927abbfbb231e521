"""The standard `onnx.backend.base.Backend` interface over the importer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, NodeProto, defs, helper
from onnx.backend.base import Backend, BackendRep, namedtupledict
from torch import Tensor, fx

from dns_onnx.converters.dtypes import to_numpy, to_torch
from dns_onnx.converters.importer import import_model


class TorchRep(BackendRep):
    """An imported model, ready to run on NumPy arrays.

    module: the imported graph, which can be trained like any other.
    """

    def __init__(self, model: ModelProto, device: str) -> None:
        held = {tensor.name for tensor in model.graph.initializer}
        self.inputs = [i.name for i in model.graph.input if i.name not in held]
        self.outputs = [output.name for output in model.graph.output]
        self._elements = [o.type.tensor_type.elem_type for o in model.graph.output]
        self.device = torch.device(device.lower().replace("gpu", "cuda"))
        self.module: fx.GraphModule = import_model(model).eval().to(self.device)

    def run(self, inputs: Any, **kwargs: Any) -> Any:
        """The outputs for a list of inputs in graph order, or a mapping from their names."""
        if isinstance(inputs, Mapping):
            inputs = [inputs[name] for name in self.inputs]
        elif not isinstance(inputs, (list, tuple)):
            inputs = [inputs]
        with torch.no_grad():
            result = self.module(*(_to_device(value, self.device) for value in inputs))
        values = result if type(result) is tuple else (result,)
        narrowed = [
            _from_device(value, elem) for value, elem in zip(values, self._elements, strict=True)
        ]
        return namedtupledict("Outputs", self.outputs)(*narrowed)


class TorchBackend(Backend):
    """Runs ONNX models as imported torch graphs."""

    @classmethod
    def prepare(cls, model: ModelProto, device: str = "CPU", **kwargs: Any) -> TorchRep:
        """Import a model for a device ("CPU" or "CUDA", with an index or without)."""
        return TorchRep(model, device)

    @classmethod
    def run_model(cls, model: ModelProto, inputs: Any, device: str = "CPU", **kwargs: Any) -> Any:
        """Import a model and run it once."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls,
        node: NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run one node, in the newest operator set unless `opset_version` says otherwise."""
        arrays = [np.asarray(value) for value in inputs]
        infos = [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for name, array in zip((n for n in node.input if n), arrays, strict=True)
        ]
        outputs = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
        graph = helper.make_graph([node], "node", infos, outputs)
        opset = helper.make_opsetid(
            node.domain, int(kwargs.get("opset_version", defs.onnx_opset_version()))
        )
        return cls.run_model(helper.make_model(graph, opset_imports=[opset]), arrays, device)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether torch sees the device."""
        kind = device.lower().split(":")[0]
        return kind == "cpu" or (kind in ("cuda", "gpu") and torch.cuda.is_available())


def _to_device(value: Any, device: torch.device) -> Any:
    if value is None:
        return None
    if isinstance(value, (list, tuple)):
        return [_to_device(item, device) for item in value]
    made = to_torch(np.array(value))
    return made.to(device) if isinstance(made, Tensor) else made


def _from_device(value: Any, elem: int) -> Any:
    if value is None or isinstance(value, list):
        return value if value is None else [_from_device(item, elem) for item in value]
    array = to_numpy(value)
    wanted = helper.tensor_dtype_to_np_dtype(elem) if elem else array.dtype
    # torch holds 4- and 2-bit values in wider types
    narrow = wanted.name.startswith(("int4", "uint4", "int2", "uint2", "float4", "float6"))
    return array.astype(wanted) if narrow else array


prepare = TorchBackend.prepare
run_model = TorchBackend.run_model
run_node = TorchBackend.run_node
supports_device = TorchBackend.supports_device
