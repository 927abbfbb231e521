"""At which density the dense kernel overtakes the sparse one: the figures of the cost model.

    python benchmarks/crossover.py --rounds 5 --out docs/results/crossover.json

For each kind of layer: ONNX Runtime dense and our kernel in turn at growing densities, one thread,
batch 1, seed 0; the crossing lies on the line between the last density won and the first lost.
converters/encodings/crossover.py holds what this printed with DNS_ONNX_KERNELS=avx2.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import numpy as np
import onnxruntime as ort
from contenders import SEED, ort_runner, times_as_fast, turn
from sparse_models import Layer, conv, layer_model, pruned

from dns_onnx.runtime.crossing import cpu_name
from dns_onnx.runtime.library import kernel_set, library_path

DENSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def linear(rows: int, columns: int) -> Layer:
    name = f"linear, {4 * rows * columns / 2**20:.0f} MB"
    return Layer(name, (1, columns), (rows, columns), 0.0, (("transB", 1),))


LAYERS = (
    linear(512, 512),
    linear(1024, 2048),
    linear(2048, 2048),
    linear(4096, 4096),
    linear(4096, 9216),
    conv("3x3, 64 channels on 28x28", 64, 28, 64, 3, 0.0, pad=1),
    conv("3x3, 256 channels on 14x14", 256, 14, 256, 3, 0.0, pad=1),
    conv("1x1, 128 channels on 28x28", 128, 28, 128, 1, 0.0),
    conv("1x1, 512 channels on 14x14", 512, 14, 512, 1, 0.0),
    conv("3x3 depthwise, 128 channels on 28x28", 128, 28, 128, 3, 0.0, pad=1, group=128),
)


def speedup(layer: Layer, density: float, rounds: int) -> float:
    """How many times as fast as the dense kernel ours is."""
    rng = np.random.default_rng(SEED)
    weight = pruned(rng, layer.weight, density)
    x = rng.standard_normal(layer.x).astype(np.float32)
    dense = ort_runner(layer_model(layer, weight, sparse=False), x, 1, None)
    ours = ort_runner(layer_model(layer, weight, sparse=True), x, 1, str(library_path()))
    pairs = [(turn(dense, "cpu"), turn(ours, "cpu")) for _ in range(rounds)]
    times = {"dense": [d for d, _ in pairs], "ours": [s for _, s in pairs]}
    return times_as_fast(times, "ours", "dense")[1]


def crossing(layer: Layer, rounds: int) -> float:
    """The density where the speed-up passes 1; 0 or 1 where it never does."""
    before, ratio_before = 0.0, float("inf")
    for density in DENSITIES:
        ratio = speedup(layer, density, rounds)
        if ratio < 1:
            if before == 0.0:
                return 0.0
            return before + (density - before) * (ratio_before - 1) / (ratio_before - ratio)
        before, ratio_before = density, ratio
    return 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = {}
    for layer in LAYERS:
        name = layer.name.removesuffix(" 0%")
        found[name] = round(crossing(layer, options.rounds), 2)
        print(f"{name:40} {found[name]:.2f}", flush=True)
    if options.out:
        head = {
            "machine": cpu_name(),
            "system": platform.platform(),
            "onnxruntime": ort.__version__,
            "kernels": kernel_set(),
            "threads": 1,
        }
        options.out.write_text(json.dumps({**head, "crossover": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
