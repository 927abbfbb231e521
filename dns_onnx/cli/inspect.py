"""`dns-onnx inspect`: what a model is made of and what surgery can do with it."""

from __future__ import annotations

from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from dns_onnx import report, sources
from dns_onnx.cli.check import stored_preprocess
from dns_onnx.cli.compress import DATA_HELP
from dns_onnx.cli.console import out, show, write_json
from dns_onnx.converters.batch import free_batch
from dns_onnx.converters.frontier import attachment_points, cut_off, frontier, opaque_cuts
from dns_onnx.converters.importer import import_model
from dns_onnx.converters.layers import layers
from dns_onnx.converters.reader import read_model
from dns_onnx.converters.verify import Difference, compare_values
from dns_onnx.errors import DnsOnnxError, ModelError
from dns_onnx.masks import holders
from dns_onnx.rows import input_specs, model_feeding
from dns_onnx.runtime.inputs import runnable_inputs
from dns_onnx.runtime.session import session
from dns_onnx.runtime.sizes import file_bytes

NAME = "inspect"
EXAMPLE = "Example: dns-onnx inspect lenet5.onnx --json layers.json --verify"
SAID = (
    ("A loss or distillation attaches by default to", "attachment_points"),
    ("Trained weights that it does not reach", "cut_off"),
    ("The batch size is fixed", "batch"),
)


def command(
    model: Annotated[Path, typer.Argument(help="an ONNX model, dense or compressed")],
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write all figures there")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="compare every value of the graph with ONNX Runtime")
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(help=f"rows for --verify; default: random ones. {DATA_HELP}", metavar="DATA"),
    ] = None,
) -> None:
    """Show inputs, outputs, opset and each layer: parameters, zeros, prunable or why not."""
    facts = inspect_model(model)
    out.print(
        f"{model}: {facts['bytes']:,} bytes, {facts['parameters']:,} parameters "
        f"({facts['nonzero']:,} nonzero), opset {facts['opset']}, {facts['nodes']} nodes",
        markup=False,
    )
    ports = [["input", i["name"], i["dtype"], str(i["shape"])] for i in facts["inputs"]]
    ports += [["output", name, "", ""] for name in facts["outputs"]]
    show("Inputs and outputs", (["", "name", "type", "shape"], ports))
    rows = [
        [x["node"], x["op_type"], x["weight"], "x".join(map(str, x["shape"])),
         f"{x['parameters']:,}", report.percent(x["share"], 1), report.percent(x["sparsity"], 1),
         "yes" if x["prunable"] else f"no: {x['reason']}"]
        for x in facts["layers"]
    ]  # fmt: skip
    header = ["node", "operator", "weight", "shape", "parameters", "share", "zeros", "prunable"]
    show("Layers", (header, rows))
    for title, key in SAID:
        if facts[key]:
            out.print(f"{title}: {facts[key]}", markup=False)
    for step, weights in facts["opaque"].items():
        some = ", ".join([*weights[:3], *["..."] * (len(weights) > 3)])
        cuts = f"cuts off {len(weights)} weights from training: {some}" if weights else ""
        out.print(f"Runs in ONNX Runtime, forward only: {step} {cuts}".rstrip(), markup=False)
    for key, value in facts["metadata"].items():
        out.print(f"{key}: {value}", markup=False)
    differences = verified(model, data) if verify else []
    if json_file is not None:
        write_json(json_file, {**facts, "differences": [asdict(d) for d in differences]})
    if differences:
        raise typer.Exit(1)


def verified(path: Path, data: str | None) -> list[Difference]:
    """Run the graph and ONNX Runtime side by side; say where they part.

    Raises ModelError where the model does not run on these inputs.
    """
    model = read_model(path)
    opened = session(path, native=False)  # says so where ONNX Runtime cannot load the file
    if data is None:
        feeds = runnable_inputs(opened)
    else:
        specs = input_specs(model)
        rows = np.arange(model_feeding(model).piece or 1)
        feeds = sources.load(data, specs, stored_preprocess(model), "eval").take(rows).inputs
    try:
        inputs = [x if x.dtype == object else torch.from_numpy(x) for x in feeds.values()]
        differences = compare_values(import_model(model), model, inputs)
    except DnsOnnxError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions share no base of their own
        raise ModelError(
            f"{path}: --verify: expected inputs that the model runs on, "
            f"got: {str(error).splitlines()[0]}; "
            "give rows of real ones with --data"
        ) from error
    if not differences:
        out.print("Verified: every value equals ONNX Runtime's.")
    for d in differences[:1]:
        out.print(
            f"First difference: '{d.value}' of {d.op_type} '{d.node}', relative error {d.error:.2g}"
            f" ({len(differences)} values differ in all)",
            markup=False,
        )
    return differences


def inspect_model(path: Path) -> dict[str, Any]:
    """All that `inspect` shows, as plain JSON values."""
    model = read_model(path)
    graph = import_model(model, str(path))
    weights = holders(graph)
    total = sum(h.weight.numel() for h in weights.values())
    nonzero = {n: int(h.weight.count_nonzero()) for n, h in weights.items()}
    rows = []
    for layer in layers(graph):
        size = prod(layer.shape)
        # a quantized weight has no float holder: its zeros are not counted
        zeros = 1 - nonzero[layer.weight] / max(size, 1) if layer.weight in nonzero else None
        if layer.bias in weights:
            size += weights[layer.bias].weight.numel()
        share = size / total if layer.weight in weights else None
        rows.append({**asdict(layer), "parameters": size, "share": share, "sparsity": zeros})
    points = attachment_points(graph)
    return {
        "file": str(path), "bytes": file_bytes(path), "parameters": total,
        "nonzero": sum(nonzero.values()), "nodes": len(model.graph.node),
        "opset": {o.domain or "ai.onnx": o.version for o in model.opset_import},
        "inputs": [
            {"name": s.name, "dtype": s.dtype.name, "shape": list(s.shape or ())}
            for s in input_specs(model)
        ],
        "outputs": [o.name for o in model.graph.output],
        "layers": rows,
        "attachment_points": points, "frontier": frontier(graph),
        "cut_off": cut_off(graph, points), "opaque": opaque_cuts(graph),
        "batch": free_batch(model).reason,
        "metadata": {m.key: m.value for m in model.metadata_props},
    }  # fmt: skip
