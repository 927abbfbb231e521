from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper


@pytest.fixture(scope="session", autouse=True)
def calibration_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests neither read nor write the user's own calibration of kernels."""
    os.environ["DNS_ONNX_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder that holds data/ and models/: real models and data, never in the repository."""
    root = os.environ.get("DNS_ONNX_DATA")
    if not root:
        pytest.skip("DNS_ONNX_DATA is not set: it names the folder with data/ and models/")
    return Path(root)


@pytest.fixture(scope="session")
def paper_models(data_root: Path) -> Path:
    return data_root / "models" / "dns_paper"


@pytest.fixture(scope="session")
def mnist(data_root: Path) -> Path:
    return data_root / "data" / "mnist"


class Crash(BaseException):
    """The process is gone: nothing tidies up."""


def through_crashes(run: Callable[[Callable[[object], None]], Any], draw: Callable[[], int]) -> Any:
    """(what `run` gives in the end, how often it crashed before).

    run: takes an observer, which crashes it at one of its looks; draw: at which one.
    """
    for crashes in range(99):
        left = draw()

        def observe(progress: object) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Crash

        try:
            return run(observe), crashes
        except Crash:
            continue
    raise AssertionError("crashed 99 times")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch on one thread, whose sums are the same in every run."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="torch sees no CUDA device here")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


def small_net(seed: int = 0) -> onnx.ModelProto:
    """8 inputs, 32 hidden units, 4 classes; weights and biases as initializers."""
    rng = np.random.default_rng(seed)

    def tensor(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(0.5 * rng.standard_normal(shape).astype(np.float32), name)

    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "fc1.w", "fc1.b"], ["h"], name="fc1", transB=1),
            helper.make_node("Relu", ["h"], ["r"], name="relu"),
            helper.make_node("Gemm", ["r", "fc2.w", "fc2.b"], ["y"], name="fc2", transB=1),
        ],
        "small",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 4])],
        [tensor("fc1.w", 32, 8), tensor("fc1.b", 32), tensor("fc2.w", 4, 32), tensor("fc2.b", 4)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    entry = model.metadata_props.add()
    entry.key, entry.value = "author", "somebody"
    return model


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """The folder of a small model, `net.onnx`, with `train.npz` and `test.npz` to learn."""
    onnx.save(small_net(), tmp_path / "net.onnx")
    rng = np.random.default_rng(1)
    centres = 2 * rng.standard_normal((4, 8))
    for name, rows in (("train", 600), ("test", 200)):
        labels = rng.integers(0, 4, rows)
        x = (centres[labels] + rng.standard_normal((rows, 8))).astype(np.float32)
        np.savez(tmp_path / f"{name}.npz", x=x, labels=labels)
    return tmp_path


def image_net(seed: int = 0) -> onnx.ModelProto:
    """1 x 8 x 8 images, two 3x3 convolutions with a batch normalization between, 4 classes."""
    rng = np.random.default_rng(seed)

    def tensor(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(0.3 * rng.standard_normal(shape).astype(np.float32), name)

    node, ones = helper.make_node, np.ones(6, np.float32)
    statistics = [numpy_helper.from_array(ones * v, n) for n, v in
                  (("bn.s", 1), ("bn.b", 0), ("bn.m", 0.1), ("bn.v", 2))]  # fmt: skip
    graph = helper.make_graph(
        [
            node("Conv", ["x", "c1.w", "c1.b"], ["h"], name="conv1"),
            node("BatchNormalization", ["h", "bn.s", "bn.b", "bn.m", "bn.v"], ["n"], name="bn"),
            node("Relu", ["n"], ["r"], name="relu"),
            node("Conv", ["r", "c2.w"], ["k"], name="conv2", strides=[2, 2]),
            node("Flatten", ["k"], ["f"], name="flatten"),
            node("Gemm", ["f", "fc.w"], ["y"], name="fc", transB=1),
        ],
        "images",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 4])],
        [tensor("c1.w", 6, 1, 3, 3), tensor("c1.b", 6), tensor("c2.w", 8, 6, 3, 3),
         tensor("fc.w", 4, 32), *statistics],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """The same of a small convolutional model; nine labels of ten are what it says itself."""
    model = image_net()
    onnx.save(model, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(model.SerializeToString())
    rng = np.random.default_rng(1)
    for name, rows in (("train", 600), ("test", 200)):
        x = rng.standard_normal((rows, 1, 8, 8)).astype(np.float32)
        said = session.run(None, {"x": x})[0].argmax(1)
        labels = np.where(rng.random(rows) < 0.9, said, rng.integers(0, 4, rows))
        np.savez(tmp_path / f"{name}.npz", x=x, labels=labels)
    return tmp_path
