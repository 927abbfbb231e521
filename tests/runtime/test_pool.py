"""MaxPool on a kernel of ours, against ONNX Runtime's, and where a session puts it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, parser

from dns_onnx.runtime.library import library_path
from dns_onnx.runtime.substitute import substitute

CPU = "CPUExecutionProvider"

pytestmark = pytest.mark.usefixtures("kernels")

# shape of the input, attributes
CASES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "three_by_two": ((1, 5, 13, 21), {"kernel_shape": [3, 3], "strides": [2, 2]}),
    "two_by_two": ((2, 3, 8, 38), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "three_by_one": ((1, 2, 9, 11), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "resnet": ((1, 4, 14, 14), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}),
    "uneven": ((1, 2, 9, 40), {"kernel_shape": [4, 5], "strides": [3, 1], "pads": [3, 0, 1, 4]}),
    "wide_stride": ((1, 2, 30, 30), {"kernel_shape": [2, 3], "strides": [9, 8]}),
    "one": ((1, 3, 5, 6), {"kernel_shape": [1, 1]}),
    "tall": ((1, 3, 25, 2), {"kernel_shape": [7, 1], "strides": [2, 1]}),
    "whole_map": ((1, 3, 7, 6), {"kernel_shape": [7, 6]}),
    "ceil": ((1, 3, 8, 12), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    "ceil_behind_the_map": (
        (1, 3, 5, 7),
        {"kernel_shape": [2, 2], "strides": [3, 3], "pads": [1, 1, 1, 1], "ceil_mode": 1},
    ),
    "no_image": ((0, 3, 5, 5), {"kernel_shape": [2, 2]}),
    "large": ((1, 40, 40, 41), {"kernel_shape": [3, 3], "strides": [2, 2]}),
}


def pool_model(domain: str, rank: int = 4, **given: Any) -> bytes:
    graph = helper.make_graph(
        [helper.make_node("MaxPool", ["x"], ["y"], name="pool", domain=domain, **given)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None] * rank)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)],
    )
    opsets = [helper.make_opsetid("", 22), helper.make_opsetid("dns_onnx", 1)]
    data: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return data


def opened(data: bytes, threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library_path()))
    return ort.InferenceSession(data, options, providers=[CPU])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("shape", "given"), CASES.values(), ids=CASES)
def test_pool(shape: tuple[int, ...], given: dict[str, Any], threads: int) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    want, got = (
        opened(pool_model(domain, **given), threads).run(None, {"x": x})[0]
        for domain in ("", "dns_onnx")
    )
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kernels", ["portable", "avx2"])
def test_pool_of_a_lesser_kernel_set(kernels: str, tmp_path: Path) -> None:
    shape, given = CASES["resnet"]
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    (tmp_path / "m.onnx").write_bytes(pool_model("dns_onnx", **given))
    code = (
        "import numpy as np, onnxruntime as ort\n"
        "options = ort.SessionOptions()\n"
        f"options.register_custom_ops_library(r'{library_path()}')\n"
        f"made = ort.InferenceSession(r'{tmp_path / 'm.onnx'}', options, providers=['{CPU}'])\n"
        f"y = made.run(None, {{'x': np.load(r'{tmp_path / 'x.npy'}')}})[0]\n"
        f"np.save(r'{tmp_path / 'y.npy'}', y)"
    )
    environment = {**os.environ, "DNS_ONNX_KERNELS": kernels}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)
    want = opened(pool_model("", **given)).run(None, {"x": x})[0]
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), want)


def test_infinities_are_as_large_as_they_are() -> None:
    x = np.full((1, 1, 4, 4), -np.inf, np.float32)
    x[0, 0, 0, 0], x[0, 0, 3, 3] = np.inf, -1.0
    given = {"kernel_shape": [2, 2], "strides": [2, 2]}
    got = opened(pool_model("dns_onnx", **given)).run(None, {"x": x})[0]
    np.testing.assert_array_equal(got, [[[[np.inf, -np.inf], [-np.inf, -1.0]]]])


@pytest.mark.parametrize(
    "given",
    [
        {"kernel_shape": [3]},
        {"kernel_shape": [3, 0]},
        {"kernel_shape": [3, 3], "strides": [0, 1]},
        {"kernel_shape": [3, 3], "pads": [0, 3, 0, 0]},
        {"kernel_shape": [3, 3], "pads": [0, -1, 0, 0]},
        {"kernel_shape": [1 << 62, 3]},
    ],
    ids=str,
)
def test_attributes_that_do_not_fit_are_an_error(given: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="MaxPool 'pool': kernel_shape, strides, pads: expected"):
        opened(pool_model("dns_onnx", **given))


def test_another_rank_is_an_error() -> None:
    made = opened(pool_model("dns_onnx", rank=3, kernel_shape=[2, 2]))
    with pytest.raises(Exception, match="MaxPool 'pool': X: expected four dimensions"):
        made.run(None, {"x": np.zeros((1, 2, 3), np.float32)})


def test_a_map_smaller_than_its_windows_gives_nothing() -> None:
    made = opened(pool_model("dns_onnx", kernel_shape=[3, 3]))
    assert made.run(None, {"x": np.zeros((1, 2, 2, 5), np.float32)})[0].shape == (1, 2, 0, 3)


# what is between the sparse layer's x and the pool's y, and whether our kernel takes the pool
PLACES = {
    "behind_a_sparse_layer": ("a = dns_onnx.CsrConv(x, v, c, p, s) y = POOL(a)", True),
    "behind_a_concat": (
        "a = dns_onnx.CsrConv(x, v, c, p, s) b = Relu(a) d = Concat<axis = 1>(b, a) y = POOL(d)",
        True,
    ),
    "behind_another_pool": ("a = dns_onnx.CsrConv(x, v, c, p, s) b = POOL(a) y = POOL(b)", True),
    "behind_a_norm": ("a = LRN <size = 3> (x) y = POOL(a)", True),
    "behind_the_input": ("y = POOL(x)", False),
    "behind_a_concat_with_the_input": (
        "a = dns_onnx.CsrConv(x, v, c, p, s) b = Concat<axis = 1>(x, a) y = POOL(b)",
        False,
    ),
    "with_indices": ("a = dns_onnx.CsrConv(x, v, c, p, s) y, i = POOL(a)", False),
}


@pytest.mark.parametrize(("body", "ours"), PLACES.values(), ids=PLACES)
def test_where_a_session_puts_it(body: str, ours: bool) -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17, "dns_onnx" : 1]>\n'
        "g (float[1,2,8,8] x) => (y) <float[1] v = {1}, int32[1] c = {0}, int32[3] p = {0, 1, 1}, "
        f"int64[4] s = {{2, 2, 1, 1}}> {{ {body} }}"
    )
    model = parser.parse_model(text.replace("POOL", "MaxPool <kernel_shape = [2, 2]> "))
    substitute(model, None)
    pools = [node.domain for node in model.graph.node if node.op_type == "MaxPool"]
    assert pools == ["dns_onnx" if ours else ""] * len(pools)


@pytest.mark.parametrize(
    ("given", "ours"),
    [
        ({"kernel_shape": [2, 2]}, True),
        ({"kernel_shape": [2, 2], "dilations": [1, 1]}, True),
        ({"kernel_shape": [2, 2], "dilations": [2, 1]}, False),
        ({"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER"}, False),
        ({"kernel_shape": [2]}, False),
    ],
    ids=str,
)
def test_which_pools_it_takes(given: dict[str, Any], ours: bool) -> None:
    model = onnx.load_from_string(pool_model("", **given))
    norm = helper.make_node("LRN", ["x"], ["a"], size=3)
    model.graph.node[0].input[0] = "a"
    model.graph.node.insert(0, norm)
    substitute(model, None)
    assert model.graph.node[1].domain == ("dns_onnx" if ours else "")
