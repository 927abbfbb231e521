"""The operators of the `dns_onnx` domain as model-local functions in standard operators.

Every runtime without the native library runs these bodies.  They hold only operators that
ONNX Runtime folds when their operands are constants (NonZero, for one, it does not fold), so a
decoded weight costs nothing after load.  Source: docs/operators-csr.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from string import ascii_lowercase

from onnx import FunctionProto, ModelProto, parser

DOMAIN = "dns_onnx"
VERSION = 1

# A body is written in the operator set that its model imports: the checker and ONNX Runtime
# refuse a mix.  The operators below read the same from 11 (CumSum, ScatterElements) upward.
MIN_OPSET = 11

# Model-local functions are part of the format since this IR version.
MIN_IR_VERSION = 8

# start[k] = unit * row - unit * rows for the row that owns stored entry k, as many units below
# zero as row pointers lie behind k: rows without an entry are passed over.  A position counted
# from the end needs no row_ptr without its first 0.  Whatever is as long as the weight has entries
# is int32, half the memory of int64.
_STARTS = """
  axis = Constant <value = int64 {0}> ()
  first = Constant <value = int64[1] {0}> ()
  ptr = Cast <to = 7> (row_ptr)
  at, any_at, rank, count = Unique <sorted = 1> (ptr)
  step_64 = Mul (count, unit)
  step = Cast <to = 6> (step_64)
  nnz = Shape (values)
  places = Add (nnz, one)
  none = ConstantOfShape <value = int32[1] {0}> (places)
  steps = ScatterElements <axis = 0> (none, at, step)
  behind = CumSum <exclusive = 1, reverse = 1> (steps, axis)
  start = Slice (behind, first, nnz)
"""

# The rows are counted by row_ptr: a weight no sparse operator reads may be stored as one long row.
# The body stands in each operator that reads a matrix: ONNX Runtime takes a while for every call
# inside a call, and for every node.
_WEIGHT = f"""
  one = Constant <value = int64[1] {{1}}> ()
  size = ReduceProd <keepdims = 1> (shape)
  edges = Shape (row_ptr)
  below = Sub (one, edges)
  unit = Div (size, below)
{_STARTS}
  col = Cast <to = 6> (col_indices)
  position = Add (start, col)
  zeros = ConstantOfShape <value = float[1] {{0}}> (size)
  flat = ScatterElements <axis = 0> (zeros, position, values)
  W = Reshape (flat, shape)
"""

_CSR_TO_DENSE = """
CsrToDense (values, col_indices, row_ptr, shape) => (W) {
%WEIGHT%
}
"""

_CSR_GEMM = """
CsrGemm <alpha, beta, transA, transB> (A, values, col_indices, row_ptr, shape, C) => (Y) {
%WEIGHT%
  Y = Gemm <alpha: float = @alpha, beta: float = @beta, transA: int = @transA,
            transB: int = @transB> (A, W, C)
}
"""

_CSR_MATMUL = """
CsrMatMul (A, values, col_indices, row_ptr, shape) => (Y) {
%WEIGHT%
  Y = MatMul (A, W)
}
"""

_CSR_CONV = """
CsrConv <auto_pad, dilations, group, kernel_shape, pads, strides>
    (X, values, col_indices, row_ptr, shape, B) => (Y) {
%WEIGHT%
  Y = Conv <auto_pad: string = @auto_pad, dilations: ints = @dilations, group: int = @group,
            kernel_shape: ints = @kernel_shape, pads: ints = @pads,
            strides: ints = @strides> (X, W, B)
}
"""

_DEQUANTIZE_ROWS = """
DequantizeRows (quantized, row_ptr, scale) => (values) {
  one = Constant <value = int64[1] {1}> ()
  unit = Constant <value = int64[1] {-1}> ()
%STARTS%
  scales = Gather <axis = 0> (scale, start)
  wide = Cast <to = 1> (quantized)
  values = Mul (wide, scales)
}
"""

_GAPS_TO_INDICES = """
GapsToIndices (gaps, width) => (col_indices) {
  axis = Constant <value = int64 {0}> ()
  gap = Cast <to = 6> (gaps)
  position = CumSum (gap, axis)
  width_32 = Cast <to = 6> (width)
  col_indices = Mod (position, width_32)
}
"""

# Works on whole bytes of the mask: a table tells, for each byte and bit, how many bits are set up
# to it, or a number far below zero where the bit itself is not set.
_BITMASK_TO_DENSE = """
BitmaskToDense (values, mask, shape) => (W) {
  axis = Constant <value = int64 {0}> ()
  bit_axis = Constant <value = int64 {1}> ()
  first = Constant <value = int64[1] {0}> ()
  flat = Constant <value = int64[1] {-1}> ()
  column = Constant <value = int64[2] {-1, 1}> ()
  seven = Constant <value = int64 {7}> ()
  zero = Constant <value = int32 {0}> ()
  one = Constant <value = int32 {1}> ()
  two = Constant <value = int32 {2}> ()
  all_bytes = Constant <value = int32 {256}> ()
  powers = Constant <value = int32[8] {1, 2, 4, 8, 16, 32, 64, 128}> ()
  unset = Constant <value = int32 {-1073741824}> ()
  no_value = Constant <value = float[1] {0}> ()

  byte = Range (zero, all_bytes, one)
  byte_column = Reshape (byte, column)
  shifted = Div (byte_column, powers)
  bit = Mod (shifted, two)
  is_set = Cast <to = 9> (bit)
  set_so_far = CumSum (bit, bit_axis)
  table = Where (is_set, set_so_far, unset)
  set_in_byte = Gather <axis = 1> (set_so_far, seven)

  bytes = Cast <to = 6> (mask)
  set_each = Gather <axis = 0> (set_in_byte, bytes)
  set_before = CumSum <exclusive = 1> (set_each, axis)
  before_column = Reshape (set_before, column)
  rank_in_byte = Gather <axis = 0> (table, bytes)
  any_rank = Add (rank_in_byte, before_column)
  is_stored = Greater (any_rank, zero)
  rank = Where (is_stored, any_rank, zero)

  # rank 0 is the zero put in front of the values
  with_zero = Concat <axis = 0> (no_value, values)
  padded = Gather <axis = 0> (with_zero, rank)
  padded_flat = Reshape (padded, flat)
  size = ReduceProd <keepdims = 1> (shape)
  entries = Slice (padded_flat, first, size)
  W = Reshape (entries, shape)
}
"""

_BODIES = {
    "BitmaskToDense": _BITMASK_TO_DENSE,
    "CsrConv": _CSR_CONV.replace("%WEIGHT%", _WEIGHT),
    "CsrGemm": _CSR_GEMM.replace("%WEIGHT%", _WEIGHT),
    "CsrMatMul": _CSR_MATMUL.replace("%WEIGHT%", _WEIGHT),
    "CsrToDense": _CSR_TO_DENSE.replace("%WEIGHT%", _WEIGHT),
    "DequantizeRows": _DEQUANTIZE_ROWS.replace("%STARTS%", _STARTS.replace("values", "quantized")),
    "GapsToIndices": _GAPS_TO_INDICES,
}


@lru_cache(maxsize=64)
def function(name: str, opset: int) -> FunctionProto:
    """The model-local function `name` for a model that imports operator set `opset`.

    Its inner values are renamed to single letters: every model carries the body, and a small net
    would notice.
    """
    lines = _BODIES[name].splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    body: FunctionProto = parser.parse_function(
        f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]>{text}'
    )
    short = _short_names(body)
    for node in body.node:
        if not node.domain:
            node.ClearField("domain")  # the parser writes the default out: two bytes a node
        for attribute in node.attribute:
            if attribute.HasField("t"):
                attribute.t.ClearField("name")
        node.input[:] = [short.get(value, value) for value in node.input]
        node.output[:] = [short.get(value, value) for value in node.output]
    return body


def _short_names(body: FunctionProto) -> dict[str, str]:
    """A letter, or a letter and a digit, for each value that is not an input or output."""
    fixed = {*body.input, *body.output}
    inner = [name for node in body.node for name in node.output if name not in fixed]
    free = (letter + digit for digit in ("", *"0123456789") for letter in ascii_lowercase)
    return dict(zip(inner, free, strict=False))


def functions_bytes(names: Iterable[str], opset: int) -> int:
    """Bytes that the functions named add to a model."""
    return sum(4 + function(name, opset).ByteSize() for name in sorted(set(names)))


def add_functions(model: ModelProto, names: Iterable[str]) -> None:
    """Put the functions named into the model with the import of the domain."""
    opset = default_opset(model)
    present = {(f.domain, f.name) for f in model.functions}
    for name in sorted(set(names)):
        if (DOMAIN, name) not in present:
            model.functions.append(function(name, opset))
    if all(entry.domain != DOMAIN for entry in model.opset_import):
        model.opset_import.add(domain=DOMAIN, version=VERSION)


def default_opset(model: ModelProto) -> int:
    """The version of the standard operators that the model imports; 0 if it imports none."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
