"""For each weight the form that makes the file smallest, and the reason where it stays dense."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from dns_onnx.converters.encodings import coo, csr, portable, whole
from dns_onnx.converters.encodings.bodies import PLAIN, Form
from dns_onnx.converters.encodings.crossover import kernel_pays
from dns_onnx.converters.encodings.draft import Draft
from dns_onnx.converters.encodings.functions import MIN_OPSET, default_opset, functions_bytes
from dns_onnx.converters.encodings.header import prepare
from dns_onnx.converters.encodings.kernels import has_bias, sparse_use
from dns_onnx.converters.encodings.matrix import MAX_ENTRIES, Array, Matrix, is_kept
from dns_onnx.converters.encodings.parts import tensor_bytes
from dns_onnx.converters.encodings.shapes import shape_lookup
from dns_onnx.converters.encodings.sites import Site, Use, all_names, find_sites
from dns_onnx.converters.encodings.values import coding

# Above this density even one bit an entry is more than the dropped zeros save.
_HOPELESS_DENSITY = 1 - 1 / 64

# Decoding fills memory that ONNX Runtime frees once all of the model is decoded.  Above so many
# bytes a weight takes no form that fills more than so many times the float32 weight.
_MUCH_MEMORY = 4 << 30
_MOST_TIMES = 4

_WHOLE_WEIGHT = ("BitmaskToDense", "Cast", "CsrToDense")

WantsKernel = Callable[[NodeProto, tuple[int, ...], float], bool]


@dataclass(frozen=True)
class TensorRow:
    """What became of one weight.

    name: ONNX name.  node, op_type: the first node that reads it, as in the original.
    nnz: entries that are not zero.  dense_bytes, bytes: in the file, before and after, the shared
    function bodies aside.  encoding: such as "csr uint8 gaps" or "dense".  reason: why it is dense,
    or why no sparse operator reads it.  operator: the node that reads the stored form.
    """

    name: str
    node: str
    op_type: str
    shape: tuple[int, ...]
    nnz: int
    dense_bytes: int
    bytes: int
    encoding: str
    reason: str
    operator: str = ""


@dataclass
class _Candidate:
    """A weight with the ways it could be written; `reason` as in TensorRow.

    refusal: why it cannot be stored sparse.  bounded: whether the model is large.
    drafts: their figures; they hold no arrays and do not write, so that a large model is planned in
    the memory of one weight.
    """

    site: Site
    nnz: int
    dense_bytes: int
    refusal: str
    reason: str
    drafts: list[Draft]
    chosen: Draft | None = None
    bounded: bool = False

    @property
    def most_memory(self) -> int:
        """Bytes that its decoding may fill where the model is large."""
        return int(_MOST_TIMES * 4 * math.prod(self.site.tensor.dims))


class Plan:
    """What would become of the float tensors of a dense model in one format.

    names: those to consider; None: all.  format: of the weights that are encoded.
    rows: one for each weight, in graph order.
    encoded: how many of them the format makes smaller.
    """

    def __init__(
        self,
        model: ModelProto,
        names: Iterable[str] | None,
        format: str,
        *,
        values: str = "float32",
        min_sparsity: float | None = None,
        wants_kernel: WantsKernel | None = None,
    ) -> None:
        wanted = None if names is None else set(names)
        self._model, self.format = model, format
        self._code = values
        # the exact values too: in a small weight the scales can take more than they save
        self._codes = dict.fromkeys(("float32", values))
        self._opset = default_opset(model)
        self._taken, self._shapes = all_names(model), shape_lookup(model)
        self._wants_kernel = wants_kernel or kernel_pays
        self._candidates = [
            self._candidate(site, min_sparsity)
            for site in find_sites(model)
            if wanted is None or site.weight in wanted
        ]
        self._form = _choose(self._candidates, max(self._opset, MIN_OPSET), list(self._codes))
        self.rows = [_row(candidate, format) for candidate in self._candidates]
        self.encoded = sum(c.chosen is not None for c in self._candidates)

    def write(self) -> None:
        """Store the weights in the model as planned."""
        chosen = [c for c in self._candidates if c.chosen is not None]
        if not chosen:
            return
        functions = {name for c in chosen if c.chosen for name in c.chosen.functions}
        prepare(self._model, self.format, functions, self._form, {c.site.name for c in chosen})
        for candidate in reversed(chosen):  # each goes to the head of its graph: the last one first
            self._writer(candidate).write()

    def _candidate(self, site: Site, min_sparsity: float | None) -> _Candidate:
        weight: Array = numpy_helper.to_array(site.tensor)
        nnz = int(np.count_nonzero(is_kept(weight))) if weight.size else 0
        dense_bytes = tensor_bytes(site.name, site.tensor.data_type, weight.shape)
        refusal = _refusal(weight, nnz, min_sparsity)
        drafts, reason = self._drafts(site, weight, refusal)
        figures = [_figures(draft) for draft in drafts]
        return _Candidate(site, nnz, dense_bytes, refusal, reason, figures)

    def _writer(self, candidate: _Candidate) -> Draft:
        """The chosen draft made anew, able to write."""
        site = candidate.site
        drafts, _ = self._drafts(site, numpy_helper.to_array(site.tensor), candidate.refusal)
        return next(draft for draft in drafts if _figures(draft) == candidate.chosen)

    def _drafts(self, site: Site, weight: Array, refusal: str) -> tuple[list[Draft], str]:
        """Every way to write the weight, and the reason that its row gives."""
        stem = _stem(site.name, self._taken)
        found: list[Draft] = []
        if self.format in ("csr", "portable") and weight.size and self._code != "float32":
            found += whole.drafts(site, weight, stem, self._code)
        if refusal or self.format == "dense":
            return found, refusal
        matrix, reason = Matrix.from_dense(weight), ""
        if self.format == "coo":
            found += coo.drafts(site, matrix, self._opset)
        elif self.format == "portable":
            for code in self._codes:
                found += portable.drafts(site, matrix, stem, code)
        elif site.tensor.data_type == TensorProto.DOUBLE:
            reason = "the decoding computes in float32, which does not hold float64"
        else:
            use, reason = _kernel_use(site, matrix, stem, self._wants_kernel)
            matrix = replace(matrix, one_row=sparse_use(site)[0] is None)
            for code in self._codes:
                found += csr.drafts(site, matrix, stem, code, use, self._shapes)
            found += self._beside_other_bodies(site, matrix, stem, use)
            if use is not None and all(d.operator in _WHOLE_WEIGHT for d in found):
                reason = "its padding depends on the input size"
        if self._code != "float32":
            _, narrow = coding(site, matrix, stem, self._code, rows=True)
            reason = "; ".join(filter(None, [reason, narrow]))
        return found, reason

    def _beside_other_bodies(
        self, site: Site, matrix: Matrix, stem: str, use: Use | None
    ) -> list[Draft]:
        """How a weight with a sparse operator is written where that one's body fits only others."""
        if use is None or use.node is None:
            return []
        plain = csr.drafts(site, matrix, stem, "float32", None, self._shapes)
        found = []
        if self._code != "float32":  # the kernel's values are narrow
            found += [replace(draft, values=self._code) for draft in plain]
        bias = has_bias(use.node)
        if bias is not None:
            found += [replace(draft, bias=not bias) for draft in plain]
        return found


def _figures(draft: Draft) -> Draft:
    """The draft without what it would write."""
    return replace(draft, write=_nothing)


def _nothing() -> None:
    """What is left of a draft's writing once only its figures are kept."""


def _refusal(array: Array, nnz: int, min_sparsity: float | None) -> str:
    """Why the array cannot be stored sparse; empty if it can."""
    if array.ndim == 0 or array.size == 0:
        return "it has no axis or no entry"
    if nnz == array.size:
        return "no entry is cut"
    if array.size > MAX_ENTRIES:
        return f"more than {MAX_ENTRIES} entries"
    sparsity = 1 - nnz / array.size
    if min_sparsity is not None and sparsity < min_sparsity:
        return (
            f"kept dense: {sparsity:.0%} zeros is below the {min_sparsity:.0%} threshold "
            "(--min-sparsity)"
        )
    if nnz / array.size > _HOPELESS_DENSITY:
        return f"{sparsity:.1%} zeros save less than their positions take"
    return ""


def _stem(name: str, taken: set[str]) -> str:
    """What the new names of a weight begin with: its own name, unless that would clash."""
    stem = name
    while any(other.startswith(f"{stem}.") for other in taken):
        stem += "'"
    return stem


def _kernel_use(
    site: Site, matrix: Matrix, stem: str, wants_kernel: WantsKernel
) -> tuple[Use | None, str]:
    """The reader that becomes a sparse operator, or None and why none does."""
    use, reason = sparse_use(site)
    if use is None or use.node is None:
        return None, reason
    if stem != site.name:
        return None, f"names that begin with '{site.name}.' are taken"
    if not wants_kernel(use.node, matrix.shape, matrix.density):
        return None, f"a dense kernel is faster at density {matrix.density:.2f}"
    return use, ""


def _choose(candidates: Sequence[_Candidate], opset: int, codes: Sequence[str]) -> Form:
    """Pick the draft of each weight so that the file, function bodies included, is smallest.

    codes: of the values.  Returns the form that the bodies are to be written for.
    """
    best_saving, best_form = 0, PLAIN
    best: list[Draft | None] = [None] * len(candidates)
    bounded, bias = False, _most_have_bias(candidates)
    for columns, values, bitmask in product((False, True), codes, (False, True)):
        form = Form(columns, values, bias)
        picks, large = _picks(candidates, form, bitmask=bitmask)
        bounded |= large
        saved = sum(c.dense_bytes - p.bytes for c, p in zip(candidates, picks, strict=True) if p)
        used = set().union(*(p.functions for p in picks if p))
        saving = saved - functions_bytes(used, opset, form)
        if saving > best_saving:
            best_saving, best_form, best = saving, form, picks
    for candidate, pick in zip(candidates, best, strict=True):
        candidate.chosen, candidate.bounded = pick, bounded
    return best_form


def _most_have_bias(candidates: Sequence[_Candidate]) -> bool:
    """Whether of the filters that a sparse operator could read, most have a bias."""
    balance = 0
    for candidate in candidates:
        own = {d.bias for d in candidate.drafts if d.operator == "CsrConv"} - {None}
        for bias in own:
            balance += candidate.nnz if bias else -candidate.nnz
    return balance >= 0


def _picks(
    candidates: Sequence[_Candidate], form: Form, *, bitmask: bool
) -> tuple[list[Draft | None], bool]:
    """For each weight the smallest draft that the bodies fit, and whether memory was bounded."""
    picks = [_smallest(candidate, form, bitmask, bounded=False) for candidate in candidates]
    if sum(pick.memory for pick in picks if pick) <= _MUCH_MEMORY:
        return picks, False
    return [_smallest(candidate, form, bitmask, bounded=True) for candidate in candidates], True


def _smallest(candidate: _Candidate, form: Form, bitmask: bool, *, bounded: bool) -> Draft | None:
    """The smallest draft that the bodies fit, if it saves anything."""
    fitting = [
        draft
        for draft in candidate.drafts
        if draft.fits(form)
        and (bitmask or "BitmaskToDense" not in draft.functions)
        and not (bounded and draft.memory > candidate.most_memory)
    ]
    smallest = min(fitting, key=lambda draft: draft.bytes, default=None)
    return smallest if smallest and smallest.bytes < candidate.dense_bytes else None


def _row(candidate: _Candidate, format: str) -> TensorRow:
    site, draft = candidate.site, candidate.chosen
    node = next((use.node for use in site.uses if use.node is not None), None)
    reason = candidate.reason
    if draft is None and format == "dense":
        reason = "asked for"
    elif draft is None and candidate.drafts:
        reason = _why_dense(candidate)
    return TensorRow(
        name=site.weight,
        node=(node.name or node.output[0]) if node is not None else "",
        op_type=node.op_type if node is not None else "",
        shape=tuple(site.tensor.dims),
        nnz=candidate.nnz,
        dense_bytes=candidate.dense_bytes,
        bytes=draft.bytes if draft else candidate.dense_bytes,
        encoding=draft.encoding if draft else "dense",
        reason=reason,
        operator=draft.operator if draft else "",
    )


def _why_dense(candidate: _Candidate) -> str:
    """Why no draft was chosen, though there are some."""
    smallest = min(candidate.drafts, key=lambda draft: draft.bytes)
    if smallest.bytes >= candidate.dense_bytes:
        return f"{smallest.encoding} takes {smallest.bytes} bytes, dense {candidate.dense_bytes}"
    if candidate.bounded and smallest.memory > candidate.most_memory:
        return f"{smallest.encoding} takes much memory to decode, and the model is large"
    return "the operators' bodies take more than all weights together save"
