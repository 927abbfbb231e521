"""onnxsim's own pruning, in an environment of its own: this file is what its interpreter runs.

    python benchmarks/onnxsim_prune.py MODEL ROWS.npy OUT KIND KEPT

KIND: magnitude, global, wanda or sparsegpt.  onnxsim prunes weights and leaves biases whole, so the
sparsity that it is asked for is the one at which at most KEPT entries, biases among them, are left.
Prints a line of JSON; its packages are no others' business, hence the local imports.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

STEPS = 9  # of the bisection for the sparsity


def main(path: str, rows: str, out: str, kind: str, kept: int) -> None:
    import numpy as np
    import onnx
    import onnxsim
    from onnx import numpy_helper

    model = onnx.load(path)
    data = [{model.graph.input[0].name: np.load(rows)}]
    prune: Callable[[float], Any] = {
        "magnitude": lambda s: onnxsim.apply_magnitude_pruning(model, sparsity=s),
        "global": lambda s: onnxsim.apply_magnitude_pruning(
            model, sparsity=s, global_sparsity=True
        ),
        "wanda": lambda s: onnxsim.apply_wanda_pruning(model, data, sparsity=s),
        "sparsegpt": lambda s: onnxsim.apply_sparsegpt_pruning(model, data, sparsity=s),
    }[kind]

    def arrays(found: Any) -> dict[str, Any]:
        """What its nodes read, by the names that the tensors have in the original."""
        values = {i.name: numpy_helper.to_array(i) for i in found.graph.initializer}
        pairs = zip(model.graph.node, found.graph.node, strict=True)
        return {
            old: values[new]
            for a, b in pairs
            for old, new in zip(a.input, b.input, strict=True)
            if new in values
        }

    low, high = 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        count = sum(int(np.count_nonzero(a)) for a in arrays(prune(middle)).values())
        low, high = (low, middle) if count <= kept else (middle, high)
    pruned = prune(high)
    np.savez(out, **arrays(pruned))
    simplified, _ = onnxsim.simplify(pruned)
    print(json.dumps({"version": onnxsim.__version__, "sparsity": high,
                      "bytes": len(pruned.SerializeToString()),
                      "simplified_bytes": len(simplified.SerializeToString())}))  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:5], kept=int(sys.argv[5]))
