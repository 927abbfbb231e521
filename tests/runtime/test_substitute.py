"""Standard nodes on kernels of ours: LRN against ONNX Runtime and the specification."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from dns_onnx.runtime.session import session

Make = Callable[..., Any]
CPU = "CPUExecutionProvider"

pytestmark = pytest.mark.usefixtures("kernels")

# shape, attributes; ONNX Runtime takes four dimensions, odd sizes and powers above zero only, and
# onnx.reference (1.23) normalises as many channels as there are images
CASES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "alexnet": ((1, 96, 13, 13), {"size": 5, "alpha": 1e-4, "beta": 0.75, "bias": 2.0}),
    "defaults": ((2, 7, 5, 3), {"size": 3}),
    "one_channel": ((2, 1, 4), {"size": 5, "alpha": 0.5}),
    "size_one": ((1, 9, 6, 6), {"size": 1, "alpha": 2.0}),
    "wider_than_the_channels": ((3, 4, 5), {"size": 11, "alpha": 0.3}),
    "even": ((1, 9, 6, 6), {"size": 4, "alpha": 0.5}),
    "two": ((1, 2, 3, 3), {"size": 2, "alpha": 3.0}),
    "root": ((1, 20, 40, 40), {"size": 3, "alpha": 0.7, "beta": 0.5}),
    "plain_quotient": ((1, 20, 4, 4), {"size": 3, "alpha": 0.7, "beta": 1.0}),
    "any_power": ((1, 20, 4, 4), {"size": 3, "alpha": 0.7, "beta": 0.6}),
    "power_zero": ((1, 20, 4, 4), {"size": 3, "alpha": 0.7, "beta": 0.0}),
    "volumes": ((2, 10, 3, 4, 5), {"size": 5, "alpha": 0.2}),
    "vectors": ((4, 40), {"size": 5, "alpha": 0.2}),
    "empty": ((0, 3, 2, 2), {"size": 3}),
}


def lrn_model(shape: tuple[int, ...], kind: int = TensorProto.FLOAT, **given: Any) -> bytes:
    graph = helper.make_graph(
        [helper.make_node("LRN", ["x"], ["y"], name="norm", **given)],
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


def specified(x: Any, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Any:
    """LRN as the operator's specification words it, in float64."""
    x = x.astype(np.float64)
    channels = x.shape[1]
    total = np.zeros_like(x)
    for c in range(channels):
        low, high = max(0, c - (size - 1) // 2), min(channels - 1, c + -(-(size - 1) // 2))
        total[:, c] = (x[:, low : high + 1] ** 2).sum(1)
    return (x / (bias + alpha / size * total) ** beta).astype(np.float32)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("shape", "given"), CASES.values(), ids=CASES)
def test_lrn(shape: tuple[int, ...], given: dict[str, Any], threads: int, close: Make) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    data = lrn_model(shape, **given)
    made = session(data, [CPU], native="require", threads=threads)
    assert made.dns_onnx.substituted == ("norm",)
    got = made.run(None, {"x": x})[0]
    close(got, specified(x, **given))
    if given["size"] % 2 and len(shape) == 4 and given.get("beta") != 0:
        close(got, session(data, [CPU], native=False).run(None, {"x": x})[0])


@pytest.mark.parametrize("kernels", ["portable", "avx2"])
def test_lrn_of_a_lesser_kernel_set(kernels: str, tmp_path: Any) -> None:
    shape, given = (2, 20, 9, 9), {"size": 5, "alpha": 0.3, "beta": 0.75}
    (tmp_path / "m.onnx").write_bytes(lrn_model(shape, **given))
    code = (
        "import sys, numpy as np\n"
        "from dns_onnx.runtime.session import session\n"
        "x = np.random.default_rng(0).standard_normal((2, 20, 9, 9)).astype(np.float32)\n"
        f"made = session(r'{tmp_path / 'm.onnx'}', ['{CPU}'], native='require')\n"
        f"np.save(r'{tmp_path / 'y.npy'}', made.run(None, {{'x': x}})[0])"
    )
    environment = {**os.environ, "DNS_ONNX_KERNELS": kernels}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.testing.assert_allclose(
        np.load(tmp_path / "y.npy"), specified(x, 5, 0.3), rtol=1e-5, atol=1e-6
    )


def test_lrn_of_what_has_no_power_is_what_onnx_runtime_says() -> None:
    shape, given = (1, 3, 1, 8), {"size": 1, "alpha": 1.0, "bias": 1e-30}
    x = np.zeros(shape, np.float32)
    x[0, :, 0, :4] = [[np.inf, np.nan, -np.inf, 1e-30]] * 3
    data = lrn_model(shape, **given)
    got = session(data, [CPU], native="require").run(None, {"x": x})[0]
    want = session(data, [CPU], native=False).run(None, {"x": x})[0]
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))


def test_other_types_stay_with_onnx_runtime() -> None:
    data = lrn_model((1, 3, 2, 2), TensorProto.FLOAT16, size=3)
    assert session(data, [CPU], native="require").dns_onnx.substituted == ()


def test_substitutes_can_be_switched_off() -> None:
    data = lrn_model((1, 3, 2, 2), size=3)
    assert session(data, [CPU], substitute=False).dns_onnx.substituted == ()
    assert session(data, [CPU], choose=False).dns_onnx.substituted == ()
    assert session(data, [CPU], native=False).dns_onnx.substituted == ()


def test_size_of_none_is_an_error() -> None:
    with pytest.raises(Exception, match="LRN 'norm': size: expected 1 or more, got 0"):
        session(lrn_model((1, 3, 2, 2), size=0), [CPU], native="require")
