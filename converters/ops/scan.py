"""Scan: a body over the slices of its inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from onnx import NodeProto
from torch import Tensor

from dns_onnx.converters.attributes import attributes
from dns_onnx.converters.ops.bodies import Body, Operands, as_tuple, body_node, finish
from dns_onnx.converters.registry import op

if TYPE_CHECKING:
    from dns_onnx.converters.builder import Builder


@op("Scan", 9, 11, 16, 19, 21, 23, 24, 25, graph=True)
def scan(builder: Builder, node: NodeProto, operands: Operands, version: int) -> None:
    """A body over the slices of its scan inputs.  Source: ONNX operators, Scan 9-25."""
    body, outside, proto = body_node(builder, node, "body")
    attrs = attributes(node)
    scans = int(attrs["num_scan_inputs"])
    values = [None if v is None else builder.tensor(v) for v in operands]
    split = len(values) - scans
    results = len(proto.output) - split
    args = (
        body,
        tuple(values[:split]),
        tuple(values[split:]),
        tuple(outside),
        attrs.get("scan_input_axes") or [0] * scans,
        attrs.get("scan_input_directions") or [0] * scans,
        attrs.get("scan_output_axes") or [0] * results,
        attrs.get("scan_output_directions") or [0] * results,
    )
    finish(builder, node, run_scan, args)


def run_scan(
    body: Body,
    states: tuple[Any, ...],
    scans: tuple[Tensor, ...],
    outside: tuple[Any, ...],
    axes: list[int],
    backward: list[int],
    output_axes: list[int],
    output_backward: list[int],
) -> tuple[Any, ...]:
    """Run a body over slices: the final states, then the stacked outputs.

    backward, output_backward: 1 = the scan input is read, or the output written, from its end.
    """
    steps = scans[0].shape[axes[0]]
    collected: list[list[Tensor]] = [[] for _ in output_axes]
    for step in range(steps):
        slices = [
            x.select(axis, steps - 1 - step if back else step)
            for x, axis, back in zip(scans, axes, backward, strict=True)
        ]
        result = as_tuple(body(*states, *slices, *outside))
        states = result[: len(states)]
        for place, value in zip(collected, result[len(states) :], strict=True):
            place.append(value)
    stacked = []
    for values, axis, back in zip(collected, output_axes, output_backward, strict=True):
        ordered = values[::-1] if back else values
        stacked.append(torch.stack(ordered, axis if axis >= 0 else axis + ordered[0].dim() + 1))
    return (*states, *stacked)


@op("Scan", 8, graph=True)
def scan_8(builder: Builder, node: NodeProto, operands: Operands, version: int) -> None:
    """A body over the time steps of each sample of a batch.

    The first operand gives the samples' lengths.  Source: ONNX operators, Scan 8.
    """
    body, outside, _ = body_node(builder, node, "body")
    attrs = attributes(node)
    scans = int(attrs["num_scan_inputs"])
    values = [None if v is None else builder.tensor(v) for v in operands]
    split = len(values) - scans
    args = (
        body,
        values[0],
        tuple(values[1:split]),
        tuple(values[split:]),
        tuple(outside),
        attrs.get("directions") or [0] * scans,
    )
    finish(builder, node, run_scan_8, args)


def run_scan_8(
    body: Body,
    lengths: Tensor | None,
    states: tuple[Tensor, ...],
    scans: tuple[Tensor, ...],
    outside: tuple[Any, ...],
    backward: list[int],
) -> tuple[Any, ...]:
    """Run a body over [B, T, ...] inputs, sample by sample; outputs beyond a length are zero."""
    longest = scans[0].shape[1]
    samples = []
    for index in range(scans[0].shape[0]):
        length = longest if lengths is None else int(lengths[index])
        result = run_scan(
            body,
            tuple(s[index] for s in states),
            tuple(x[index, :length] for x in scans),
            outside,
            [0] * len(scans),
            backward,
            [0] * _scan_outputs(body, len(states)),
            [0] * _scan_outputs(body, len(states)),
        )
        padded = [
            torch.cat([r, r.new_zeros(longest - length, *r.shape[1:])]) if length < longest else r
            for r in result[len(states) :]
        ]
        samples.append((*result[: len(states)], *padded))
    return tuple(torch.stack(group) for group in zip(*samples, strict=True))


def _scan_outputs(body: Body, states: int) -> int:
    returned = next(n for n in body.graph.nodes if n.op == "output").args[0]
    return (len(returned) if isinstance(returned, tuple) else 1) - states
