"""What surgery costs: one iteration of it against one dense iteration of the same net.

    python benchmarks/step_overhead.py --net lenet5 --out docs/results/step_overhead

All are timed in one process, in turn.  Dense: the imported graph without masks, cross-entropy, and
torch.optim.SGD with the same fused kernel that the surgery uses.  LeNet-5 and a net of AlexNet's
size have seeded weights; so has ResNet-50, the light graph of the onnx package.  Thresholds: the
paper's way, the masks updated at *every* iteration, which is more than any schedule does.  Target:
the mean over windows of 20 iterations, spread evenly over the 8000 of a search's trial, as they are
there: prices, gradients, updates by their draws, and at the end masks that rest.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
import typer
from by_hand import before_softmax
from importers import LIGHT, with_weights
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from rich.console import Console

from dns_onnx import report
from dns_onnx.attach import to_device
from dns_onnx.config import Preprocess, parse_config
from dns_onnx.converters.batch import free_batch
from dns_onnx.converters.importer import import_model
from dns_onnx.data import ArrayDataset
from dns_onnx.pace import TRIAL_ITERATIONS
from dns_onnx.prepare import prepare_run
from dns_onnx.rows import input_specs
from dns_onnx.surgery import Surgery
from dns_onnx.targets import LISTEN_EVERY, PRICE_EVERY, Descent, TargetSurgery, goals
from dns_onnx.trials import RAMP_SHARE, SURGERY_SHARE

Shape = tuple[int, ...]
Row = dict[str, Any]
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
RESNET = "resnet50"


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


def model_of(name: str) -> tuple[onnx.ModelProto, Shape, int]:
    """(the net of a name, shape of its images, number of classes)."""
    if name == RESNET:
        light = with_weights(onnx.load(LIGHT / "light_resnet50.onnx"))
        return free_batch(light).model, (3, 224, 224), 1000
    layers, image, relu = NETS[name]
    return build(layers, image, relu), image, layers[-1][0][0]


def measure(name: str, batch: int, rounds: int, device: torch.device) -> Row:
    """Median seconds of an iteration of each kind, and the ratios to the dense one.

    rounds: of PRICE_EVERY iterations each.
    """
    model, image, classes = model_of(name)
    rng = np.random.default_rng(0)
    images, labels = rng.random((batch, *image), np.float32), rng.integers(0, classes, batch)
    specs = input_specs(model)
    data = ArrayDataset(specs, {specs[0].name: images}, labels, Preprocess(), "bench")
    config = parse_config(
        {"train": {"iterations": 10**7}, "solver": {"policy": "fixed", "lr": 1e-4},
         "surgery": {"c_rate": 1.0, "gamma": 0.0, "iter_stop": 10**7}}, "bench",
    )  # fmt: skip
    graph = import_model(model)
    run = prepare_run(model, graph, config, device, data, Path("unused"), {}).run
    layers = list(run.surgery)
    stop = int(SURGERY_SHARE * TRIAL_ITERATIONS)
    descent = Descent(stop, int(RAMP_SHARE * stop))
    target = TargetSurgery(layers, 0, goals(layers, {}, 0.1), descent)
    (x,), targets = to_device(data.take(np.arange(batch)), device)
    plain = import_model(before_softmax(model) if name == RESNET else model).to(device)
    weights = [w for w in plain.parameters() if w.requires_grad]
    solver = torch.optim.SGD(
        weights, lr=1e-4, momentum=0.9, weight_decay=5e-4,
        fused=True,
    )  # fmt: skip

    def dense(_: int) -> None:
        solver.zero_grad()
        F.cross_entropy(plain(x), targets["labels"]).backward()
        solver.step()

    def operated(surgery: Surgery, i: int) -> None:
        surgery.step(i)
        run.optimizer.torch.zero_grad()
        run.objective.loss(run.model(x), [x], targets).backward()
        surgery.listen(i)
        run.optimizer.step(i, 10**7)

    steps = {"dense": dense, "thresholds": partial(operated, run.surgery),
             "target": partial(operated, target)}  # fmt: skip
    for step in steps.values():
        for i in range(2):
            step(i)
    times = {key: np.zeros((rounds, PRICE_EVERY)) for key in steps}
    for r in range(rounds):
        start = int((r + 0.5) * TRIAL_ITERATIONS / rounds) // PRICE_EVERY * PRICE_EVERY
        for i in range(PRICE_EVERY):
            # the order changes every time, so that none always follows the same one
            for key in sorted(steps, key=lambda k: (list(steps).index(k) + r + i) % len(steps)):
                times[key][r, i] = timed(steps[key], start + i, device)
    dense_s = float(np.median(times["dense"]))
    thresholds_s = float(np.median(times["thresholds"]))
    target_s = float(np.mean([cycle(window) for window in times["target"]]))
    return {"net": name, "parameters": sum(w.numel() for w in weights), "batch": batch,
            "iterations": rounds * PRICE_EVERY, "dense_ms": 1e3 * dense_s,
            "thresholds_ms": 1e3 * thresholds_s, "target_ms": 1e3 * target_s,
            "thresholds": thresholds_s / dense_s, "target": target_s / dense_s}  # fmt: skip


def cycle(seconds: NDArray[np.float64]) -> float:
    """Mean of a window of target surgery, from the medians of the iterations that do the same."""
    places = np.arange(len(seconds))
    price, listen = places == 0, places % LISTEN_EVERY == 0
    kinds = [seconds[kind] for kind in (price, listen & ~price, ~listen)]
    return float(sum(len(kind) * np.median(kind) for kind in kinds) / len(seconds))


def timed(step: Callable[[int], None], i: int, device: torch.device) -> float:
    """Seconds of one iteration, the device's work included."""
    start = time.perf_counter()
    step(i)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main(
    net: Annotated[str, typer.Option(help=f"one of {', '.join([*NETS, RESNET])}")],
    batch: Annotated[int, typer.Option(help="rows")] = 64,
    rounds: Annotated[int, typer.Option(help=f"of {PRICE_EVERY} iterations of each kind")] = 10,
    threads: Annotated[int, typer.Option(help="CPU threads")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="the table, .md and .json, in which the net gets its row")
    ] = None,
) -> None:
    """Time a net and print the ratios."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine = {**report.machine(), "threads": str(threads)}
    found = measure(net, batch, rounds, device)
    rows = [found]
    if out is not None and out.with_suffix(".json").exists():
        before = json.loads(out.with_suffix(".json").read_text("utf-8"))
        if before["machine"] == machine:
            rows = [r for r in before["rows"] if r["net"] != net] + rows
    header = ["net", "parameters", "batch", "iterations", "dense ms", "thresholds ms", "target ms",
              "thresholds / dense", "target / dense"]  # fmt: skip
    lines = [
        [r["net"], f"{r['parameters']:,}", str(r["batch"]), str(r["iterations"]),
         *(f"{r[k]:.2f}" for k in ("dense_ms", "thresholds_ms", "target_ms")),
         f"{r['thresholds']:.3f}", f"{r['target']:.3f}"]
        for r in sorted(rows, key=lambda r: r["parameters"])
    ]  # fmt: skip
    text = report.markdown((header, lines))
    console.print(text, markup=False)
    if out is not None:
        where = ", ".join(f"{k} {v}" for k, v in machine.items())
        out.with_suffix(".md").write_text(f"{text}\n\nMeasured with: {where}.\n", "utf-8")
        values = json.dumps({"machine": machine, "rows": rows}, indent=1)
        out.with_suffix(".json").write_text(values, "utf-8")


if __name__ == "__main__":
    typer.run(main)
