"""A malformed matrix is an ONNX Runtime error that names node and value, never a crash."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest

from dns_onnx.runtime.library import library_path

Array = npt.NDArray[Any]
Make = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("kernels")

I64 = np.int64
# operand -> replacement, and what the message must hold
FAULTS: dict[str, tuple[dict[str, Array], str]] = {
    "pointer_falls": ({"row_ptr": np.array([0, 4, 3, 6], I64)}, r"row_ptr\[2\].*got 3"),
    "pointer_starts_late": ({"row_ptr": np.array([1, 2, 4, 6], I64)}, r"row_ptr\[0\].*got 1"),
    "pointer_ends_early": ({"row_ptr": np.array([0, 2, 4, 5], I64)}, r"row_ptr\[3\].*got 5"),
    "pointer_past_end": ({"row_ptr": np.array([0, 2, 7, 7], I64)}, r"row_ptr\[2\].*got 7"),
    "pointer_negative": ({"row_ptr": np.array([0, -1, 4, 6], I64)}, r"row_ptr\[1\].*got -1"),
    "pointer_huge": ({"row_ptr": np.array([0, 2**62, 4, 6], I64)}, r"row_ptr\[1\]"),
    "pointer_short": ({"row_ptr": np.array([0, 2, 6], I64)}, "row_ptr: expected 4 entries"),
    "pointer_empty": ({"row_ptr": np.zeros(0, I64)}, "row_ptr: expected 4 entries"),
    "pointer_rank": ({"row_ptr": np.zeros((2, 2), I64)}, "row_ptr: expected one dimension"),
    "pointer_float": ({"row_ptr": np.zeros(4, np.float32)}, "row_ptr: expected uint8"),
    "column_out": ({"col_indices": np.array([0, 9, 1, 2, 3, 4], I64)}, r"col_indices\[1\].*got 9"),
    "column_negative": ({"col_indices": np.array([-1, 1, 0, 1, 3, 4], I64)}, "got -1"),
    "column_twice": ({"col_indices": np.array([1, 1, 0, 1, 3, 4], I64)}, r"col_indices\[1\]"),
    "column_falls": ({"col_indices": np.array([0, 1, 3, 2, 3, 4], I64)}, r"col_indices\[3\]"),
    "columns_short": ({"col_indices": np.array([0, 1], I64)}, "col_indices: expected 6 entries"),
    "values_short": ({"values": np.ones(5, np.float32)}, "row_ptr"),
    "values_rank": ({"values": np.ones((6, 1), np.float32)}, "values: expected one dimension"),
    "shape_zero": ({"shape": np.array([3, 0], I64)}, "shape: expected positive"),
    "shape_negative": ({"shape": np.array([-3, -5], I64)}, "shape: expected positive"),
    "shape_overflow": ({"shape": np.array([3, 2**40, 2**40], I64)}, "shape.*2\\^62"),
    "shape_too_wide": ({"shape": np.array([3, 2**26 + 1], I64)}, "at most 2\\^26"),
    "shape_too_high": ({"shape": np.array([2**26 + 1, 3], I64)}, "at most 2\\^26"),
    "shape_empty": ({"shape": np.zeros(0, I64)}, "shape: expected one dimension or more"),
    "shape_rank": ({"shape": np.array([3, 5, 1], I64)}, "shape: expected two dimensions"),
    "shape_other_rows": ({"shape": np.array([4, 5], I64)}, "row_ptr: expected 5 entries"),
}


# gaps, and what the message must hold
GAP_FAULTS: dict[str, tuple[Array, str]] = {
    "gap_of_none": (np.array([0, 1, 0, 1, 1, 1], I64), r"col_indices\[2\].*gap of 1 to 13, got 0"),
    "gap_negative": (np.array([-1, 1, 1, 1, 1, 1], I64), r"col_indices\[0\].*0 to 14, got -1"),
    "gap_past_end": (np.array([0, 1, 1, 1, 1, 11], I64), r"col_indices\[5\].*1 to 10, got 11"),
    "gap_huge": (np.array([0, 2**63 - 1, 1, 1, 1, 1], I64), r"col_indices\[1\]"),
    "gaps_short": (np.array([0, 1], I64), "col_indices: expected 6 gaps, got 2"),
    "gaps_rank": (np.ones((2, 3), I64), "col_indices: expected one dimension"),
    "gaps_float": (np.ones(6, np.float32), "col_indices: expected uint8"),
}


@pytest.fixture
def layer(make_layer: Make) -> Any:
    weight = np.zeros((3, 5), np.float32)
    weight[[0, 0, 1, 1, 2, 2], [0, 1, 1, 2, 3, 4]] = 1
    return make_layer("CsrGemm", weight, alpha=1.0, beta=1.0, transA=0, transB=1)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_malformed_matrix_is_refused(layer: Any, fault: tuple[dict[str, Array], str]) -> None:
    operands, message = fault
    layer.operands.update(operands)
    with pytest.raises(Exception, match=f"CsrGemm 'layer'.*{message}"):
        layer.run(np.ones((1, 5), np.float32))


@pytest.mark.parametrize("fault", GAP_FAULTS.values(), ids=GAP_FAULTS)
def test_malformed_gaps_are_refused(layer: Any, fault: tuple[Array, str]) -> None:
    layer.operands["col_indices"], message = fault
    del layer.operands["row_ptr"]
    with pytest.raises(Exception, match=f"CsrGemm 'layer'.*{message}"):
        layer.run(np.ones((1, 5), np.float32))


@pytest.mark.parametrize("shape", [(), (1,), (1, 3), (4, 1)], ids=str)
def test_malformed_scale_is_refused(layer: Any, shape: tuple[int, ...]) -> None:
    layer.operands["scale"] = np.ones(shape, np.float32)
    with pytest.raises(Exception, match="CsrGemm 'layer': scale: expected 3 entries, one a row"):
        layer.run(np.ones((1, 5), np.float32))


@pytest.mark.parametrize("operand", ["row_ptr", "scale"])
def test_part_of_a_constant_matrix_that_is_computed_is_refused(layer: Any, operand: str) -> None:
    layer.operands["scale"] = np.ones((3, 1), np.float32)
    if operand == "row_ptr":  # read as gaps, the columns are right
        layer.operands["col_indices"] = np.array([1, 2, 3, 4, 1, 2], I64)
    model = onnx.load_from_string(layer.model(sparse=True, rank=2))
    (tensor,) = (t for t in model.graph.initializer if t.name == operand)
    model.graph.input.append(
        onnx.helper.make_tensor_value_info(operand, tensor.data_type, list(tensor.dims))
    )
    model.graph.initializer.remove(tensor)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library_path()))
    feeds = {"X": np.ones((1, 5), np.float32), operand: layer.operands[operand]}
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    with pytest.raises(Exception, match=f"'layer': {operand}: expected a constant"):
        session.run(None, feeds)


def test_values_of_another_type_are_refused(layer: Any) -> None:
    layer.operands["values"] = layer.operands["values"].astype(np.int32)
    with pytest.raises(Exception, match="'layer': values: expected float32, float16 or int8"):
        layer.run(np.ones((1, 5), np.float32))


@pytest.mark.parametrize("shape", [(1, 4), (5,), (1, 1, 5)], ids=str)
def test_input_of_another_width_is_refused(layer: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(Exception, match="CsrGemm 'layer': A: expected a matrix with 5 columns"):
        layer.run(np.ones(shape, np.float32))


def test_bias_that_does_not_broadcast_is_refused(layer: Any) -> None:
    layer.bias = np.ones(4, np.float32)
    with pytest.raises(Exception, match="'layer': C: expected a shape that broadcasts"):
        layer.run(np.ones((1, 5), np.float32))


CONV_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "strides_zero": ({"strides": [0, 1]}, "strides"),
    "strides_count": ({"strides": [1]}, "strides"),
    "dilations_negative": ({"dilations": [1, -1]}, "dilations"),
    "pads_count": ({"pads": [1, 1]}, "pads"),
    "pads_negative": ({"pads": [1, 1, -1, 1]}, "pads"),
    "pads_huge": ({"pads": [2**40, 1, 1, 1]}, "pads"),
    "kernel_other": ({"kernel_shape": [2, 2]}, "kernel_shape"),
    "group_no_divisor": ({"group": 3}, "group"),
    "group_zero": ({"group": 0}, "group"),
    "auto_pad_unknown": ({"auto_pad": "SAME"}, "auto_pad"),
}


@pytest.mark.parametrize("fault", CONV_FAULTS.values(), ids=CONV_FAULTS)
def test_conv_attributes_that_do_not_fit_are_refused(
    fault: tuple[dict[str, Any], str], make_layer: Make
) -> None:
    attributes, message = fault
    layer = make_layer("CsrConv", np.ones((4, 2, 3, 3), np.float32), **attributes)
    with pytest.raises(Exception, match=f"CsrConv 'layer': {message}: expected"):
        layer.run(np.ones((1, 2, 6, 6), np.float32))


@pytest.mark.parametrize("shape", [(1, 3, 6, 6), (1, 2, 6)], ids=str)
def test_conv_input_that_does_not_fit_is_refused(shape: tuple[int, ...], make_layer: Make) -> None:
    layer = make_layer("CsrConv", np.ones((4, 2, 3, 3), np.float32))
    with pytest.raises(Exception, match="CsrConv 'layer': X: expected rank 4 and 2 channels"):
        layer.run(np.ones(shape, np.float32))
