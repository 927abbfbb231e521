"""Small single-operator cases for every schema version of every ai.onnx operator.

CASES[op](version) gives the operator's cases in the form that the version takes.
"""

from __future__ import annotations

from . import control, elementwise, linear, recurrent, reduction, tensors, vision

CASES = {
    **control.CASES,
    **elementwise.CASES,
    **linear.CASES,
    **recurrent.CASES,
    **reduction.CASES,
    **tensors.CASES,
    **vision.CASES,
}

__all__ = ["CASES"]
