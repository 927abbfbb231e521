"""ai.onnx.ml operators that torch and Python can compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dns_onnx.converters.registry import op

_DOMAIN = "ai.onnx.ml"


@op("ArrayFeatureExtractor", 1, domain=_DOMAIN)
def array_feature_extractor(x: Any, y: Tensor) -> Any:
    """The entries of the last axis at the given places.

    Returns [..., count]; of a vector, [1, count].  Source: ONNX ML operators.
    """
    places = y.reshape(-1).to(torch.int64)
    if not isinstance(x, Tensor):
        picked = np.asarray(x, dtype=object)[..., places.cpu().numpy()]
        return picked.reshape(1, -1) if picked.ndim == 1 else picked
    chosen = x.index_select(-1, places)
    return chosen.reshape(1, -1) if chosen.dim() == 1 else chosen


@op("ZipMap", 1, domain=_DOMAIN, differentiable=False, on_host=True)
def zip_map(
    x: Tensor,
    *,
    classlabels_int64s: list[int] | None = None,
    classlabels_strings: list[str] | None = None,
) -> list[dict[Any, float]]:
    """One {label: score} map for each row.

    x: [N, C] or [C].  Source: ONNX ML operators.
    """
    labels: list[Any] = list(classlabels_strings or classlabels_int64s or [])
    rows = x.detach().reshape(-1, len(labels)).tolist()
    return [dict(zip(labels, row, strict=True)) for row in rows]
