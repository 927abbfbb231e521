"""Small ONNX models and the comparison with ONNX Runtime that the importer's tests share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import helper, numpy_helper

from dns_onnx.converters.dtypes import to_numpy, to_torch
from dns_onnx.converters.importer import import_model

IR_OF_OPSET = {7: 3, 8: 3, 9: 4, 10: 5}


def node_model(
    op_type: str,
    inputs: Sequence[Any],
    *,
    opset: int,
    outputs: int = 1,
    domain: str = "",
    weights: Sequence[int] = (),
    names: Sequence[str] | None = None,
    **attributes: Any,
) -> tuple[onnx.ModelProto, list[np.ndarray]]:
    """A model of one node and its feeds.

    inputs: arrays, None for absent ones.  weights: which of them are initializers.
    """
    given = list(names or (f"x{i}" for i in range(len(inputs))))
    labels = [n if a is not None else "" for n, a in zip(given, inputs, strict=True)]
    node = helper.make_node(
        op_type, labels, [f"y{i}" for i in range(outputs)], "node", domain=domain, **attributes
    )
    arrays = {n: np.asarray(a) for n, a in zip(labels, inputs, strict=True) if n}
    held = {labels[i] for i in weights}
    return graph_model(
        [node],
        {n: a for n, a in arrays.items() if n not in held},
        {n: a for n, a in arrays.items() if n in held},
        [f"y{i}" for i in range(outputs)],
        opset=opset,
        domain=domain,
    )


def graph_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, np.ndarray],
    initializers: Mapping[str, np.ndarray],
    outputs: Sequence[str],
    *,
    opset: int,
    domain: str = "",
    dynamic: bool = False,
) -> tuple[onnx.ModelProto, list[np.ndarray]]:
    """A model of some nodes and its feeds; `dynamic` leaves all input sizes open."""
    infos = [
        helper.make_tensor_value_info(
            name,
            helper.np_dtype_to_tensor_dtype(a.dtype),
            [None] * a.ndim if dynamic else a.shape,
        )
        for name, a in inputs.items()
    ]
    graph = helper.make_graph(
        list(nodes),
        "graph",
        infos,
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(a, name) for name, a in initializers.items()],
    )
    imports = [helper.make_opsetid("", opset)]
    if domain:
        imports.append(helper.make_opsetid(domain, 1))
    model = helper.make_model(
        graph, opset_imports=imports, ir_version=IR_OF_OPSET.get(opset, 8 if opset < 21 else 10)
    )
    if model.ir_version < 4:
        model.graph.input.extend(
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in initializers.items()
        )
    return model, list(inputs.values())


def runtime(model: onnx.ModelProto, feeds: Sequence[np.ndarray]) -> list[Any]:
    """The outputs as ONNX Runtime computes them."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    # the optimiser swaps in kernels that compute more coarsely
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    held = {tensor.name for tensor in model.graph.initializer}
    names = [i.name for i in model.graph.input if i.name not in held]
    return list(session.run(None, dict(zip(names, feeds, strict=True))))


def imported(model: onnx.ModelProto, feeds: Sequence[np.ndarray]) -> list[Any]:
    """The outputs of the imported graph, as NumPy arrays."""
    module = import_model(model).eval()
    with torch.no_grad():
        result = module(*(to_torch(np.array(feed)) for feed in feeds))
    results = result if isinstance(result, tuple) else (result,)
    return [to_numpy(value) if not isinstance(value, list) else value for value in results]


def assert_same(
    model: onnx.ModelProto,
    feeds: Sequence[np.ndarray],
    wanted: Sequence[np.ndarray] | None = None,
    *,
    rtol: float = 1e-4,
    atol: float = 1e-5,
) -> None:
    """The imported graph gives what ONNX Runtime gives: shapes, types and values."""
    expected = runtime(model, feeds) if wanted is None else wanted
    got = imported(model, feeds)
    assert len(got) == len(expected)
    for index, (mine, theirs) in enumerate(zip(got, expected, strict=True)):
        theirs = np.asarray(theirs)
        assert mine.shape == theirs.shape, f"output {index}: {mine.shape} for {theirs.shape}"
        assert mine.dtype == theirs.dtype, f"output {index}: {mine.dtype} for {theirs.dtype}"
        if theirs.dtype.kind in "OU":
            assert mine.tolist() == theirs.tolist()
            continue
        np.testing.assert_allclose(
            mine.astype(np.float64),
            theirs.astype(np.float64),
            rtol,
            atol,
            err_msg=f"output {index}",
        )


def floats(*shape: int, seed: int = 0, low: float | None = None, high: float = 1.0) -> np.ndarray:
    """Seeded float32 draws: normal, or uniform if bounds are given."""
    rng = np.random.default_rng(seed)
    if low is None:
        return rng.standard_normal(shape).astype(np.float32)
    return rng.uniform(low, high, shape).astype(np.float32)


def integers(
    *shape: int, seed: int = 0, low: int = 0, high: int = 5, dtype: str = "int64"
) -> np.ndarray:
    """Seeded integer draws."""
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)
