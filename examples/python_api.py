"""Compress a model from Python: settings, a dataset of one's own, and the result in ONNX Runtime.

    python examples/python_api.py OUT_FOLDER

Needs scikit-learn (pip install 'dns-onnx[demo]') for its digits.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import dns_onnx
from dns_onnx import demo, runtime


def main(folder: Path) -> None:
    """Train a dense net, prune it with settings made here, and run the file."""
    dense, train, test = demo.write_dense(folder, seed=0)
    config = dns_onnx.parse_config(
        {
            "train": {"iterations": 6000, "eval_every": 500},
            "solver": {"lr": 0.02, "policy": "fixed", "tail": 2000},
            "surgery": {"c_rate": 1.5, "iter_stop": 4000, "ramp_from": 0.3, "ramp_iters": 3000},
            "layer": [{"match": "fc3", "prune": False}],
        },
        "example",
    )
    result = dns_onnx.compress(dense, folder / "small.onnx", train=train, eval=test, config=config)
    print(f"{result.check.ratio:.1f}x, accuracy {result.check.metric.after:.2%}")
    for row in result.export.tensors:
        print(f"{row.name}: {row.dense_bytes} -> {row.bytes} bytes, {row.encoding} {row.reason}")

    session = runtime.session(result.path)
    rows = test.take(np.arange(5))
    print("predicted:", session.run(None, rows.inputs)[0].argmax(1), "labels:", rows.labels)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
