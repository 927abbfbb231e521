"""What surgery costs: one iteration of it against one dense iteration of the same net by hand.

    python benchmarks/step_overhead.py

Both are timed in one process, in turn.  The dense net is plain PyTorch (torch.nn.functional and
torch.optim.SGD with the same fused kernel that the surgery uses).  The masks are updated at *every*
iteration, which is more than any schedule does.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import torch
import torch.nn.functional as F
import typer
from onnx import helper, numpy_helper
from rich.console import Console
from torch import Tensor

from dns_onnx import report
from dns_onnx.config import parse_config
from dns_onnx.converters.importer import import_model
from dns_onnx.losses import loss
from dns_onnx.prepare import prepare_run

Shape = tuple[int, ...]
Net = Callable[[Tensor, list[Tensor]], Tensor]
console = Console(soft_wrap=True, highlight=False)

# each layer: weight shape; Conv: (stride, pad, pooled after it)
LENET5 = [
    ((20, 1, 5, 5), (1, 0, 2)),
    ((50, 20, 5, 5), (1, 0, 2)),
    ((500, 800), None),
    ((10, 500), None),
]
ALEXNET = [
    ((96, 3, 11, 11), (4, 2, 3)), ((256, 96, 5, 5), (1, 2, 3)), ((384, 256, 3, 3), (1, 1, 0)),
    ((384, 384, 3, 3), (1, 1, 0)), ((256, 384, 3, 3), (1, 1, 3)),
    ((4096, 9216), None), ((4096, 4096), None), ((1000, 4096), None),
]  # fmt: skip
NETS = {"lenet5": (LENET5, (1, 28, 28), False), "alexnet": (ALEXNET, (3, 227, 227), True)}


def build(
    layers: list[tuple[Shape, tuple[int, int, int] | None]], image: Shape, relu_after_conv: bool
) -> onnx.ModelProto:
    """The net as ONNX with seeded weights."""
    rng = np.random.default_rng(0)
    nodes, weights, value, flat = [], [], "image", False
    for i, (shape, conv) in enumerate(layers):
        scale = np.float32(np.sqrt(2 / np.prod(shape[1:])))
        w = rng.standard_normal(shape, np.float32) * scale
        weights += [numpy_helper.from_array(w, f"w{i}"),
                    numpy_helper.from_array(np.zeros(shape[0], np.float32), f"b{i}")]  # fmt: skip
        if conv is None and not flat:
            nodes.append(helper.make_node("Flatten", [value], ["flat"], name="flatten"))
            value, flat = "flat", True
        operands = [value, f"w{i}", f"b{i}"]
        if conv is None:
            nodes.append(helper.make_node("Gemm", operands, [f"y{i}"], name=f"fc{i}", transB=1))
        else:
            stride, pad, _ = conv
            nodes.append(helper.make_node("Conv", operands, [f"y{i}"], name=f"conv{i}",
                                          strides=[stride] * 2, pads=[pad] * 4))  # fmt: skip
        value = f"y{i}"
        if (conv is None or relu_after_conv) and i < len(layers) - 1:
            nodes.append(helper.make_node("Relu", [value], [f"r{i}"]))
            value = f"r{i}"
        if conv is not None and conv[2]:
            nodes.append(helper.make_node("MaxPool", [value], [f"p{i}"],
                                          kernel_shape=[conv[2]] * 2, strides=[2, 2]))  # fmt: skip
            value = f"p{i}"
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["batch", *image])],
        [helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, ["batch", layers[-1][0][0]])],
        weights,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def by_hand(layers: list[tuple[Shape, tuple[int, int, int] | None]], relu_after_conv: bool) -> Net:
    """The same net as a plain PyTorch function of image and parameters."""

    def net(x: Tensor, p: list[Tensor]) -> Tensor:
        for i, (_, conv) in enumerate(layers):
            w, b = p[2 * i], p[2 * i + 1]
            if conv is None:
                x = F.linear(x.flatten(1) if x.ndim == 4 else x, w, b)
            else:
                x = F.conv2d(x, w, b, stride=conv[0], padding=conv[1])
            if (conv is None or relu_after_conv) and i < len(layers) - 1:
                x = F.relu(x)
            if conv is not None and conv[2]:
                x = F.max_pool2d(x, conv[2], 2)
        return x

    return net


def measure(
    name: str, batch: int, rounds: int, device: torch.device
) -> dict[str, float | str | int]:
    """Median seconds of both iterations, and their ratio (median over rounds of the pairs')."""
    layers, image, relu = NETS[name]
    model = build(layers, image, relu)
    config = parse_config(
        {"train": {"iterations": 10**6}, "solver": {"policy": "fixed", "lr": 1e-4},
         "surgery": {"c_rate": 1.0, "gamma": 0.0, "iter_stop": 10**6}}, "bench",
    )  # fmt: skip
    run = prepare_run(model, import_model(model), config, device, Path("unused"), {}).run
    x = torch.rand(batch, *image, device=device)
    y = torch.randint(0, layers[-1][0][0], (batch,), device=device)
    p = [
        torch.from_numpy(numpy_helper.to_array(i).copy()).to(device).requires_grad_()
        for i in model.graph.initializer
    ]
    net = by_hand(layers, relu)
    solver = torch.optim.SGD(p, lr=1e-4, momentum=0.9, weight_decay=5e-4, fused=True)

    def dense(_: int) -> None:
        solver.zero_grad()
        F.cross_entropy(net(x, p), y).backward()
        solver.step()

    def surgery(i: int) -> None:
        run.surgery.step(i)
        run.optimizer.torch.zero_grad()
        loss(run.model(x), y).backward()
        run.optimizer.step(i, 10**6)

    times: dict[str, list[float]] = {"dense": [], "surgery": []}
    for i in range(3 + rounds):
        # the order changes every round, so that neither side always follows the other
        pair = [("dense", dense), ("surgery", surgery)]
        for key, step in pair if i % 2 else pair[::-1]:
            seconds = timed(step, i, device)
            if i >= 3:
                times[key].append(seconds)
    d, s = (statistics.median(times[k]) for k in ("dense", "surgery"))
    return {"net": name, "parameters": sum(t.numel() for t in p), "batch": batch, "rounds": rounds,
            "dense_ms": 1e3 * d, "surgery_ms": 1e3 * s, "ratio": s / d}  # fmt: skip


def timed(step: Callable[[int], None], i: int, device: torch.device) -> float:
    """Seconds of one iteration, the device's work included."""
    start = time.perf_counter()
    step(i)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main(
    rounds: Annotated[int, typer.Option(help="timed pairs of LeNet-5; AlexNet: a tenth")] = 300,
    alexnet_batch: Annotated[
        int | None, typer.Option(help="default: 64 on CUDA, 16 on the CPU")
    ] = None,
    threads: Annotated[int, typer.Option(help="CPU threads")] = 1,
    out: Annotated[Path | None, typer.Option(help="write the table there, .md and .json")] = None,
) -> None:
    """Time both nets and print the ratios."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = alexnet_batch or (64 if device.type == "cuda" else 16)
    rows = [measure("lenet5", 64, rounds, device),
            measure("alexnet", batch, max(rounds // 10, 5), device)]  # fmt: skip
    header = ["net", "parameters", "batch", "rounds", "dense ms", "surgery ms", "ratio"]
    lines = [
        [str(r["net"]), f"{r['parameters']:,}", str(r["batch"]), str(r["rounds"]),
         f"{r['dense_ms']:.2f}", f"{r['surgery_ms']:.2f}", f"{r['ratio']:.3f}"]
        for r in rows
    ]  # fmt: skip
    text = report.markdown((header, lines))
    console.print(text, markup=False)
    if out is not None:
        machine = {**report.machine(), "threads": str(threads)}
        where = ", ".join(f"{k} {v}" for k, v in machine.items())
        out.with_suffix(".md").write_text(f"{text}\n\nMeasured with: {where}.\n", "utf-8")
        values = json.dumps({"machine": machine, "rows": rows}, indent=1)
        out.with_suffix(".json").write_text(values, "utf-8")


if __name__ == "__main__":
    typer.run(main)
