"""What an installed wheel must do where there is no compiler: run by `make wheel`, no test itself.

Prunes nothing: writes a sparse layer with the package, runs it on the kernels that the wheel
brought along, and holds it against stock ONNX Runtime.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from dns_onnx import runtime
from dns_onnx.converters.exporter import convert
from dns_onnx.runtime.library import kernel_set


def main() -> None:
    """Raise RuntimeError for whatever is not as it should be."""
    compilers = [name for name in ("cc", "gcc", "g++", "clang", "cmake") if shutil.which(name)]
    if compilers:
        raise RuntimeError(f"expected no compiler on PATH, found {compilers}")
    if Path(sys.prefix) not in runtime.library_path().parents:
        raise RuntimeError(f"expected the wheel's own library, got {runtime.library_path()}")
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((200, 300)) * (rng.random((200, 300)) < 0.05)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["X", "W"], ["Y"], transB=1)],
        "layer",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [4, 300])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [4, 200])],
        [numpy_helper.from_array(weight, "W")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = rng.standard_normal((4, 300)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.onnx"
        made = convert(model, "csr", path)
        if made.tensors[0].operator != "CsrGemm":
            raise RuntimeError(f"expected CsrGemm, got {made.tensors[0]}")
        sparse = runtime.session(path, native="require").run(None, {"X": x})[0]
        stock = runtime.session(path, native=False).run(None, {"X": x})[0]
    np.testing.assert_allclose(sparse, x @ weight.T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(stock, x @ weight.T, rtol=1e-4, atol=1e-4)
    version = metadata.version("dns-onnx")
    sys.stdout.write(f"dns-onnx {version} from the wheel: {kernel_set()} kernels\n")


if __name__ == "__main__":
    main()
