"""Load an ONNX file and check that it is whole before anything is built from it."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto, helper, inliner

from dns_onnx.converters.encodings import is_encoded, to_dense
from dns_onnx.converters.order import used_names
from dns_onnx.converters.structure import (
    all_sound,
    byte_length,
    check_structure,
    is_sound,
)
from dns_onnx.converters.wire import Span, without_large_tensors
from dns_onnx.errors import DnsOnnxError, ModelError

# Tensors above this size are left out of the copy that shape inference works on.
_SMALL_BYTES = 4096
_SMALL_STRINGS = 64
_LONGEST_VECTOR = 1_000_000


def read_model(
    source: str | os.PathLike[str] | ModelProto, *, load_data: bool = True
) -> ModelProto:
    """The model in `source`, whole, with every sparse encoding made dense again.

    source: a path, or a ModelProto (which is left as it is).
    load_data: make it a model of its own, external data read into it.  False is for reading only:
    large tensors stay in their files (the model's own is one), with the location rewritten to an
    absolute path that lies inside the model's folder, and a ModelProto may come back itself.
    Raises ModelError for a file that is missing, empty, truncated or no ONNX model, and for
    external data that are missing, too short, or outside the model's folder.
    """
    cut: set[Span] = set()
    if isinstance(source, ModelProto):
        model, where, folder = source, "ModelProto", None
        if load_data:
            model = ModelProto()
            model.CopyFrom(source)
    else:
        path = Path(source)
        model, cut = _parse(path, load_data)
        where, folder = str(path), path.parent
    external = check_structure(model, where, large=load_data)
    encoded = is_encoded(model)
    for tensor in external:
        _resolve_tensor(tensor, where, folder, cut, load_data or encoded)
    try:
        return to_dense(model) if encoded else model
    except DnsOnnxError:
        raise
    except Exception as error:  # an edited file can break any rule that the exporter keeps
        raise ModelError(
            f"{where}: expected sparse weights as dns-onnx writes them, "
            f"got {type(error).__name__}: {error}; export the model again"
        ) from error


def inline_functions(model: ModelProto) -> ModelProto:
    """The model with its local functions written out; the same object if it has none."""
    if not model.functions:
        return model
    try:
        return inliner.inline_local_functions(model)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(
            f"local functions: expected bodies that can be inlined, got {error}"
        ) from None


def infer_shapes(model: ModelProto) -> ModelProto:
    """A light copy of the model (no large tensors) whose value_info holds inferred types.

    Types that the file itself records are dropped first: they are often stale.  Where inference
    gives up, the copy comes back without them.
    """
    light = _without_large_tensors(model)
    # data propagation takes a vector apart into its entries, however many there are
    sizes = (i.type.tensor_type.shape.dim for i in light.graph.input)
    short = all(len(dims) != 1 or dims[0].dim_value <= _LONGEST_VECTOR for dims in sizes)
    try:
        return onnx.shape_inference.infer_shapes(light, data_prop=short)
    except Exception:  # the C++ side raises several unrelated kinds, and a guess is all we need
        return light


def _parse(path: Path, load_data: bool) -> tuple[ModelProto, set[Span]]:
    """The model in a file, and where the data lie that were left there."""
    cut: set[Span] = set()
    data = b""
    try:
        if load_data:
            data = path.read_bytes()
        else:
            data, cut = without_large_tensors(path)
        if not data:
            raise ModelError(f"{path}: expected an ONNX model, got an empty file; copy it again")
        model = ModelProto()
        model.ParseFromString(data)
    except OSError as error:
        raise ModelError(f"{path}: expected a readable ONNX file, got {error.strerror}") from None
    except (DecodeError, ValueError, RuntimeError):
        raise ModelError(
            f"{path}: expected an ONNX model, got {path.stat().st_size} bytes that do not parse as "
            "one; the file is truncated or of another kind"
        ) from None
    return model, cut


def _resolve_tensor(
    tensor: TensorProto, where: str, folder: Path | None, cut: set[Span], load: bool
) -> None:
    """Check one external tensor and read it, or point it at its absolute path.

    cut: the places in the model's own file where data of the model lie.
    """
    at = f"{where}: tensor '{tensor.name}'"
    info = {entry.key: entry.value for entry in tensor.external_data}
    own = (
        info.get("location") == where and (_number(info, "offset"), _number(info, "length")) in cut
    )
    path = Path(where) if own else _external_path(at, info.get("location", ""), folder)
    try:
        offset = int(info.get("offset", 0))
        size = path.stat().st_size
        length = int(info.get("length", size - offset))
    except (ValueError, OSError) as error:
        raise ModelError(f"{at}: expected readable external data, got {error}") from None
    if tensor.data_type == TensorProto.STRING:
        raise ModelError(f"{at}: expected strings inside the model, got external data")
    wanted = byte_length(tensor)
    if own and length != wanted:
        raise ModelError(f"{at}: expected {wanted} bytes of raw data for its shape, got {length}")
    if offset < 0 or length < wanted or offset + wanted > size:
        raise ModelError(
            f"{at}: expected {wanted} bytes of external data at offset {offset} of '{path.name}', "
            f"got a file of {size}; copy it again"
        )
    if load or wanted <= _SMALL_BYTES:
        with path.open("rb") as file:
            file.seek(offset)
            tensor.raw_data = file.read(wanted)
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]
        return
    del tensor.external_data[:]
    known = {"location": os.path.abspath(path), "offset": str(offset), "length": str(wanted)}
    for key, value in (known | {"copied": "yes"} if own else known).items():
        tensor.external_data.add(key=key, value=value)


def _number(info: dict[str, str], key: str) -> int:
    text = info.get(key, "")
    return int(text) if text.isdecimal() else -1


def _external_path(at: str, location: str, folder: Path | None) -> Path:
    if folder is None:
        raise ModelError(
            f"{at}: expected the data inside the model, got external data '{location}'; "
            "give the model's path instead of a ModelProto"
        )
    try:
        root = Path(os.path.realpath(folder))
        path = Path(os.path.realpath(root / location))
        inside = bool(location) and not os.path.isabs(location) and path.is_relative_to(root)
        found = inside and path.is_file()
    except (OSError, TypeError, ValueError) as error:  # a name that no file can have
        raise ModelError(f"{at}: expected the name of a file, got {location[:80]!r}") from error
    if not inside:
        raise ModelError(
            f"{at}: expected external data inside the model's folder, got '{location}'; "
            "move the data beside the model"
        )
    if not found:
        raise ModelError(f"{at}: expected external data in '{location}', got no such file")
    return path


def _is_large(tensor: TensorProto) -> bool:
    if tensor.data_location == TensorProto.EXTERNAL:
        return True
    if tensor.data_type == TensorProto.STRING:
        return len(tensor.string_data) > _SMALL_STRINGS
    return byte_length(tensor) > _SMALL_BYTES


def _without_large_tensors(model: ModelProto) -> ModelProto:
    """A copy whose large tensors are graph inputs of the same type, and without old types."""
    light = ModelProto(ir_version=max(model.ir_version, 4))
    light.opset_import.extend(model.opset_import)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    light.functions.extend(f for f in model.functions if all_sound(f.node, opsets))
    source, target = model.graph, light.graph
    target.name = source.name or "graph"
    named = {tensor.name for tensor in source.initializer}
    target.input.extend(i for i in source.input if i.name not in named)
    for dim in (d for i in target.input for d in i.type.tensor_type.shape.dim if d.dim_value < 0):
        dim.ClearField("dim_value")  # some write -1 for unknown, which inference takes for a size
    for tensor in source.initializer:
        if _is_large(tensor):
            target.input.append(_typed(tensor.name, tensor))
        else:
            target.initializer.append(tensor)
    for node in source.node:
        held = None
        if node.op_type == "Constant" and node.output:
            held = next((a.t for a in node.attribute if a.HasField("t")), None)
        if held is not None and _is_large(held):
            target.input.append(_typed(node.output[0], held))
        elif is_sound(node, opsets):
            target.node.append(node)
    known = {i.name for i in target.input} | {t.name for t in target.initializer}
    known |= {name for node in target.node for name in node.output}
    for name in sorted({n for node in target.node for n in used_names(node)} - known):
        target.input.add(name=name)  # without a type: what is not known at all ends the process
    for output in source.output:
        target.output.add(name=output.name)
        kind = output.type.WhichOneof("value")
        if kind == "tensor_type":
            elem = output.type.tensor_type.elem_type
            target.output[-1].type.tensor_type.elem_type = elem
        elif kind:
            target.output[-1].type.CopyFrom(output.type)
    return light


def _typed(name: str, tensor: TensorProto) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))
