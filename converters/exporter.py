"""Write trained and pruned weights back into the original ONNX model, in the smallest form.

The original ModelProto is edited, never traced or built anew: names, inputs, outputs, operator
set, metadata and every node that is not concerned stay as they were in the file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnx import ModelProto, numpy_helper

from dns_onnx.converters.encodings import FORMATS
from dns_onnx.converters.encodings.choose import Plan, TensorRow, WantsKernel
from dns_onnx.converters.encodings.dense import FORMAT_KEY
from dns_onnx.converters.encodings.files import write_model
from dns_onnx.converters.encodings.functions import default_opset
from dns_onnx.converters.encodings.lift import lift, needs_lift
from dns_onnx.converters.encodings.matrix import Array, is_kept
from dns_onnx.converters.encodings.parts import make_tensor
from dns_onnx.converters.encodings.sites import Site, find_sites
from dns_onnx.converters.encodings.values import CODES
from dns_onnx.converters.reader import inline_functions, read_model
from dns_onnx.converters.shrink import ShrinkRow
from dns_onnx.converters.shrink import drop_dead as shrink
from dns_onnx.errors import ExportError

PREFIX = "dns_onnx."


@dataclass(frozen=True)
class Export:
    """A written model and what became of each of its weights.

    model: the result.  tensors: one row for each weight, in graph order.  format: the one used,
    which is another than asked for where `notes` says why.  dropped: units removed as dead.
    files: the files written, the model first; empty if none was asked for.
    """

    model: ModelProto
    tensors: list[TensorRow]
    format: str
    notes: list[str] = field(default_factory=list)
    dropped: list[ShrinkRow] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


def export_model(
    original: str | os.PathLike[str] | ModelProto,
    weights: Mapping[str, Array],
    path: str | os.PathLike[str] | None = None,
    *,
    format: str = "csr",
    metadata: Mapping[str, str] | None = None,
    min_sparsity: float | None = None,
    drop_dead: bool = False,
    values: str = "float32",
    wants_kernel: WantsKernel | None = None,
) -> Export:
    """The original model with new weights, each in the form that is smallest in real bytes.

    weights: by ONNX name, in the tensor's shape, zeros where cut.  A zero of either sign is a cut
    entry and is written as +0.  path: where to write it; None only builds it.
    format: csr (CSR operators with a function body), portable (the decoding in standard
    operators), coo (sparse_initializer) or dense.
    metadata: provenance, kept in metadata_props under `dns_onnx.`.
    min_sparsity: tensors with a smaller fraction of zeros stay dense.  drop_dead: first remove
    units that provably do not change the result.  values: how values are stored ("float16" and
    "int8" lose precision).  wants_kernel: whether a layer gains from a sparse operator.
    Raises ExportError for a weight that does not fit the model, for a format or values that there
    are not, and if the file cannot be written;
    ModelError for a broken model.
    """
    model = read_model(original)
    chosen = _set_weights(model, weights)
    return _export(
        model, chosen, path, format, metadata or {}, min_sparsity, drop_dead, values, wants_kernel
    )


def convert(
    original: str | os.PathLike[str] | ModelProto,
    format: str,
    path: str | os.PathLike[str] | None = None,
    *,
    metadata: Mapping[str, str] | None = None,
    min_sparsity: float | None = None,
    drop_dead: bool = False,
    values: str = "float32",
    wants_kernel: WantsKernel | None = None,
) -> Export:
    """The model with its weights as they are, stored in another format.

    Every float tensor of the file is considered.  Arguments and errors as for export_model.
    """
    model = read_model(original)
    return _export(
        model, None, path, format, metadata or {}, min_sparsity, drop_dead, values, wants_kernel
    )


def _export(
    model: ModelProto,
    chosen: set[str] | None,
    path: str | os.PathLike[str] | None,
    format: str,
    metadata: Mapping[str, str],
    min_sparsity: float | None,
    drop: bool,
    values: str,
    wants_kernel: WantsKernel | None,
) -> Export:
    """Shrink, lift, encode, stamp and write, in this order."""
    _expect(format, FORMATS, "format")
    _expect(values, CODES if format in ("csr", "portable") else CODES[:1], "values")
    dropped: list[ShrinkRow] = []
    if drop:
        model, dropped = shrink(model)
    options = {"values": values, "min_sparsity": min_sparsity, "wants_kernel": wants_kernel}
    model, plan, note = _planned(model, chosen, format, options)
    plan.write()
    _stamp(model, plan, metadata)
    files = write_model(model, path) if path is not None else []
    return Export(model, plan.rows, plan.format, [note] if note else [], dropped, files)


def _planned(
    model: ModelProto,
    chosen: set[str] | None,
    format: str,
    options: Mapping[str, Any],
) -> tuple[ModelProto, Plan, str]:
    """The model to write into, what becomes of its weights, and a note on the operator set.

    A model too old for the decoding is lifted, but only if that makes any weight smaller; where
    it cannot be lifted, its weights go into ONNX's own sparse tensors.
    """
    first = Plan(model, chosen, format, **options)
    if format not in ("csr", "portable") or not needs_lift(model) or not first.encoded:
        return model, first, ""
    lifted, reason = lift(model)
    if lifted is None:
        return (
            model,
            Plan(model, chosen, "coo", **{**options, "values": "float32"}),
            f"{reason}; written as coo instead of {format}",
        )
    before = default_opset(model)
    model = lifted
    note = f"lifted from operator set {before} to {default_opset(model)}, equal in ONNX Runtime"
    return model, Plan(model, chosen, format, **options), note


def _expect(value: str, allowed: tuple[str, ...], what: str) -> None:
    if value not in allowed:
        raise ExportError(f"{what}: expected one of {', '.join(allowed)}, got '{value}'")


def _set_weights(model: ModelProto, weights: Mapping[str, Array]) -> set[str]:
    """Write the weights into the model; those that equal what is there leave their tensor as is."""
    sites = _sites_by_name(model)
    if any(name not in sites for name in weights) and model.functions:
        inlined = inline_functions(model)
        model.CopyFrom(inlined)
        sites = _sites_by_name(model)
    unknown = sorted(name for name in weights if name not in sites)
    if unknown:
        raise ExportError(
            f"weights: expected names of float tensors in the model, got {unknown}; "
            "use the ONNX initializer names"
        )
    for name, weight in weights.items():
        _set_weight(sites[name], weight)
    return set(weights)


def _sites_by_name(model: ModelProto) -> dict[str, Site]:
    return {site.weight: site for site in find_sites(model)}


def _set_weight(site: Site, weight: Array) -> None:
    old = numpy_helper.to_array(site.tensor)
    if weight.shape != old.shape or weight.dtype.kind not in "fV":
        raise ExportError(
            f"weight '{site.name}': expected {old.dtype} {list(old.shape)}, "
            f"got {weight.dtype} {list(weight.shape)}"
        )
    new = _without_negative_zeros(weight.astype(old.dtype))
    if new.tobytes() == old.tobytes():
        return
    written = make_tensor("", new)
    for field_name in ("float_data", "int32_data", "double_data", "raw_data"):
        site.tensor.ClearField(field_name)
    site.tensor.raw_data = written.raw_data


def _without_negative_zeros(weight: Array) -> Array:
    """The weight with every cut entry as +0: masks that multiply leave -0 behind."""
    cleaned: Array = weight.copy()
    cleaned[~is_kept(cleaned)] = 0
    return cleaned


def _stamp(model: ModelProto, plan: Plan, metadata: Mapping[str, str]) -> None:
    """Merge provenance into metadata_props, keys of others kept."""
    entries = {f"{PREFIX}{key.removeprefix(PREFIX)}": value for key, value in metadata.items()}
    if plan.encoded:
        entries[FORMAT_KEY] = plan.format
    present = {entry.key: entry for entry in model.metadata_props}
    for key, value in entries.items():
        if key in present:
            present[key].value = value
        else:
            model.metadata_props.add(key=key, value=value)
