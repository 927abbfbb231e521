"""The main job on data that come with a dependency: scikit-learn's 1,797 handwritten digits."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from dns_onnx.attach import to_device
from dns_onnx.config import Config, parse_config
from dns_onnx.converters.importer import import_model
from dns_onnx.data import ArrayDataset, Batch, Dataset, batch_rows
from dns_onnx.errors import DataError
from dns_onnx.losses import cross_entropy
from dns_onnx.masks import holders
from dns_onnx.preprocess import InputSpec

WIDTHS = (64, 300, 100, 10)
TEST_ROWS = 450
DENSE_ITERATIONS = 3000
INPUT = InputSpec("pixels", np.dtype(np.float32), (None, 64))


def digits() -> tuple[Dataset, Dataset]:
    """(training, test) rows: pixels [64] from 0 to 1, and labels 0 to 9."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError(
            "the demo's data come with scikit-learn: pip install 'dns-onnx[demo]'"
        ) from None
    found = load_digits()
    pixels = (found.data / 16).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(pixels))
    parts = order[TEST_ROWS:], order[:TEST_ROWS]
    train, test = (
        ArrayDataset([INPUT], {INPUT.name: pixels[rows]}, found.target[rows], _AS_IS, "digits")
        for rows in parts
    )
    return train, test


def dense_model(seed: int) -> onnx.ModelProto:
    """An untrained 64-300-100-10 net, as any exporter might write it."""
    rng = np.random.default_rng(seed)
    nodes, weights = [], []
    value = INPUT.name
    for i, (inputs, outputs) in enumerate(itertools.pairwise(WIDTHS), 1):
        scale = np.sqrt(2 / inputs)
        weights.append(_tensor(f"fc{i}.weight", scale * rng.standard_normal((outputs, inputs))))
        weights.append(_tensor(f"fc{i}.bias", np.zeros(outputs)))
        out = "scores" if i == len(WIDTHS) - 1 else f"fc{i}"
        operands = [value, f"fc{i}.weight", f"fc{i}.bias"]
        nodes.append(helper.make_node("Gemm", operands, [out], name=f"fc{i}", transB=1))
        value = out
        if out != "scores":
            value = f"relu{i}"
            nodes.append(helper.make_node("Relu", [out], [value], name=value))
    graph = helper.make_graph(
        nodes, "digits",
        [helper.make_tensor_value_info(INPUT.name, onnx.TensorProto.FLOAT, ["batch", WIDTHS[0]])],
        [helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, ["batch", WIDTHS[-1]])],
        weights,
    )  # fmt: skip
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="dns-onnx"
    )


def train_dense(model: onnx.ModelProto, data: Dataset, seed: int) -> onnx.ModelProto:
    """The model with its weights trained: plain Adam on the imported graph, no surgery."""
    graph = import_model(model)
    optimizer = torch.optim.Adam(graph.parameters(), lr=1e-3)
    for i in range(DENSE_ITERATIONS):
        inputs, targets = to_device(take(data, i, seed), torch.device("cpu"))
        optimizer.zero_grad()
        cross_entropy(graph(*inputs), targets["labels"]).backward()
        optimizer.step()
    trained = onnx.ModelProto()
    trained.CopyFrom(model)
    weights = holders(graph)
    for tensor in trained.graph.initializer:
        values = weights[tensor.name].weight.detach().numpy()
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return trained


def take(data: Dataset, iteration: int, seed: int) -> Batch:
    """The rows of an iteration, 64 at a time, in a new order each epoch."""
    return data.take(batch_rows(len(data), 64, iteration, seed))


def write_dense(folder: Path, seed: int) -> tuple[Path, Dataset, Dataset]:
    """Train the dense net and write it; returns its path, the training and the test rows."""
    train, test = digits()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "digits.onnx"
    onnx.save(train_dense(dense_model(seed), train, seed), path)
    return path, train, test


def settings(seed: int) -> Config:
    """Surgery settings of the demo."""
    return parse_config(
        {
            "name": "demo", "seed": seed,
            "data": {"batch": 64, "holdout": 0.15},
            "train": {"iterations": 12_000, "eval_every": 500},
            "solver": {"lr": 0.02, "policy": "fixed", "tail": 4000},
            "surgery": {
                "c_rate": 2.0, "iter_stop": 8000, "ramp_from": 0.3, "ramp_iters": 6000,
            },
        },
        "demo",
    )  # fmt: skip


def _tensor(name: str, values: NDArray[np.float64]) -> onnx.TensorProto:
    return numpy_helper.from_array(values.astype(np.float32), name)


_AS_IS = Config().preprocess
