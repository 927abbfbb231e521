"""The operators of the `dns_onnx` domain as model-local functions in standard operators.

Every runtime without the native library runs these bodies.  They hold only operators that
ONNX Runtime folds when their operands are constants (NonZero, for one, it does not fold), so a
decoded weight costs nothing after load.  Source: docs/operators-csr.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from onnx import FunctionProto, ModelProto, parser

DOMAIN = "dns_onnx"
VERSION = 1

# A body is written in the operator set that its model imports: the checker and ONNX Runtime
# refuse a mix.  The operators below read the same from 11 (CumSum, ScatterElements) upward.
MIN_OPSET = 11

# Model-local functions are part of the format since this IR version.
MIN_IR_VERSION = 8

# row[k] = the row that owns stored entry k; `entries` only lends its length.
_ENTRY_ROWS = """
EntryRows (row_ptr, entries) => (row) {
  axis = Constant <value = int64 {0}> ()
  first = Constant <value = int64[1] {0}> ()
  one = Constant <value = int64[1] {1}> ()

  # how many rows begin, or the last one ends, at each entry
  ptr = Cast <to = 7> (row_ptr)
  at, any_at, rank, begins = Unique <sorted = 1> (ptr)
  nnz = Shape (entries)
  places = Add (nnz, one)
  none = ConstantOfShape <value = int64[1] {0}> (places)
  begins_at = ScatterElements <axis = 0> (none, at, begins)

  # an entry lies in the last row begun so far; empty rows are counted and passed over
  begun = CumSum (begins_at, axis)
  begun_at = Slice (begun, first, nnz)
  row = Sub (begun_at, one)
}
"""

# The rows are counted by row_ptr: a weight no sparse operator reads may be stored as one long row.
_CSR_TO_DENSE = """
CsrToDense (values, col_indices, row_ptr, shape) => (W) {
  one = Constant <value = int64[1] {1}> ()

  size = ReduceProd <keepdims = 1> (shape)
  edges = Shape (row_ptr)
  rows = Sub (edges, one)
  width = Div (size, rows)
  row = dns_onnx.EntryRows (row_ptr, col_indices)
  row_begin = Mul (row, width)
  col = Cast <to = 7> (col_indices)
  position = Add (row_begin, col)
  zeros = ConstantOfShape <value = float[1] {0}> (size)
  flat = ScatterElements <axis = 0> (zeros, position, values)
  W = Reshape (flat, shape)
}
"""

_CSR_GEMM = """
CsrGemm <alpha, beta, transA, transB> (A, values, col_indices, row_ptr, shape, C) => (Y) {
  W = dns_onnx.CsrToDense (values, col_indices, row_ptr, shape)
  Y = Gemm <alpha: float = @alpha, beta: float = @beta, transA: int = @transA,
            transB: int = @transB> (A, W, C)
}
"""

_CSR_MATMUL = """
CsrMatMul (A, values, col_indices, row_ptr, shape) => (Y) {
  W = dns_onnx.CsrToDense (values, col_indices, row_ptr, shape)
  Y = MatMul (A, W)
}
"""

_CSR_CONV = """
CsrConv <auto_pad, dilations, group, kernel_shape, pads, strides>
    (X, values, col_indices, row_ptr, shape, B) => (Y) {
  W = dns_onnx.CsrToDense (values, col_indices, row_ptr, shape)
  Y = Conv <auto_pad: string = @auto_pad, dilations: ints = @dilations, group: int = @group,
            kernel_shape: ints = @kernel_shape, pads: ints = @pads,
            strides: ints = @strides> (X, W, B)
}
"""

_GAPS_TO_INDICES = """
GapsToIndices (gaps, width) => (col_indices) {
  axis = Constant <value = int64 {0}> ()
  gap = Cast <to = 7> (gaps)
  position = CumSum (gap, axis)
  col = Mod (position, width)
  col_indices = Cast <to = 6> (col)
}
"""

# Everything as long as the dense weight is int32: half the memory of int64 at load.
_BITMASK_TO_CSR = """
BitmaskToCsr (mask, values, shape) => (col_indices, row_ptr) {
  axis = Constant <value = int64 {0}> ()
  first = Constant <value = int64[1] {0}> ()
  flat_shape = Constant <value = int64[1] {-1}> ()
  column_shape = Constant <value = int64[2] {-1, 1}> ()
  zero = Constant <value = int32 {0}> ()
  one = Constant <value = int32 {1}> ()
  two = Constant <value = int32 {2}> ()
  powers = Constant <value = int32[8] {1, 2, 4, 8, 16, 32, 64, 128}> ()
  no_entry = Constant <value = int32[1] {0}> ()

  # the mask, one int32 for each entry of the flattened matrix
  size_1d = ReduceProd <keepdims = 1> (shape)
  size_64 = ReduceProd <keepdims = 0> (shape)
  size = Cast <to = 6> (size_64)
  bytes = Cast <to = 6> (mask)
  column = Reshape (bytes, column_shape)
  shifted = Div (column, powers)
  bits = Mod (shifted, two)
  bits_flat = Reshape (bits, flat_shape)
  bit = Slice (bits_flat, first, size_1d)
  count = CumSum (bit, axis)

  # position[k] = where stored entry k lies; entries that are not stored are parked behind
  nnz_1d = Shape (values)
  nnz_64 = Size (values)
  nnz = Cast <to = 6> (nnz_64)
  index = Range (zero, size, one)
  parked = Add (index, nnz)
  rank = Sub (count, one)
  stored = Cast <to = 9> (bit)
  slot = Where (stored, rank, parked)
  slots = Add (nnz_1d, size_1d)
  empty = ConstantOfShape <value = int32[1] {0}> (slots)
  placed = ScatterElements <axis = 0> (empty, slot, index)
  position = Slice (placed, first, nnz_1d)

  rows = Gather <axis = 0> (shape, axis)
  width_64 = Div (size_64, rows)
  width = Cast <to = 6> (width_64)
  col_indices = Mod (position, width)
  end_of_first = Sub (width, one)
  row_ends = Range (end_of_first, size, width)
  stored_by = Gather <axis = 0> (count, row_ends)
  row_ptr = Concat <axis = 0> (no_entry, stored_by)
}
"""

_BODIES = {
    "EntryRows": _ENTRY_ROWS,
    "CsrToDense": _CSR_TO_DENSE,
    "CsrGemm": _CSR_GEMM,
    "CsrMatMul": _CSR_MATMUL,
    "CsrConv": _CSR_CONV,
    "GapsToIndices": _GAPS_TO_INDICES,
    "BitmaskToCsr": _BITMASK_TO_CSR,
}
_CALLS = {
    "CsrToDense": ("EntryRows",),
    "CsrGemm": ("CsrToDense",),
    "CsrMatMul": ("CsrToDense",),
    "CsrConv": ("CsrToDense",),
}


@lru_cache(maxsize=64)
def function(name: str, opset: int) -> FunctionProto:
    """The model-local function `name` for a model that imports operator set `opset`."""
    lines = _BODIES[name].splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    imports = f'"" : {opset}' + (f', "{DOMAIN}" : {VERSION}' if name in _CALLS else "")
    body: FunctionProto = parser.parse_function(
        f'<domain: "{DOMAIN}", opset_import: [{imports}]>{text}'
    )
    for node in body.node:
        if not node.domain:
            node.ClearField("domain")  # the parser writes the default out: two bytes a node
        for attribute in node.attribute:
            if attribute.HasField("t"):
                attribute.t.ClearField("name")
    return body


def with_callees(names: Iterable[str]) -> tuple[str, ...]:
    """The functions named, and those that their bodies call, callees first."""
    wanted: dict[str, None] = {}

    def add(name: str) -> None:
        for callee in _CALLS.get(name, ()):
            add(callee)
        wanted[name] = None

    for name in sorted(names):
        add(name)
    return tuple(wanted)


def functions_bytes(names: Iterable[str], opset: int) -> int:
    """Bytes that the functions named, with their callees, add to a model."""
    return sum(4 + function(name, opset).ByteSize() for name in with_callees(names))


def add_functions(model: ModelProto, names: Iterable[str]) -> None:
    """Put the functions named, and their callees, into the model with the import of the domain."""
    opset = default_opset(model)
    present = {(f.domain, f.name) for f in model.functions}
    for name in with_callees(names):
        if (DOMAIN, name) not in present:
            model.functions.append(function(name, opset))
    if all(entry.domain != DOMAIN for entry in model.opset_import):
        model.opset_import.add(domain=DOMAIN, version=VERSION)


def default_opset(model: ModelProto) -> int:
    """The version of the standard operators that the model imports; 0 if it imports none."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
