"""For each weight the form that makes the file smallest, and the reason where it stays dense."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

from onnx import ModelProto, NodeProto, helper, numpy_helper

from dns_onnx.converters.encodings import coo, csr, portable
from dns_onnx.converters.encodings.dense import GRAPH_INPUTS_KEY, IR_KEY
from dns_onnx.converters.encodings.draft import Draft
from dns_onnx.converters.encodings.functions import (
    MIN_IR_VERSION,
    MIN_OPSET,
    add_functions,
    default_opset,
    functions_bytes,
)
from dns_onnx.converters.encodings.kernels import sparse_use
from dns_onnx.converters.encodings.matrix import MAX_ENTRIES, Matrix
from dns_onnx.converters.encodings.parts import Part, item_size
from dns_onnx.converters.encodings.sites import Site, Use, all_names, find_sites
from dns_onnx.converters.reader import infer_shapes
