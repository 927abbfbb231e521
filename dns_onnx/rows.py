"""What rows a model takes, and the datasets that are given for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import helper

from dns_onnx import sources
from dns_onnx.config import Config
from dns_onnx.converters.ranges import draws
from dns_onnx.data import Dataset, split
from dns_onnx.errors import ConfigError, DataError
from dns_onnx.preprocess import InputSpec
from dns_onnx.runtime.batching import Feeding, feeding


def input_specs(
    model: onnx.ModelProto, sizes: Mapping[str, Sequence[int]] | None = None
) -> list[InputSpec]:
    """The inputs that a caller must feed, in graph order.

    sizes: whole shapes by input name, which stand for what the model leaves open.
    Raises ConfigError for sizes that do not fit.
    """
    weights = {i.name for i in model.graph.initializer}
    infos = [i for i in model.graph.input if i.name not in weights]
    ranges = draws(model)
    specs = []
    for i, axis in zip(infos, model_feeding(model).axes, strict=True):
        tensor = i.type.tensor_type
        shape = None
        if tensor.HasField("shape"):
            shape = tuple(d.dim_value if d.dim_value > 0 else None for d in tensor.shape.dim)
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        spec = InputSpec(i.name, dtype, shape, axis, ranges[i.name])
        specs.append(_sized(spec, (sizes or {}).get(i.name)))
    unknown = set(sizes or ()) - {s.name for s in specs}
    if unknown:
        raise ConfigError(
            f"data.shape: expected inputs of the model {[s.name for s in specs]}, "
            f"got {sorted(unknown)}"
        )
    return specs


def _sized(spec: InputSpec, sizes: Sequence[int] | None) -> InputSpec:
    """The input with the sizes of its free axes; the one that counts rows stays free."""
    if sizes is None:
        return spec
    shape = spec.shape or (None,) * len(sizes)
    if len(sizes) != len(shape) or any(
        have not in (None, size) for have, size in zip(shape, sizes, strict=True)
    ):
        raise ConfigError(
            f"data.shape: expected sizes for {['*' if d is None else d for d in shape]} of "
            f"'{spec.name}', got {list(sizes)}"
        )
    new = tuple(
        h if i == spec.axis else s for i, (h, s) in enumerate(zip(shape, sizes, strict=True))
    )
    return replace(spec, shape=new)


def model_feeding(model: onnx.ModelProto) -> Feeding:
    """How rows go into a model."""
    weights = {i.name for i in model.graph.initializer}
    types = [i.type.tensor_type for i in model.graph.input if i.name not in weights]
    return feeding(
        [d.dim_value or d.dim_param or None for d in t.shape.dim] if t.HasField("shape") else None
        for t in types
    )


@dataclass(frozen=True)
class Rows:
    """The rows of a run.

    teaching: are learned.  heldout: decide; None where there are none.  apart: they were given, not
    drawn from the training rows, and may be of another kind.  judged: what the written file is
    judged by.  source: what those are, in words.
    """

    teaching: Dataset
    heldout: Dataset | None
    apart: bool
    judged: Dataset
    source: str


def load_rows(train: Any, val: Any, eval: Any, config: Config, specs: list[InputSpec]) -> Rows:
    """The rows that were given as `pipeline.compress` takes them.

    Raises DataError.
    """
    given, apart = _dataset(train, config, specs, "train"), val is not None
    if not apart:
        teaching, heldout = split(given, config.data.holdout, config.seed)
    else:
        teaching, heldout = given, _dataset(val, config, specs, "val")
    if len(teaching) < with_batch(config, teaching).data.batch:
        raise DataError(
            f"training data: expected at least one batch of {config.data.batch} rows, "
            f"got {len(teaching)}; lower data.batch or data.holdout"
        )
    if eval is not None:
        return Rows(teaching, heldout, apart, _dataset(eval, config, specs, "eval"), "eval")
    kind = "random " if sources.is_random(val if apart else train) else ""
    if heldout is not None:
        return Rows(teaching, heldout, apart, heldout, f"{kind}held-out")
    return Rows(teaching, heldout, apart, teaching, f"{kind}training")


def with_batch(config: Config, data: Dataset) -> Config:
    """The settings with batches of no more than the teaching rows, where they do not say."""
    if "batch" in config.data.model_fields_set or len(data) >= config.data.batch:
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"batch": len(data)})})


def _dataset(given: Any, config: Config, specs: list[InputSpec], role: str) -> Dataset:
    if isinstance(given, str):
        return sources.load(given, specs, config.preprocess, role)
    return sources.wrap(given, specs, config.preprocess, f"{role} data")
