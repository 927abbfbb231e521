"""What the model-local functions of the `dns_onnx` domain compute, in standard operators.

The bodies hold only operators that ONNX Runtime folds when their operands are constants (NonZero,
for one, it does not fold), so a decoded weight costs nothing after load.  While it loads, each node
costs some 20 microseconds, whatever the weight: so each body is flat (a call inside a call costs
more) and as short as can be.  Source: docs/operators-csr.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """What the bodies of one file are written for: an operator has one body for all of its nodes.

    columns: `col_indices` holds columns of rows that row_ptr bounds; else gaps, without row_ptr.
    values: type of the values of sparse operators: "float32", "float16", or "int8" with a scale.
    bias: whether the convolutions have one.  Where it is named but empty, ONNX Runtime fuses no
    batch norm with the Conv, nor does it bring it into its blocked layout.
    activation: what follows the sums: "", "Relu", "LeakyRelu" (slope) or "Clip" (low, high).
    """

    columns: bool = False
    values: str = "float32"
    bias: bool = True
    activation: str = ""


PLAIN = Form()

# position = where each stored entry lies in the flattened weight, int32: half the memory of int64.
_POSITION_BY_GAPS = """
  axis = Constant <value = int64 {0}> ()
  gap = Cast <to = 6> (col_indices)
  position = CumSum (gap, axis)
"""

# start[k] = unit * row - unit * rows for the row that owns stored entry k, as many units below
# zero as row pointers lie behind k: rows without an entry are passed over.  A position counted
# from the end needs no row_ptr without its first 0.
_POSITION_BY_COLUMNS = """
  axis = Constant <value = int64 {0}> ()
  first = Constant <value = int64[1] {0}> ()
  one = Constant <value = int64[1] {1}> ()
  edges = Shape (row_ptr)
  below = Sub (one, edges)
  unit = Div (size, below)
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
  col = Cast <to = 6> (col_indices)
  position = Add (start, col)
"""

# Narrow values are widened once they are in place: the whole weight is written three times, which
# takes a half or a quarter of the time for a half or a quarter of the bytes.
_IN_PLACE = {
    "float32": """
  W = Reshape (flat, shape)
""",
    "float16": """
  narrow = Reshape (flat, shape)
  W = Cast <to = 1> (narrow)
""",
    "int8": """
  narrow = Reshape (flat, shape)
  unscaled = Cast <to = 1> (narrow)
  W = Mul (unscaled, scale)
""",
}
_ZERO = {"float32": "float", "float16": "float16", "int8": "int8"}

# Works on whole bytes of the mask: a table tells, for each byte and bit, how many bits are set up
# to it, or a number far below zero where the bit itself is not set.
_BITMASK_TO_DENSE = """
BitmaskToDense (values, mask, shape) => (W) {
  axis = Constant <value = int64 {0}> ()
  bit_axis = Constant <value = int64 {1}> ()
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
  W = Reshape (padded, shape)
}
"""

# The plain node of each sparse operator: its first input, its bias, and its attributes.
_PLAIN: dict[str, tuple[str, str, dict[str, str]]] = {
    "CsrConv": ("X", "B", {
        "auto_pad": "string", "dilations": "ints", "group": "int", "kernel_shape": "ints",
        "pads": "ints", "strides": "ints",
    }),
    "CsrGemm": ("A", "C", {"alpha": "float", "beta": "float", "transA": "int", "transB": "int"}),
    "CsrMatMul": ("A", "", {}),
}  # fmt: skip

# Its attributes, and the node behind the sums.  PRelu for LeakyRelu: onnx.reference does not hand
# a function's attributes on to operators of one input.
_ACTIVATIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "Relu": (("low",), "Y = Relu (sums)"),
    "LeakyRelu": (
        ("slope",),
        """
  slope_of = Constant <value_float: float = @slope> ()
  Y = PRelu (sums, slope_of)""",
    ),
    "Clip": (
        ("low", "high"),
        """
  least = Constant <value_float: float = @low> ()
  most = Constant <value_float: float = @high> ()
  Y = Clip (sums, least, most)""",
    ),
}


def body(name: str, form: Form) -> str:
    """The function `name` in ONNX's textual form, without domain and operator set."""
    if name == "BitmaskToDense":
        return _BITMASK_TO_DENSE
    if name == "CsrToDense":
        weight = _weight(form.columns, "float32")
        return f"CsrToDense (values, col_indices, row_ptr, shape) => (W) {{{weight}}}"
    data, bias, attributes = _PLAIN[name]
    extra, activation = _ACTIVATIONS.get(form.activation, ((), ""))
    inputs = [data, "values", "col_indices", "row_ptr", "shape"]
    if form.values == "int8":
        inputs += [bias or "C", "scale"]
    elif bias:
        inputs.append(bias)
    head = f"{name} {_names([*attributes, *extra])} ({', '.join(inputs)}) => (Y)"
    biased = bias and (form.bias or name != "CsrConv")
    operands = f"{data}, W, {bias}" if biased else f"{data}, W"
    sums = "sums" if activation else "Y"
    plain = f"{sums} = {name.removeprefix('Csr')} {_references(attributes)} ({operands})"
    return f"{head} {{{_weight(form.columns, form.values)}\n{plain}\n{activation}\n}}"


def _weight(columns: bool, values: str) -> str:
    """W from its stored parts.  columns, values: as in Form."""
    return f"""
  size = ReduceProd <keepdims = 1> (shape)
  {_POSITION_BY_COLUMNS if columns else _POSITION_BY_GAPS}
  zeros = ConstantOfShape <value = {_ZERO[values]}[1] {{0}}> (size)
  flat = ScatterElements <axis = 0> (zeros, position, values)
  {_IN_PLACE[values]}"""


def _names(attributes: list[str]) -> str:
    return f"<{', '.join(attributes)}>" if attributes else ""


def _references(attributes: Mapping[str, str]) -> str:
    """The node's attributes, each taken from the function's attribute of the same name."""
    pairs = ", ".join(f"{name}: {kind} = @{name}" for name, kind in attributes.items())
    return f"<{pairs}>" if pairs else ""
