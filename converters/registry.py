"""The operator registry: which function computes an ONNX operator at which schema version."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

from onnx import defs

F = TypeVar("F", bound=Callable[..., Any])

# Keyword parameters that the importer fills in by itself, where a function asks for them.
INJECTED = frozenset({"version_", "outputs_", "types_", "out_types_"})
# Attributes of the first schemas that never changed a result.
_IGNORED = frozenset({"consumed_inputs"})


@dataclass(frozen=True)
class Call:
    """A torch function and its arguments, to stand in the graph in place of an operator function.

    args may hold further Calls, which are computed first.
    """

    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Arg:
    """What the importer knows about an operand when it chooses how to compute a node.

    node: the fx node that yields it.  shape: None = unknown rank, entry None = unknown size.
    elem: ONNX element type, 0 = unknown.
    """

    node: Any
    shape: tuple[int | None, ...] | None
    elem: int

    @property
    def rank(self) -> int | None:
        return None if self.shape is None else len(self.shape)


# What a `direct` rule answers: a call, an operand handed on as it is, or "use the function".
Direct = Call | Arg | None


@dataclass(frozen=True)
class Operator:
    """One operator function with the schema versions that it computes.

    static: operands handed over as Python values (numbers, nested lists).
    literal: scalar operands handed over as Python numbers where they are known at import.
    prunable: operands whose initializer surgery may cut.  bias: the operand pruned along with it.
    statistics: float operands that are state, not weights: held, never trained by default.
    constant: float operands that take no part in training at all.
    differentiable: gradients reach the data operands.  pure: same operands, same results.
    layout: moves or copies entries, never changes them.  on_host: the result is a CPU value.
    graph: control flow, built by a function of the importer.  opaque: not computed by torch.
    direct: may name a plain torch function to call where enough is known at import.
    """

    name: str
    domain: str
    versions: tuple[int, ...]
    function: Callable[..., Any]
    inputs: tuple[str, ...]
    variadic: bool
    attributes: frozenset[str] | None
    injected: frozenset[str]
    multiple: bool
    static: frozenset[str]
    literal: frozenset[str]
    prunable: tuple[str, ...]
    bias: str
    statistics: frozenset[str]
    constant: frozenset[str]
    differentiable: bool
    pure: bool
    layout: bool
    graph: bool
    opaque: bool
    on_host: bool
    direct: Callable[..., Direct] | None

    def takes(self, attribute: str) -> bool:
        """Whether the function wants this attribute; others never changed a result."""
        return self.attributes is None or attribute in self.attributes or attribute in self.inputs

    def operand(self, index: int) -> str:
        """The parameter name of operand `index`; variadic operands share one name."""
        return self.inputs[min(index, len(self.inputs) - 1)] if self.inputs else ""


_OPERATORS: dict[tuple[str, str, int], Operator] = {}


def op(
    name: str,
    *versions: int,
    domain: str = "",
    static: tuple[str, ...] = (),
    literal: tuple[str, ...] = (),
    prunable: tuple[str, ...] = (),
    bias: str = "",
    statistics: tuple[str, ...] = (),
    constant: tuple[str, ...] = (),
    differentiable: bool = True,
    pure: bool = True,
    layout: bool = False,
    multiple: bool | None = None,
    schema: bool = True,
    graph: bool = False,
    opaque: bool = False,
    on_host: bool = False,
    direct: Callable[..., Direct] | None = None,
) -> Callable[[F], F]:
    """Register the decorated function for exact schema versions of an operator.

    Positional parameters are the operator's inputs in order, keyword parameters its attributes
    under ONNX's own names (plus any of INJECTED); `**attributes` takes all the others, to hand
    them on.  An attribute that later became an input is
    handed to the parameter of the same name.  A function whose operator may have several
    outputs returns a tuple.  `direct`, called with `Arg`s, may name a torch function to call
    instead.  `schema=False` is for operators that no released schema describes.
    Raises ValueError for a duplicate, a version that the schema does not have, or a parameter
    list that cannot take the schema's inputs or attributes.
    """

    def register(function: F) -> F:
        inputs, variadic, named, anything = _parameters(function)
        if graph:
            inputs, anything = (), True
        known = None if anything else named - INJECTED
        roles = (*static, *literal, *prunable, *statistics, *constant, *((bias,) if bias else ()))
        for role in roles:
            if role not in inputs:
                raise ValueError(f"{name}: '{role}' is not an operand of {function.__name__}")
        protos = [_schema(name, version, domain) for version in versions] if schema else []
        for proto in protos if not graph else ():
            _check(proto, inputs, variadic, known)
        # one convention for all versions of a function, though the first may have one output
        several = multiple if multiple is not None else any(p.max_output > 1 for p in protos)
        for version in versions:
            entry = Operator(
                name=name,
                domain=domain,
                versions=versions,
                function=function,
                inputs=inputs,
                variadic=variadic,
                attributes=known,
                injected=named & INJECTED,
                multiple=several,
                static=frozenset(static),
                literal=frozenset(literal),
                prunable=prunable,
                bias=bias,
                statistics=frozenset(statistics),
                constant=frozenset(constant),
                differentiable=differentiable,
                pure=pure,
                layout=layout,
                graph=graph,
                opaque=opaque,
                on_host=on_host,
                direct=direct,
            )
            if _OPERATORS.setdefault((domain, name, version), entry) is not entry:
                raise ValueError(
                    f"{domain or 'ai.onnx'}::{name} version {version}: registered twice"
                )
        find.cache_clear()
        return function

    return register


@cache
def find(name: str, opset: int, domain: str = "") -> tuple[Operator, int] | None:
    """The operator that computes `name` in a model of this opset, with its schema version."""
    since = _since(name, opset, domain)
    if since is not None and (domain, name, since) in _OPERATORS:
        return _OPERATORS[domain, name, since], since
    # no schema (com.microsoft, experimental): the newest registered one that is not too new
    if since is None:
        held = [v for d, n, v in _OPERATORS if d == domain and n == name]
        fitting = [v for v in held if v <= opset] or held
        if fitting:
            return _OPERATORS[domain, name, max(fitting)], max(fitting)
    return None


def operators() -> list[Operator]:
    """Every registered operator function once, by domain and name."""
    unique = {(e.domain, e.name, e.versions): e for e in _OPERATORS.values()}
    return [unique[key] for key in sorted(unique)]


def registered() -> Mapping[tuple[str, str, int], Operator]:
    """The whole table: (domain, operator, schema version) -> operator function."""
    return _OPERATORS


def _parameters(
    function: Callable[..., Any],
) -> tuple[tuple[str, ...], bool, frozenset[str], bool]:
    """Operand names, whether the last is variadic, keyword names, whether it takes any other."""
    inputs: list[str] = []
    keywords: set[str] = set()
    variadic = anything = False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            keywords.add(parameter.name)
        elif parameter.kind is parameter.VAR_KEYWORD:
            anything = True
        else:
            variadic = variadic or parameter.kind is parameter.VAR_POSITIONAL
            inputs.append(parameter.name)
    return tuple(inputs), variadic, frozenset(keywords), anything


def _schema(name: str, version: int, domain: str) -> defs.OpSchema:
    try:
        found = defs.get_schema(name, version, domain)
    except defs.SchemaError:
        found = None
    if found is None or found.since_version != version:
        raise ValueError(f"{domain or 'ai.onnx'}::{name}: ONNX has no schema version {version}")
    return found


def _check(
    proto: defs.OpSchema,
    inputs: tuple[str, ...],
    variadic: bool,
    keywords: frozenset[str] | None,
) -> None:
    where = f"{proto.domain or 'ai.onnx'}::{proto.name} version {proto.since_version}"
    if not variadic and len(inputs) < len(proto.inputs):
        raise ValueError(f"{where}: the schema has {len(proto.inputs)} inputs, got {inputs}")
    missing = set(proto.attributes) - _IGNORED - set(inputs) - (keywords or set())
    if keywords is not None and missing:
        raise ValueError(f"{where}: no parameter for attribute(s) {sorted(missing)}")


def _since(name: str, opset: int, domain: str) -> int | None:
    try:
        return int(defs.get_schema(name, opset, domain).since_version)
    except defs.SchemaError:
        pass
    # a model newer than the installed onnx: the newest schema there is
    try:
        return int(defs.get_schema(name, domain=domain).since_version)
    except defs.SchemaError:
        return None
