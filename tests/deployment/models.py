"""Small pruned nets for the deployment matrix, each with its input, in old and new opsets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

Shape = Sequence[int]


class _Net:
    """Nodes and weights of a net in the making; every weight is pruned to 10 %."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[NodeProto] = []
        self.tensors: list[TensorProto] = []

    def weight(self, name: str, *shape: int) -> str:
        kept = self.rng.random(shape) < 0.1
        scale = (0.1 * np.prod(shape[1:])) ** -0.5
        values = (scale * self.rng.standard_normal(shape) * kept).astype(np.float32)
        self.tensors.append(numpy_helper.from_array(values, name))
        return name

    def vector(self, name: str, values: Any) -> str:
        self.tensors.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def bias(self, name: str, size: int) -> str:
        return self.vector(name, self.rng.standard_normal(size).astype(np.float32))

    def node(self, op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, [output], output, **attributes))
        return output

    def model(self, x: Shape, y: Shape, opset: int, ir_version: int = 8) -> ModelProto:
        infos = [helper.make_tensor_value_info("X", TensorProto.FLOAT, x)]
        if ir_version < 4:
            infos += [
                helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in self.tensors
            ]
        graph = helper.make_graph(
            self.nodes,
            "net",
            infos,
            [helper.make_tensor_value_info("Y", TensorProto.FLOAT, y)],
            self.tensors,
        )
        model: ModelProto = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version
        )
        return model


def conv_net(opset: int) -> ModelProto:
    """A plain, a strided grouped and a pointwise convolution, then a classifier."""
    net = _Net(1)
    h = net.node("Conv", ["X", net.weight("c1.w", 32, 8, 3, 3), net.bias("c1.b", 32)], "c1",
                 pads=[1, 1, 1, 1])  # fmt: skip
    h = net.node("Relu", [h], "r1")
    h = net.node("Conv", [h, net.weight("c2.w", 64, 16, 3, 3)], "c2", group=2, strides=[2, 2],
                 pads=[1, 1, 1, 1])  # fmt: skip
    h = net.node("Conv", [h, net.weight("c3.w", 32, 64, 1, 1), net.bias("c3.b", 32)], "c3")
    h = net.node("Flatten", [net.node("Relu", [h], "r2")], "flat")
    net.node("Gemm", [h, net.weight("fc.w", 10, 512), net.bias("fc.b", 10)], "Y", transB=1)
    return net.model([1, 8, 8, 8], [1, 10], opset)


def mlp(opset: int, ir_version: int = 8) -> ModelProto:
    """Two Gemm layers, one of them with its weight the other way round."""
    net = _Net(2)
    h = net.node("Gemm", ["X", net.weight("w1", 96, 64), net.bias("b1", 96)], "h", transB=1)
    h = net.node("Relu", [h], "r")
    net.node("Gemm", [h, net.weight("w2", 96, 80), net.bias("b2", 80)], "Y")
    return net.model([3, 64], [3, 80], opset, ir_version)


def block(opset: int) -> ModelProto:
    """One head of attention and a feed-forward part, all in MatMul, as exporters write them."""
    net = _Net(3)
    q, k, v = (net.node("MatMul", ["X", net.weight(f"{n}.w", 64, 64)], n) for n in "qkv")
    scores = net.node("MatMul", [q, net.node("Transpose", [k], "kt", perm=[0, 2, 1])], "scores")
    mixed = net.node("MatMul", [net.node("Softmax", [scores], "p", axis=-1), v], "mixed")
    h = net.node("Add", ["X", net.node("MatMul", [mixed, net.weight("o.w", 64, 64)], "o")], "h")
    up = net.node("Relu", [net.node("MatMul", [h, net.weight("up.w", 64, 128)], "up")], "act")
    net.node("Add", [h, net.node("MatMul", [up, net.weight("down.w", 128, 64)], "down")], "Y")
    return net.model([2, 6, 64], [2, 6, 64], opset)


def conv_1d(opset: int) -> ModelProto:
    """A dilated convolution over time."""
    net = _Net(4)
    net.node("Conv", ["X", net.weight("w", 48, 24, 5), net.bias("b", 48)], "Y", dilations=[2],
             pads=[4, 4])  # fmt: skip
    return net.model([1, 24, 20], [1, 48, 20], opset)


def tied(opset: int) -> ModelProto:
    """One weight read by two layers: no sparse operator takes it, its decoding does."""
    net = _Net(5)
    h = net.node("MatMul", ["X", net.weight("w", 80, 80)], "h")
    net.node("MatMul", [net.node("Relu", [h], "r"), "w"], "Y")
    return net.model([2, 80], [2, 80], opset)


def lstm(opset: int) -> ModelProto:
    """A recurrent layer, sparse in storage only."""
    net = _Net(6)
    net.node("LSTM", ["X", net.weight("w", 1, 128, 24), net.weight("r", 1, 128, 32)], "hidden",
             hidden_size=32)  # fmt: skip
    net.node("Reshape", ["hidden", net.vector("shape", np.array([5, 32], np.int64))], "Y")
    return net.model([5, 1, 24], [5, 32], opset)


def branch(opset: int) -> ModelProto:
    """A sparse layer in a branch of If, its weight in the branch too."""
    inner, net = _Net(7), _Net(8)
    inner.node("MatMul", ["X", inner.weight("inner.w", 72, 72)], "yes")
    bodies = {
        f"{name}_branch": helper.make_graph(
            nodes, name, [], [helper.make_tensor_value_info(out, TensorProto.FLOAT, [2, 72])], held
        )
        for name, out, nodes, held in (
            ("then", "yes", inner.nodes, inner.tensors),
            ("else", "no", [helper.make_node("Relu", ["X"], ["no"])], []),
        )
    }
    top = net.node("ReduceMax", ["X"], "top", keepdims=0)
    positive = net.node("Greater", [top, net.vector("zero", np.float32(0))], "positive")
    h = net.node("If", [positive], "h", **bodies)
    net.node("MatMul", [h, net.weight("outer.w", 72, 72)], "Y")
    return net.model([2, 72], [2, 72], opset)


# name -> the model and how its values are stored
MODELS: dict[str, tuple[ModelProto, str]] = {
    **{f"conv net, opset {o}": (conv_net(o), "float32") for o in (11, 13, 18, 21)},
    "MLP, opset 13": (mlp(13), "float32"),
    "MLP, lifted from opset 9": (mlp(9, ir_version=3), "float32"),
    "attention, opset 13": (block(13), "float32"),
    "attention, opset 21": (block(21), "float32"),
    "conv 1-D, opset 18": (conv_1d(18), "float32"),
    "tied weights, opset 13": (tied(13), "float32"),
    "LSTM, opset 14": (lstm(14), "float32"),
    "If, opset 13": (branch(13), "float32"),
    "conv net, float16 values": (conv_net(13), "float16"),
    "conv net, int8 values": (conv_net(13), "int8"),
    "attention, float16 values": (block(18), "float16"),
    "attention, int8 values": (block(18), "int8"),
}


def inputs(model: ModelProto) -> dict[str, Any]:
    """One seeded input for X."""
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    return {"X": np.random.default_rng(9).standard_normal(shape).astype(np.float32)}
