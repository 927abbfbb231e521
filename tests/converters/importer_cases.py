"""One small case for each operator, in the form that each of its schema versions takes.

CASES[op](version) gives operands and attributes.  An operand may be a `Weight`: an initializer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .importer_models import floats, integers


@dataclass(frozen=True)
class Case:
    """One node: operands (None = absent), attributes, and how many outputs it has.

    held: the operands that are initializers.  changed: versions whose result is another one, so
    that a newer version is no oracle for them.
    """

    inputs: list[Any]
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    held: tuple[int, ...] = ()


Maker = Callable[[int], Case]


def _unary(low: float = -2.0, high: float = 2.0, **attributes: Any) -> Maker:
    return lambda version: Case([floats(2, 3, 4, low=low, high=high)], attributes)


def _arithmetic(make: Callable[[int], np.ndarray]) -> Maker:
    def case(version: int) -> Case:
        if version < 7:
            return Case([make(0), make(1)[:, :1, 0]], {"axis": 0, "broadcast": 1})
        return Case([make(0), make(1)[:, :1, :1]])

    return case


def _float_pair(seed: int) -> np.ndarray:
    return floats(2, 3, 4, seed=seed, low=0.5, high=2.0)


def _bool_pair(seed: int) -> np.ndarray:
    return integers(2, 3, 4, seed=seed, high=2).astype(bool)


def _pair(low: int, high: int) -> Maker:
    return lambda version: Case(
        [integers(3, 4, low=low, high=high), integers(3, 4, seed=1, low=1, high=4)]
    )


def _many(version: int) -> Case:
    return Case([floats(2, 3, seed=s) for s in range(3)])


def _reduction(first_input: int) -> Maker:
    def case(version: int) -> Case:
        x = floats(2, 3, 4, low=0.5, high=2.0)
        if version < first_input:
            return Case([x], {"axes": [1, 2], "keepdims": 0})
        return Case([x, np.array([1, 2])], {"keepdims": 0}, held=(1,))

    return case


def _axes(x: np.ndarray, axes: list[int]) -> Maker:
    def case(version: int) -> Case:
        if version < 13:
            return Case([x], {"axes": axes})
        return Case([x, np.array(axes)], held=(1,))

    return case


def _pool(**attributes: Any) -> Maker:
    def case(version: int) -> Case:
        return Case([floats(2, 3, 7, 7)], {"kernel_shape": [3, 3], "strides": [2, 2], **attributes})

    return case


def _conv(version: int) -> Case:
    return Case(
        [floats(2, 4, 7, 7), floats(6, 2, 3, 3, seed=1), floats(6, seed=2)],
        {"group": 2, "pads": [1, 0, 1, 2], "strides": [2, 1], "kernel_shape": [3, 3]},
        held=(1, 2),
    )


def _conv_transpose(version: int) -> Case:
    return Case(
        [floats(2, 4, 5, 5), floats(4, 3, 3, 3, seed=1), floats(3, seed=2)],
        {"strides": [2, 2], "pads": [1, 1, 0, 0], "output_padding": [1, 0]},
        held=(1, 2),
    )


def _gemm(version: int) -> Case:
    attributes: dict[str, Any] = {"alpha": 0.5, "beta": 2.0, "transB": 1}
    if version < 7:
        attributes["broadcast"] = 1
    return Case([floats(3, 4), floats(5, 4, seed=1), floats(5, seed=2)], attributes, held=(1, 2))


def _batch_norm(version: int) -> Case:
    attributes: dict[str, Any] = {"epsilon": 1e-3}
    if version < 7:
        attributes["is_test"] = 1
    statistics = [floats(3, seed=s, low=0.5) for s in range(1, 5)]
    return Case([floats(2, 3, 4), *statistics], attributes, held=(1, 2, 3, 4))


def _clip(version: int) -> Case:
    if version < 11:
        return Case([floats(3, 4)], {"min": -0.5, "max": 0.7})
    return Case([floats(3, 4), np.float32(-0.5), np.float32(0.7)], held=(1, 2))


def _pad(version: int) -> Case:
    x, amounts = floats(2, 3), [0, 1, 1, 0]
    if version == 1:
        return Case([x], {"paddings": amounts, "value": 1.5})
    if version < 11:
        return Case([x], {"pads": amounts, "value": 1.5})
    return Case([x, np.array(amounts), np.float32(1.5)], held=(1, 2))


def _slice(version: int) -> Case:
    x = floats(4, 5)
    if version < 10:
        return Case([x], {"starts": [1, -3], "ends": [3, 9], "axes": [0, 1]})
    return Case([x, np.array([1, -3]), np.array([3, 9]), np.array([0, 1])], held=(1, 2, 3))


def _split(version: int) -> Case:
    x = floats(6, 2)
    if version < 13:
        return Case([x], {"split": [2, 4], "axis": 0}, outputs=2)
    return Case([x, np.array([2, 4])], {"axis": 0}, outputs=2, held=(1,))


def _top_k(version: int) -> Case:
    if version == 1:
        return Case([floats(3, 5)], {"k": 2, "axis": 1}, outputs=2)
    return Case([floats(3, 5), np.array([2])], {"axis": 1}, outputs=2, held=(1,))


def _reshape(version: int) -> Case:
    if version == 1:
        return Case([floats(2, 6)], {"shape": [0, 3, -1]})
    return Case([floats(2, 6), np.array([0, 3, -1])], held=(1,))


def _tile(version: int) -> Case:
    if version == 1:
        return Case([floats(2, 3), np.float32(2), np.float32(1)], held=(1, 2))
    return Case([floats(2, 3), np.array([1, 2])], held=(1,))


def _dropout(version: int) -> Case:
    return Case([floats(2, 3)], {"is_test": 1} if version < 7 else {})


def _upsample(version: int) -> Case:
    x = floats(1, 2, 3, 3)
    if version == 1:
        return Case([x], {"height_scale": 2.0, "width_scale": 3.0})
    if version == 7:
        return Case([x], {"scales": [1.0, 1.0, 2.0, 3.0]})
    return Case([x, np.array([1, 1, 2, 3], np.float32)], held=(1,))


def _resize(version: int) -> Case:
    x, scales = floats(1, 2, 4, 4), np.array([1, 1, 1.5, 0.75], np.float32)
    if version == 10:
        return Case([x, scales], {"mode": "linear"}, held=(1,))
    return Case([x, None, scales], {"mode": "cubic"}, held=(2,))


def _recurrent(gates: int) -> Maker:
    def case(version: int) -> Case:
        x, hidden = floats(4, 2, 3), 5
        w = floats(2, gates * hidden, 3, seed=1)
        r = floats(2, gates * hidden, hidden, seed=2)
        b = floats(2, 2 * gates * hidden, seed=3)
        lens = np.array([4, 2], np.int32)
        attributes: dict[str, Any] = {"hidden_size": hidden, "direction": "bidirectional"}
        return Case([x, w, r, b, lens], attributes, outputs=3 if gates == 4 else 2, held=(1, 2, 3))

    return case


def _scatter(version: int) -> Case:
    return Case([floats(3, 4), np.array([[1, 0, 2, 1]]), floats(1, 4, seed=1)])


def _quantize(version: int) -> Case:
    return Case([floats(3, 4) * 20, np.float32(0.25), np.uint8(12)], held=(1, 2))


def _dequantize(version: int) -> Case:
    return Case([integers(3, 4, high=200, dtype="uint8"), np.float32(0.25), np.uint8(12)])


def _loss(version: int) -> Case:
    logits = np.log(floats(4, 3, low=0.1))
    return Case([logits, integers(4, high=3), floats(3, seed=2, low=0.5)])


def _cast(version: int) -> Case:
    return Case([floats(3, 4) * 3], {"to": "INT32" if version == 1 else 6})


CASES: dict[str, Maker] = {
    **{
        name: _unary()
        for name in "Abs Asinh Atan Ceil Cos Cosh Erf Exp Floor Neg Relu Round Sigmoid Sign Sin "
        "Sinh Softplus Softsign Tan Tanh Identity Elu Selu LeakyRelu HardSigmoid HardSwish "
        "ThresholdedRelu Celu Mish Shrink IsNaN Flatten Shape Size ArgMax ArgMin Softmax "
        "LogSoftmax Hardmax Swish Gelu Transpose".split()
    },
    **{name: _unary(0.1, 2.0) for name in ("Log", "Sqrt", "Reciprocal", "LpNormalization")},
    **{name: _unary(-0.9, 0.9) for name in ("Acos", "Asin", "Atanh")},
    "Acosh": _unary(1.1, 3.0),
    "IsInf": lambda v: Case([np.array([1, np.inf, -np.inf], np.float32)]),
    **{name: _arithmetic(_float_pair) for name in "Add Sub Mul Div Pow Equal Greater Less".split()},
    **{name: _arithmetic(_bool_pair) for name in ("And", "Or", "Xor")},
    "Not": lambda v: Case([_bool_pair(0)]),
    "GreaterOrEqual": lambda v: Case([_float_pair(0), _float_pair(1)]),
    "LessOrEqual": lambda v: Case([_float_pair(0), _float_pair(1)]),
    **{name: _many for name in ("Max", "Min", "Sum", "Mean")},
    "Mod": _pair(-9, 9),
    "BitShift": lambda v: Case(
        [integers(5, high=99, dtype="uint8"), integers(5, seed=1, dtype="uint8")],
        {"direction": "LEFT"},
    ),
    "BitwiseAnd": _pair(0, 99),
    "BitwiseOr": _pair(0, 99),
    "BitwiseXor": _pair(0, 99),
    "BitwiseNot": lambda v: Case([integers(3, 4)]),
    **{
        name: _reduction(18)
        for name in "ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSum "
        "ReduceLogSumExp ReduceSumSquare".split()
    },
    "ReduceSum": _reduction(13),
    "Squeeze": _axes(floats(2, 1, 3), [1]),
    "Unsqueeze": _axes(floats(2, 3), [0, 2]),
    "MaxPool": _pool(pads=[1, 1, 1, 1]),
    "AveragePool": _pool(pads=[1, 1, 1, 1]),
    "LpPool": lambda v: Case([floats(2, 3, 7, 7)], {"kernel_shape": [3, 3], "p": 2}),
    "GlobalAveragePool": lambda v: Case([floats(2, 3, 4, 4)]),
    "GlobalMaxPool": lambda v: Case([floats(2, 3, 4, 4)]),
    "GlobalLpPool": lambda v: Case([floats(2, 3, 4, 4)], {"p": 2}),
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": lambda v: Case([floats(2, 3, 4), floats(4, 5, seed=1)], held=(1,)),
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": lambda v: Case(
        [floats(2, 3, 4, 4), floats(3, seed=1), floats(3, seed=2)], held=(1, 2)
    ),
    "LayerNormalization": lambda v: Case([floats(2, 3, 4), floats(4, seed=1)], held=(1,)),
    "LRN": lambda v: Case([floats(2, 5, 3, 3)], {"size": 3}),
    "MeanVarianceNormalization": lambda v: Case([floats(2, 3, 4, 4)]),
    "Clip": _clip,
    "Pad": _pad,
    "Slice": _slice,
    "Split": _split,
    "TopK": _top_k,
    "Reshape": _reshape,
    "Tile": _tile,
    "Dropout": _dropout,
    "Upsample": _upsample,
    "Resize": _resize,
    "Concat": lambda v: Case([floats(2, 3), floats(2, 2, seed=1)], {"axis": 1}),
    "Expand": lambda v: Case([floats(3, 1), np.array([2, 1, 4])], held=(1,)),
    "Gather": lambda v: Case([floats(4, 3), np.array([[0, 3], [1, 1]])]),
    "GatherElements": lambda v: Case([floats(3, 3), np.array([[0, 2, 1]])]),
    "GatherND": lambda v: Case([floats(3, 4, 2), np.array([[0, 1], [2, 3]])]),
    "ScatterElements": _scatter,
    "Scatter": _scatter,
    "ScatterND": lambda v: Case([floats(4, 3), np.array([[1], [3]]), floats(2, 3, seed=1)]),
    "OneHot": lambda v: Case([integers(3), np.array(5), np.array([0, 1], np.float32)], held=(1,)),
    "Compress": lambda v: Case([floats(3, 4), np.array([True, False, True])], {"axis": 0}),
    "NonZero": lambda v: Case([integers(3, 4, high=2)]),
    "Where": lambda v: Case([_bool_pair(0), _float_pair(0), _float_pair(1)]),
    "CumSum": lambda v: Case([floats(3, 4), np.array(1)], held=(1,)),
    "Trilu": lambda v: Case([floats(4, 4)]),
    "EyeLike": lambda v: Case([floats(3, 4)], {"k": 1}),
    "DepthToSpace": lambda v: Case([floats(1, 8, 2, 2)], {"blocksize": 2}),
    "SpaceToDepth": lambda v: Case([floats(1, 2, 4, 4)], {"blocksize": 2}),
    "ReverseSequence": lambda v: Case([floats(4, 2), np.array([3, 2])]),
    "Einsum": lambda v: Case([floats(2, 3), floats(3, 4, seed=1)], {"equation": "ij,jk->ik"}),
    "Range": lambda v: Case([np.float32(1), np.float32(7), np.float32(2)]),
    "ConstantOfShape": lambda v: Case([np.array([2, 3])]),
    "Det": lambda v: Case([floats(2, 3, 3)]),
    "Unique": lambda v: Case([integers(9).astype(np.float32)], outputs=4),
    "PRelu": lambda v: Case([floats(2, 3, 4), floats(3 if v < 7 else 4, seed=1)], held=(1,)),
    "RNN": _recurrent(1),
    "GRU": _recurrent(3),
    "LSTM": _recurrent(4),
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "DynamicQuantizeLinear": lambda v: Case([floats(3, 4)], outputs=3),
    "MatMulInteger": lambda v: Case(
        [integers(2, 3, high=99, dtype="uint8"), integers(3, 4, high=99, dtype="uint8")]
    ),
    "ConvInteger": lambda v: Case(
        [integers(1, 1, 4, 4, high=99, dtype="uint8"), integers(2, 1, 2, 2, dtype="uint8")]
    ),
    "NegativeLogLikelihoodLoss": _loss,
    "SoftmaxCrossEntropyLoss": _loss,
    "Cast": _cast,
    "CastLike": lambda v: Case([floats(3, 4), integers(1)]),
    "RoiAlign": lambda v: Case(
        [floats(1, 2, 8, 8), np.array([[0, 0, 5, 6]], np.float32), np.array([0])],
        {"output_height": 2, "output_width": 3, "sampling_ratio": 2},
    ),
    "MaxRoiPool": lambda v: Case(
        [floats(1, 2, 8, 8), np.array([[0, 0, 0, 5, 6]], np.float32)], {"pooled_shape": [2, 2]}
    ),
    "GridSample": lambda v: Case([floats(1, 2, 4, 4), floats(1, 3, 3, 2, low=-1.0)]),
    "NonMaxSuppression": lambda v: Case(
        [floats(1, 6, 4, low=0.0), floats(1, 2, 6, low=0.0), np.array([3]), np.float32([0.3])],
        held=(2, 3),
    ),
    "MaxUnpool": lambda v: Case(
        [floats(1, 1, 2, 2), np.array([[[[0, 3], [8, 15]]]])],
        {"kernel_shape": [2, 2], "strides": [2, 2]},
    ),
}
