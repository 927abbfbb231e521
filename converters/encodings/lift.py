"""Lift a model to an operator set that the decoding can be written in, and prove it the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TypeProto, helper

from dns_onnx.converters.encodings.functions import MIN_OPSET, default_opset

# Tried in turn: the oldest that has every operator, then the ones most tools are tested with.
_TARGETS = (13, 11, 18)
_SEEDS = (0, 1)
_RELATIVE, _ABSOLUTE = 1e-5, 1e-6


def needs_lift(model: ModelProto) -> bool:
    """Whether the model's operator set lacks what the decoding is written in."""
    return default_opset(model) < MIN_OPSET


def lift(model: ModelProto) -> tuple[ModelProto | None, str]:
    """The model in a newer operator set, equal to it in ONNX Runtime on random inputs.

    Returns the lifted model and "", or None and why there is none.
    """
    reason = "no operator set was tried"
    for target in _TARGETS:
        lifted, reason = _convert(model, target)
        if lifted is None:
            continue
        reason = difference(model, lifted)
        if not reason:
            return lifted, ""
    return None, f"operator set {default_opset(model)} could not be lifted: {reason}"


def _convert(model: ModelProto, target: int) -> tuple[ModelProto | None, str]:
    try:
        lifted: ModelProto = onnx.version_converter.convert_version(model, target)
        onnx.checker.check_model(lifted, full_check=True)
    except Exception as error:  # the C++ side raises several unrelated kinds
        return None, f"to {target}: {str(error).strip().splitlines()[0]}"
    for ours, theirs in ((lifted.graph.input, model.graph.input), (lifted.graph.output, model.graph.output)):
        if [value.name for value in ours] != [value.name for value in theirs]:
            return None, f"to {target}: the converter changes the inputs or outputs"
    lifted.ClearField("metadata_props")
    lifted.metadata_props.extend(model.metadata_props)
    for name in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        if model.HasField(name):
            setattr(lifted, name, getattr(model, name))
    return lifted, ""


def difference(model: ModelProto, other: ModelProto) -> str:
    """How two models differ in ONNX Runtime on seeded random inputs; empty if they do not."""
    try:
        for seed in _SEEDS:
            feeds = _random_inputs(model, np.random.default_rng(seed))
            pairs = zip(_run(model, feeds), _run(other, feeds), strict=True)
            for value, (wanted, got) in zip(model.graph.output, pairs, strict=True):
                if not _close(wanted, got):
                    return f"output '{value.name}' changes"
    except Exception as error:  # ONNX Runtime's exceptions share no base of their own
        return f"it could not be verified: {str(error).strip().splitlines()[0][:200]}"
    return ""


def _run(model: ModelProto, feeds: dict[str, Any]) -> list[Any]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    wanted: list[Any] = session.run(None, feeds)
    return wanted


def _random_inputs(model: ModelProto, rng: np.random.Generator) -> dict[str, Any]:
    """One random value for each input that no initializer gives; free axes are 1 long."""
    given = {tensor.name for tensor in model.graph.initializer}
    return {
        value.name: _random(value.type.tensor_type, rng)
        for value in model.graph.input
        if value.name not in given
    }


def _random(kind: TypeProto.Tensor, rng: np.random.Generator) -> Any:
    shape = [dim.dim_value or 1 for dim in kind.shape.dim]
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
    if dtype.kind == "O":
        return np.full(shape, "a", object)
    if dtype.kind in "biu":
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def _close(wanted: Any, got: Any) -> bool:
    if not isinstance(wanted, np.ndarray) or wanted.dtype.kind != "f":
        return bool(np.array_equal(np.asarray(wanted), np.asarray(got)))
    finite = wanted[np.isfinite(wanted)]
    scale = float(np.abs(finite).max()) if finite.size else 1.0
    return wanted.shape == got.shape and bool(
        np.allclose(wanted, got, rtol=_RELATIVE, atol=_ABSOLUTE * scale, equal_nan=True)
    )
