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
  zero = Constant <value = int64 {0}> ()
  one = Constant <value = int64 {1}> ()
  first = Constant <value = int64[1] {0}> ()
  second = Constant <value = int64[1] {1}> ()
  last = Constant <value = int64[1] {-1}> ()
  end = Constant <value = int64[1] {2147483647}> ()

  ptr = Cast <to = 7> (row_ptr)
  begins = Slice (ptr, first, last)
  ends = Slice (ptr, second, end)
  length = Sub (ends, begins)
  rows = Size (length)
  nnz = Size (entries)
  index = Range (zero, rows, one)
  filled = Less (zero, length)
  mark = Cast <to = 7> (filled)

  # owner[n] = the n-th row that is not empty, n from 1; empty rows are parked behind
  ordinal = CumSum (mark, zero)
  after = Add (rows, one)
  parked = Add (index, after)
  slot = Where (filled, ordinal, parked)
  slots = Add (rows, after)
  slots_1d = Reshape (slots, last)
  no_owner = ConstantOfShape <value = int64[1] {0}> (slots_1d)
  owner = ScatterElements <axis = 0> (no_owner, slot, index)

  # nth[k] = how many rows that are not empty began up to entry k
  behind = Add (index, nnz)
  place = Where (filled, begins, behind)
  places = Add (nnz, rows)
  places_1d = Reshape (places, last)
  no_begin = ConstantOfShape <value = int64[1] {0}> (places_1d)
  begun = ScatterElements <axis = 0> (no_begin, place, mark)
  nnz_1d = Reshape (nnz, last)
  begun_at = Slice (begun, first, nnz_1d)
  nth = CumSum (begun_at, zero)
  row = Gather <axis = 0> (owner, nth)
}
"""

_CSR_TO_DENSE = """
CsrToDense (values, col_indices, row_ptr, shape) => (W) {
  first = Constant <value = int64 {0}> ()
  flat_shape = Constant <value = int64[1] {-1}> ()

  rows = Gather <axis = 0> (shape, first)
  size = ReduceProd <keepdims = 0> (shape)
  width = Div (size, rows)
  row = dns_onnx.EntryRows (row_ptr, col_indices)
  row_begin = Mul (row, width)
  col = Cast <to = 7> (col_indices)
  position = Add (row_begin, col)
  size_1d = Reshape (size, flat_shape)
  zeros = ConstantOfShape <value = float[1] {0}> (size_1d)
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
  zero = Constant <value = int32 {0}> ()
  one = Constant <value = int32 {1}> ()
  two = Constant <value = int32 {2}> ()
  powers = Constant <value = int32[8] {1, 2, 4, 8, 16, 32, 64, 128}> ()
  first = Constant <value = int64[1] {0}> ()
  flat_shape = Constant <value = int64[1] {-1}> ()
  column_shape = Constant <value = int64[2] {-1, 1}> ()
  no_entry = Constant <value = int32[1] {0}> ()

  # the mask, one int32 for each entry of the flattened matrix
  size = ReduceProd <keepdims = 0> (shape)
  size_1d = Reshape (size, flat_shape)
  bytes = Cast <to = 6> (mask)
  column = Reshape (bytes, column_shape)
  shifted = Div (column, powers)
  bits = Mod (shifted, two)
  bits_flat = Reshape (bits, flat_shape)
  bit = Slice (bits_flat, first, size_1d)
  count = CumSum (bit, axis)

  # position[k] = where stored entry k lies; entries that are not stored are parked behind
  nnz = Size (values)
  nnz_1d = Reshape (nnz, flat_shape)
  nnz_32 = Cast <to = 6> (nnz)
  size_32 = Cast <to = 6> (size)
  index = Range (zero, size_32, one)
  parked = Add (index, nnz_32)
  rank = Sub (count, one)
  stored = Cast <to = 9> (bit)
  slot = Where (stored, rank, parked)
  slots = Add (nnz, size)
  slots_1d = Reshape (slots, flat_shape)
  empty = ConstantOfShape <value = int32[1] {0}> (slots_1d)
  placed = ScatterElements <axis = 0> (empty, slot, index)
  position = Slice (placed, first, nnz_1d)

  rows = Gather <axis = 0> (shape, axis)
  width = Div (size, rows)
  width_32 = Cast <to = 6> (width)
  col_indices = Mod (position, width_32)
  end_of_first = Sub (width_32, one)
  row_ends = Range (end_of_first, size_32, width_32)
  counts = Gather <axis = 0> (count, row_ends)
  row_ptr = Concat <axis = 0> (no_entry, counts)
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
    text = "\n".join(line for line in _BODIES[name].splitlines() if not line.lstrip().startswith("#"))
    imports = f'"" : {opset}' + (f', "{DOMAIN}" : {VERSION}' if name in _CALLS else "")
    body: FunctionProto = parser.parse_function(
        f'<domain: "{DOMAIN}", opset_import: [{imports}]>{text}'
    )
    for node in body.node:
        if not node.domain:
            node.ClearField("domain")  # the parser writes the default out: two bytes a node
        for attribute in node.attribute:
            attribute.t.ClearField("name")
            if not attribute.HasField("ref_attr_name") and not attribute.t.data_type:
                attribute.ClearField("t")
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
