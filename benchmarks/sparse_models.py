"""The layers and nets of the sparse benchmark, seeded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Layer:
    """One layer.  x: input shape.  weight: dense weight shape.  attributes: of Conv or Gemm."""

    name: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    density: float
    attributes: tuple[tuple[str, Any], ...] = ()

    @property
    def conv(self) -> bool:
        return len(self.weight) > 2


def conv(
    name: str,
    maps: int,
    size: int,
    filters: int,
    kernel: int,
    density: float,
    stride: int = 1,
    pad: int = 0,
    group: int = 1,
) -> Layer:
    return Layer(
        f"{name} {density:.0%}",
        (1, maps, size, size),
        (filters, maps // group, kernel, kernel),
        density,
        (("strides", [stride] * 2), ("pads", [pad] * 4), ("group", group)),
    )


def fully_connected() -> Iterator[Layer]:
    for batch in (1, 8, 64):
        for name, n, k, density in (
            ("fc6", 4096, 9216, 0.037),
            ("fc7", 4096, 4096, 0.066),
            ("fc8", 1000, 4096, 0.046),
        ):
            yield Layer(f"{name} batch {batch}", (batch, k), (n, k), density, (("transB", 1),))


def alexnet() -> Iterator[Layer]:
    yield conv("alexnet conv1", 3, 227, 96, 11, 0.54, stride=4)
    yield conv("alexnet conv2", 96, 27, 256, 5, 0.41, pad=2, group=2)
    yield conv("alexnet conv3", 256, 13, 384, 3, 0.29, pad=1)
    yield conv("alexnet conv4", 384, 13, 384, 3, 0.32, pad=1, group=2)
    yield conv("alexnet conv5", 384, 13, 256, 3, 0.32, pad=1, group=2)


def conv3x3() -> Iterator[Layer]:
    for density in (0.2, 0.1, 0.05, 0.02):
        for maps, size in ((64, 56), (128, 28), (256, 28), (256, 14), (512, 14), (512, 7)):
            yield conv(f"3x3 {maps}x{size}", maps, size, maps, 3, density, pad=1)
        yield conv("3x3 stride 2 128x56", 128, 56, 128, 3, density, stride=2, pad=1)


def conv1x1() -> Iterator[Layer]:
    for density in (0.2, 0.1, 0.05, 0.02):
        for maps, size, filters in (
            (64, 56, 256),
            (256, 56, 64),
            (512, 28, 128),
            (1024, 14, 256),
            (512, 7, 2048),
            (512, 14, 512),
            (96, 28, 24),
        ):
            yield conv(f"1x1 {maps}x{size}-{filters}", maps, size, filters, 1, density)


GROUPS: dict[str, Callable[[], Iterator[Layer]]] = {
    "fc": fully_connected,
    "alexnet": alexnet,
    "conv3x3": conv3x3,
    "conv1x1": conv1x1,
}


def pruned(rng: np.random.Generator, shape: Sequence[int], density: float) -> Array:
    return (rng.standard_normal(shape) * (rng.random(shape) < density)).astype(np.float32)


def layer_model(layer: Layer, weight: Array, *, sparse: bool) -> bytes:
    """The layer alone, dense or with the operands of docs/operators-csr.md."""
    op = "Conv" if layer.conv else "Gemm"
    values = {"W": weight}
    if sparse:
        rows = weight.reshape(weight.shape[0], -1)
        kept = rows != 0
        values = {
            "values": rows[kept],
            "col_indices": np.nonzero(kept)[1].astype(np.int32),
            "row_ptr": np.concatenate(([0], np.cumsum(kept.sum(1)))).astype(np.int32),
            "shape": np.asarray(weight.shape, np.int64),
        }
        op = "Csr" + op
    node = helper.make_node(
        op,
        ["X", *values],
        ["Y"],
        name=layer.name,
        domain="dns_onnx" if sparse else "",
        **dict(layer.attributes),
    )
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, layer.x)],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in values.items()],
    )
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("dns_onnx", 1)]
    made = helper.make_model(graph, opset_imports=opsets[: 2 if sparse else 1], ir_version=8)
    data: bytes = made.SerializeToString()
    return data


LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
DENSITIES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005)
# of AlexNet's layers as Dynamic Network Surgery left them (Guo, Yao, Chen 2016, table 4)
PAPER = (0.54, 0.41, 0.29, 0.32, 0.32, 0.037, 0.066, 0.046)


@dataclass(frozen=True)
class Net:
    """One net at one density.  dense: makes the model, zeros in place.  shape: of its input."""

    name: str
    dense: Callable[[], onnx.ModelProto]
    shape: tuple[int, ...]


def nets(names: Sequence[str], data: Path | None, only: str = "") -> Iterator[Net]:
    """The nets named, each at every density; those that need `data` are left out without it."""
    for name in names:
        if name == "lenet":
            for file in ("lenet300100_dns", "lenet5_dns") if data else ():
                dns = onnx.load(data / "models" / "dns_paper" / f"{file}.onnx")
                yield Net(file, lambda dns=dns: dns, _input_shape(dns))  # type: ignore[misc]
            continue
        if name == "squeezenet" and not data:
            continue
        levels: list[tuple[str, Sequence[float]]] = [(f"{d:.1%}", [d]) for d in DENSITIES]
        if name == "alexnet":
            levels.append(("paper", PAPER))
        source = _source(name, data)
        dense = cache(lambda source=source: _with_weights(source))
        for label, densities in levels:
            if only in f"{name} {label}":
                made = partial(_pruned_net, dense, densities)
                yield Net(f"{name} {label}", made, _input_shape(source))


def _source(name: str, data: Path | None) -> onnx.ModelProto:
    if name == "squeezenet" and data:
        return onnx.load(data / "models" / "squeezenet_fp32_from_fp16.onnx")
    return onnx.load(LIGHT / f"light_{LIGHT_NAMES[name]}.onnx")


LIGHT_NAMES = {"alexnet": "bvlc_alexnet", "vgg19": "vgg19", "resnet50": "resnet50"}
NETS = (*LIGHT_NAMES, "squeezenet", "lenet")


def _pruned_net(
    dense: Callable[[], onnx.ModelProto], densities: Sequence[float]
) -> onnx.ModelProto:
    return prune(dense(), densities)


def _input_shape(model: onnx.ModelProto) -> tuple[int, ...]:
    held = _names(model)
    source = next(value for value in model.graph.input if value.name not in held)
    dims = source.type.tensor_type.shape.dim
    return tuple(dim.dim_value or 1 for dim in dims)


def prune(model: onnx.ModelProto, densities: Sequence[float]) -> onnx.ModelProto:
    """The model with the smallest weights of each layer set to zero.

    densities: one for each Conv and Gemm in graph order, or one for all.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in made.graph.initializer}
    layers = [n for n in made.graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
    layers = [n for n in layers if n.input[1] in tensors]
    for i, node in enumerate(layers):
        density = densities[i if len(densities) > 1 else 0]
        tensor = tensors[node.input[1]]
        weight = numpy_helper.to_array(tensor).copy()
        if density < 1:
            cut = round(weight.size * (1 - density))
            weight.flat[np.argpartition(np.abs(weight), cut, axis=None)[:cut]] = 0
            tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    return made


def _with_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A light model with seeded initializers in place of its ConstantOfShape weights."""
    rng = np.random.default_rng(0)
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    shapes = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    rest = []
    for node in graph.node:
        if node.op_type == "ConstantOfShape" and node.input[0] in shapes:
            weight = _draw(tuple(shapes.pop(node.input[0]).tolist()), rng)
            graph.initializer.append(numpy_helper.from_array(weight, node.output[0]))
        else:
            rest.append(node)
    kept = [t for t in graph.initializer if t.name in shapes or t.name not in _names(model)]
    inputs = [v for v in graph.input if v.name not in _names(model)]
    for field, values in ((graph.node, rest), (graph.initializer, kept), (graph.input, inputs)):
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        del field[:]
        field.extend(copies)
    made.ir_version = 8
    return made


def _names(model: onnx.ModelProto) -> set[str]:
    return {tensor.name for tensor in model.graph.initializer}


def _draw(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Weights that keep the signal's size; vectors near one, fit for scales and variances."""
    if len(shape) < 2:
        return rng.uniform(0.8, 1.2, shape).astype(np.float32)
    scale = np.float32(np.sqrt(2 / np.prod(shape[1:])))
    return rng.standard_normal(shape, np.float32) * scale
