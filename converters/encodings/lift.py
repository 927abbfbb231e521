"""Lift a model to an operator set that the decoding can be written in, and prove it the same."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, TypeProto, checker, helper, version_converter

from dns_onnx.converters.encodings.functions import MIN_IR_VERSION, MIN_OPSET, default_opset
from dns_onnx.converters.encodings.header import FREE_INITIALIZERS, hide_inputs
from dns_onnx.converters.encodings.sites import all_graphs

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
    reasons = []
    for target in _TARGETS:
        lifted, reason = _convert(model, target)
        if lifted is not None:
            reason = difference(model, lifted)
            if not reason:
                return lifted, ""
        reasons.append(f"to {target}: {reason}")
    return None, f"operator set {default_opset(model)} could not be lifted ({reasons[0]})"


def _convert(model: ModelProto, target: int) -> tuple[ModelProto | None, str]:
    try:
        lifted: ModelProto = version_converter.convert_version(model, target)
        checker.check_model(lifted, full_check=True)
    except Exception as error:  # the C++ side raises several unrelated kinds
        return None, str(error).strip().splitlines()[0].rpartition("failed: ")[2]
    if _interface(lifted) != _interface(model):
        return None, "the converter changes the inputs or outputs"
    _keep_asymmetric(lifted)
    lifted.ClearField("metadata_props")
    lifted.metadata_props.extend(model.metadata_props)
    for name in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        if model.HasField(name):
            setattr(lifted, name, getattr(model, name))
    if lifted.ir_version < FREE_INITIALIZERS:
        hide_inputs(lifted, {tensor.name for tensor in lifted.graph.initializer})
    lifted.ir_version = max(lifted.ir_version, MIN_IR_VERSION)
    return lifted, ""


def _keep_asymmetric(model: ModelProto) -> None:
    """Give Resize nodes the sampling that Upsample and Resize had before 11.

    The converter leaves them with the newer default, half_pixel, which samples elsewhere.
    Source: ONNX operators, Resize 10 and 11.
    """
    for graph in all_graphs(model.graph):
        for node in graph.node:
            given = {attribute.name for attribute in node.attribute}
            if node.op_type == "Resize" and "coordinate_transformation_mode" not in given:
                for name, value in (
                    ("coordinate_transformation_mode", "asymmetric"), ("nearest_mode", "floor")
                ):  # fmt: skip
                    node.attribute.append(helper.make_attribute(name, value))


def _interface(model: ModelProto) -> list[str]:
    """Names of the inputs and outputs, in order."""
    return [value.name for value in (*model.graph.input, *model.graph.output)]


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
    shape = [max(dim.dim_value, 1) for dim in kind.shape.dim]
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
