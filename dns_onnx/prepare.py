"""Putting a run together: device, objective, the layers under surgery and their first masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import fx

from dns_onnx import distributed
from dns_onnx.attach import TrainingGraph, proven_feeding, to_device
from dns_onnx.config import Config, LayerSettings
from dns_onnx.converters.frontier import cut_off
from dns_onnx.converters.layers import Layer, layers
from dns_onnx.data import Dataset
from dns_onnx.errors import ConfigError, TrainingError
from dns_onnx.granularity import Elements, grain_of
from dns_onnx.masks import Masked, holders
from dns_onnx.objective import prepare_objective
from dns_onnx.rows import model_feeding
from dns_onnx.surgery import LayerSurgery, Schedule, Surgery
from dns_onnx.train import Run

LEAST_IMAGE = 16  # pixels a side, below which a pixel's shift changes too much


@dataclass(frozen=True)
class Spared:
    """A layer that surgery leaves alone, and why."""

    name: str
    weight: str
    reason: str


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to train, and the layers that it leaves alone.

    sparsity: of the layers that have a goal of their own, by the initializer name of the weight.
    notes: what the settings asked for and could not have, in words.
    """

    run: Run
    spared: list[Spared]
    sparsity: dict[str, float]
    notes: list[str]


def prepare_run(
    model: onnx.ModelProto, graph: fx.GraphModule, config: Config, device: torch.device,
    data: Dataset, folder: Path, fingerprint: dict[str, Any], tensorboard: Path | None = None,
) -> Prepared:  # fmt: skip
    """Masks attached, layers chosen by the configuration, everything on the device.

    data: the teaching rows, which say whether there are labels.
    """
    found = layers(graph)
    refuse_nothing([x for x in found if x.prunable],
                   [Spared(x.node, x.weight, x.reason) for x in found])  # fmt: skip
    graph.to(device)
    config = with_shift(config, automatic_shift(config, data))
    feeding = model_feeding(model)
    if config.data.batch > 1 and len(data) > 1:
        two, _ = to_device(data.take(np.arange(2)), device)
        feeding = proven_feeding(graph, feeding, two)
    training, objective = prepare_objective(model, graph, config, feeding, data, device)
    if config.data.pixels:
        moved = f"images move by up to {config.data.pixels} pixel(s)"
        objective = replace(objective, said=f"{objective.said}; {moved}")
    objective.refuse_bad_data(training, {"training": data}, device)
    weights = trained_weights(graph, training, objective.touched(training, data, device))
    refuse_scaled_halves(config, weights)
    unfit = {n for n, h in holders(graph).items() if not bool(h.weight.isfinite().all())}
    chosen, spared = _divided(found, weights, config, training.values, unfit)
    refuse_nothing(chosen, spared)
    single = [x.weight for x in chosen if cut_singly(x, config)]
    if len(single) == len(chosen):
        grain_of(config.surgery.granularity, None, None, chosen[0].node)  # says that it needs axes
    surgery = Surgery([_operated(layer, weights, config) for layer in chosen], config.seed)
    biases = {layer.bias for layer in found if layer.bias}
    if config.train.shard and distributed.size() > 1:
        if not config.has_thresholds:
            raise ConfigError("train.shard: expected thresholds (c_rate), got a target; a target's "
                              "prices compare all weights in one place")  # fmt: skip
        if any(not isinstance(layer.grain, Elements) for layer in surgery):
            raise ConfigError("train.shard: expected granularity element, got groups of entries; "
                              "train without it")  # fmt: skip
        distributed.shard(training, weights.values(), "read")
    run = Run(
        training, objective, weights, biases, surgery, config, folder, device, fingerprint,
        tensorboard,
    )  # fmt: skip
    settings = {x.weight: config.layer_settings(*_names(x)).sparsity for x in chosen}
    some = [*single[:3], *[f"{len(single) - 3} more"] * (len(single) > 3)]
    notes = [
        f"Cut by single entries, for want of one axis of inputs and one of outputs for granularity "
        f"{config.surgery.granularity}: {', '.join(some)}."
    ] * bool(single)
    return Prepared(run, spared, {k: v for k, v in settings.items() if v is not None}, notes)


def refuse_nothing(chosen: Sequence[Layer], spared: Sequence[Spared]) -> None:
    """Say why nothing can be cut, where nothing is chosen.

    Raises TrainingError.
    """
    if chosen:
        return
    because = [f"{x.name} ('{x.weight}'): {x.reason}" for x in spared[:3]]
    because += [f"{len(spared) - 3} more"] * (len(spared) > 3)
    if any("float" in x.reason for x in spared):
        because.append("prune a quantized model before it is quantized")
    raise TrainingError(
        "surgery: expected at least one layer to prune, got none: "
        + ("; ".join(because) or "no Conv, Gemm, MatMul or the like has weights in this model")
    )


def refuse_scaled_halves(config: Config, weights: Mapping[str, Masked]) -> None:
    """A scaled loss needs weights that are wider than its gradients.

    Raises ConfigError.
    """
    narrow = [n for n, h in weights.items() if h.weight.dtype == torch.float16]
    if config.train.precision == "float16" and narrow:
        raise ConfigError(
            f"train.precision: float16 scales the loss for float32 weights, but '{narrow[0]}' is "
            "float16 in the model itself; leave it at float32, which computes such a model as it is"
        )


def automatic_shift(config: Config, data: Dataset) -> int:
    """How far images move where the settings leave that open, in pixels.

    1 where a target is pursued, class numbers teach, and the one input holds images of one or three
    channels and at least 16 x 16 pixels, channels first; 0 elsewhere.
    """
    sample = data.take(np.arange(1))
    labels, images = sample.labels, list(sample.inputs.values())
    taught = labels is not None and labels.ndim == 1 and labels.dtype.kind in "iu"
    if config.has_thresholds or config.distill.weight == 1 or not taught or len(images) != 1:
        return 0
    x = images[0]
    channels, *sizes = x.shape[1:] if x.ndim == 4 else (0,)
    return int(channels in (1, 3) and min(sizes) >= LEAST_IMAGE and x.dtype.kind == "f")


def with_shift(config: Config, pixels: int) -> Config:
    """The settings with so many pixels where they leave the shift open."""
    if config.data.shift != "auto":
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"shift": pixels})})


def trained_weights(
    graph: fx.GraphModule, training: TrainingGraph, touched: set[str]
) -> dict[str, Masked]:
    """The holders that training changes; all others are frozen.

    touched: names of those that get a gradient on the data; a branch of an If that the data never
        take would be cut without anything to tell how much it matters.
    Left out: what the loss does not reach, single numbers (an epsilon, an exponent: constants of
    the architecture), and tensors that hold infinities (attention masks).
    """
    unreached = set(cut_off(training.graph))
    reached = (holders(training.graph).keys() - unreached) & touched
    weights = {}
    for name, holder in holders(graph).items():
        w = holder.weight
        if w.requires_grad and name in reached and w.numel() > 1 and w.isfinite().all():
            weights[name] = holder
        else:
            w.requires_grad_(False)
    return weights


def _divided(
    found: list[Layer], weights: Mapping[str, Masked], config: Config, values: list[str],
    unfit: set[str],
) -> tuple[list[Layer], list[Spared]]:  # fmt: skip
    """(layers to operate on, layers left alone); each weight once, where nodes share it.

    unfit: names of weights that hold NaN or infinity.
    """
    unknown = config.unused_rules([_names(layer) for layer in found])
    if unknown:
        raise ConfigError(
            f"layer.match: {unknown} name no layer; the layers are {[x.node for x in found]}"
        )
    chosen: dict[str, Layer] = {}
    spared = []
    for layer in found:
        if not layer.prunable:
            spared.append(Spared(layer.node, layer.weight, layer.reason))
        elif layer.weight in unfit:
            spared.append(Spared(layer.node, layer.weight, "holds NaN or infinity"))
        elif layer.weight not in weights:
            reason = f"the loss at {', '.join(map(repr, values))} does not reach it"
            spared.append(Spared(layer.node, layer.weight, reason))
        elif not config.layer_settings(*_names(layer)).prune:
            spared.append(Spared(layer.node, layer.weight, "spared by the configuration"))
        else:
            chosen.setdefault(layer.weight, layer)
    return list(chosen.values()), spared


def _names(layer: Layer) -> tuple[str, ...]:
    """The names that a rule may call a layer by."""
    return (layer.node, layer.weight, layer.bias or "")


def cut_singly(layer: Layer, config: Config) -> bool:
    """Whether a layer has no axes to group along, and nobody but the default asks it to.

    Raises ConfigError for a granularity that does not exist.
    """
    named = config.layer_settings(*_names(layer)).granularity
    grouped = not isinstance(grain_of(named, 0, 1, layer.node), Elements)
    told = any(r.granularity is not None and r.matches(*_names(layer)) for r in config.layer)
    return grouped and not told and (layer.out_axis is None or layer.in_axis is None)


def _operated(layer: Layer, weights: Mapping[str, Masked], config: Config) -> LayerSurgery:
    """The layer with its first masks."""
    settings = config.layer_settings(*_names(layer))
    tensors = [weights[layer.weight]]
    tensors[0].attach_mask(first_mask(tensors[0], settings.weight_mask))
    bias = weights.get(layer.bias or "")
    if bias is not None and settings.prune_bias and bias.mask is None:
        bias.attach_mask(first_mask(bias, settings.bias_mask))
        tensors.append(bias)
    name = "element" if cut_singly(layer, config) else settings.granularity
    grain = grain_of(name, layer.out_axis, layer.in_axis, layer.node)
    return LayerSurgery(layer.node, tensors, schedule_of(settings), grain)


def schedule_of(settings: LayerSettings) -> Schedule:
    """The part of a layer's settings that drives its surgery."""
    return Schedule(
        settings.c_rate or 0.0, settings.gamma, settings.power, settings.iter_stop or 0,
        settings.ramp_from or 0.0, settings.ramp_iters or 0,
    )  # fmt: skip


def first_mask(holder: Masked, start: str) -> torch.Tensor:
    """The mask that a layer starts with: `kept`, `cut`, `nonzero`, or a bool .npy file."""
    weight = holder.weight.detach()
    match start:
        case "kept":
            return torch.ones_like(weight, dtype=torch.bool)
        case "cut":
            return torch.zeros_like(weight, dtype=torch.bool)
        case "nonzero":
            return weight != 0
    try:
        mask = np.load(start, allow_pickle=False)
        mask = np.ascontiguousarray(mask)
    except (OSError, ValueError, EOFError, TypeError) as error:
        raise ConfigError(
            f"mask of '{holder.name}': expected kept, cut, nonzero or a bool .npy file, "
            f"got '{start}': {error}"
        ) from None
    if mask.dtype != np.bool_ or mask.shape != tuple(weight.shape):
        raise ConfigError(
            f"{start}: expected bool {list(weight.shape)} for '{holder.name}', "
            f"got {mask.dtype} {list(mask.shape)}"
        )
    return torch.from_numpy(mask).to(weight.device)


def torch_device(name: str) -> torch.device:
    """The device that a `--device` argument means."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"--device: expected auto, cpu or cuda, got '{name}'")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no CUDA device here; use auto or cpu")
    return torch.device(name)
