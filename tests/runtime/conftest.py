"""Small models over the sparse operators, and their dense twins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from dns_onnx.converters.exporter import convert
from dns_onnx.errors import NativeLibraryError
from dns_onnx.runtime.dispatch import choose
from dns_onnx.runtime.library import library_path

Array = npt.NDArray[Any]
OPERANDS = ("values", "col_indices", "row_ptr", "shape")


def as_chosen(model: onnx.ModelProto) -> tuple[bytes, list[str]]:
    """What a session opens of a model that is written sparse, and its operators but constants."""
    sparse = convert(model, "csr", wants_kernel=lambda *_: True).model
    chosen = choose(sparse.SerializeToString(), None, 1, None)
    assert chosen.data is not None
    nodes = onnx.load_from_string(chosen.data).graph.node
    return chosen.data, [n.op_type for n in nodes if n.op_type != "Constant"]


def csr_operands(
    dense: Array, columns: Any = np.int32, pointers: Any = np.int32
) -> dict[str, Array]:
    """The operands of docs/operators-csr.md for a dense weight; by gaps where pointers is None."""
    rows = dense.reshape(dense.shape[0], -1)
    kept = rows != 0
    operands = {
        "values": rows[kept].astype(np.float32),
        "col_indices": np.nonzero(kept)[1].astype(columns),
        "row_ptr": np.concatenate(([0], np.cumsum(kept.sum(axis=1)))).astype(pointers),
        "shape": np.asarray(dense.shape, np.int64),
    }
    if pointers is None:
        del operands["row_ptr"]
        gaps = np.diff(np.flatnonzero(kept), prepend=0)
        assert gaps.max(initial=0) <= np.iinfo(columns).max
        operands["col_indices"] = gaps.astype(columns)
    return operands


@dataclass
class Layer:
    """One sparse layer: operator, its operands, bias and attributes; knows its dense twin.

    operands: as csr_operands gives them, and a scale; a test may replace any of them.
    """

    op: str
    dense: Array
    operands: dict[str, Array]
    bias: Array | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    name: str = "layer"

    def model(self, *, sparse: bool, rank: int) -> bytes:
        """Serialized model X -> Y of this one layer; rank: dimensions of X."""
        values = dict(self.operands) if sparse else {"W": self.dense}
        if self.bias is not None:
            values["bias"] = self.bias
        names = [*OPERANDS, "bias", "scale"] if sparse else ["W", "bias"]
        inputs = ["X", *(name if name in values else "" for name in names)]
        while not inputs[-1]:
            inputs.pop()
        if sparse and self.op != "CsrMatMul" and len(inputs) == 1 + len(OPERANDS):
            inputs.append("")
        node = helper.make_node(
            self.op if sparse else self.op.removeprefix("Csr"),
            inputs,
            ["Y"],
            name=self.name,
            domain="dns_onnx" if sparse else "",
            **self.attributes,
        )
        graph = helper.make_graph(
            [node],
            "g",
            [helper.make_tensor_value_info("X", TensorProto.FLOAT, [None] * rank)],
            [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(array, name) for name, array in values.items()],
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("dns_onnx", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        data: bytes = model.SerializeToString()
        return data

    def run(self, x: Array, *, sparse: bool = True, threads: int = 1, times: int = 1) -> Array:
        """Y for X, from the sparse kernel or from ONNX Runtime's dense operator.

        times: runs, all of which must give the same bits.
        """
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        if sparse:
            options.register_custom_ops_library(str(library_path()))
        session = ort.InferenceSession(
            self.model(sparse=sparse, rank=x.ndim), options, providers=["CPUExecutionProvider"]
        )
        result: Array = session.run(None, {"X": x})[0]
        for _ in range(times - 1):
            np.testing.assert_array_equal(session.run(None, {"X": x})[0], result)
        return result


def pruned(rng: np.random.Generator, shape: tuple[int, ...], density: float) -> Array:
    """Normal weights of which about `density` are not zero."""
    kept = rng.random(shape) < density
    return (rng.standard_normal(shape) * kept).astype(np.float32)


def assert_close(got: Array, want: Array) -> None:
    """Equal within float32 rounding of a long sum; a failure names the worst entry."""
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    if got.size == 0:
        return
    error = np.abs(got - want)
    worst = np.unravel_index(int(np.nanargmax(error)), error.shape)
    limit = 1e-5 * max(1.0, float(np.abs(want).max()))
    assert error[worst] <= limit, (
        f"max error {error[worst]} at {worst}: {got[worst]}, {want[worst]}"
    )


@pytest.fixture(autouse=True)
def cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test reads or leaves measurements in the user's cache."""
    monkeypatch.setenv("DNS_ONNX_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def kernels() -> None:
    """Skips the test where the native library was not built."""
    try:
        library_path()
    except NativeLibraryError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def run_model() -> Callable[..., Array]:
    """Runs a model on the sparse kernels: (model, feeds, threads=1) -> its first output."""

    def run(model: onnx.ModelProto, feeds: dict[str, Array], threads: int = 1) -> Array:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.register_custom_ops_library(str(library_path()))
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        result: Array = session.run(None, feeds)[0]
        return result

    return run


@pytest.fixture(scope="session")
def make_layer() -> Callable[..., Layer]:
    """Builds a Layer: (op, dense, columns=, pointers=, bias=, **attributes)."""

    def make(
        op: str,
        dense: Array,
        *,
        columns: Any = np.int32,
        pointers: Any = np.int32,
        bias: Array | None = None,
        **attributes: Any,
    ) -> Layer:
        return Layer(op, dense, csr_operands(dense, columns, pointers), bias, attributes)

    return make


@pytest.fixture(scope="session")
def make_pruned() -> Callable[[np.random.Generator, tuple[int, ...], float], Array]:
    return pruned


@pytest.fixture(scope="session")
def close() -> Callable[[Array, Array], None]:
    return assert_close
