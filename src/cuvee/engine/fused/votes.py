"""Combinations in which every coordinate decides for itself which experts count: RAM, SCE, MagMax, consensus.

Each emission repeats the stage's function operation by operation, as those in `stages.py`. Must not import torch.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from cuvee.engine.fused.builder import Builder, Figures, Unfusable, Value
from cuvee.engine.fused.chosen import cut
from cuvee.engine.fused.sifted import settled
from cuvee.engine.fused.varying import averaged, decided
from cuvee.engine.kernels.operations import Code, listed
from cuvee.methods.parameters import each
from cuvee.plan.nodes import Apply

Values = Mapping[str, Any]
_MERGEKIT_SMALLEST = 1e-6  # as in `sce`


def ram(builder: Builder, node: Apply, values: Values, figures: Figures) -> Value:
    """Both `ram` and `ram_plus`, whose unique changes are boosted."""
    epsilon, boosts = values["epsilon"], figures.get("boosts", [1.0] * len(node.inputs))
    at_once = averaged(builder, node, epsilon, boosts)
    if at_once is not None:
        return at_once
    tensors, movers = moved(builder, node)
    total = builder.filled(0.0)
    for tensor, boost in zip(tensors, boosts, strict=True):
        (bits,) = struct.unpack("I", struct.pack("f", boost))
        builder.emit(Code.BOOST, total, tensor, movers, x=epsilon, bits=bits)
        builder.release(tensor)
    builder.emit(Code.QUOTIENT, total, total, movers)
    builder.release(movers)
    return total


def moved(builder: Builder, node: Apply) -> tuple[list[Value], Value]:
    """The inputs of `ram` or `ram_plus`, and how many of them moved each coordinate (all to be released)."""
    tensors = [builder.use(child) for child in node.inputs]
    movers = builder.filled(0.0)
    for tensor in tensors:
        builder.emit(Code.MOVED, movers, tensor, x=dict(node.values)["epsilon"])
    return tensors, movers


def magmax(builder: Builder, node: Apply, values: Values, figures: Figures) -> Value:
    largest = builder.use(node.inputs[0])
    for child in node.inputs[1:]:
        tensor, to = builder.use(child), builder.new()
        builder.emit(Code.LARGER, to, tensor, largest)
        builder.release(tensor)
        builder.release(largest)
        largest = to
    return largest


def consensus(builder: Builder, node: Apply, values: Values, figures: Figures) -> Value:
    if values["total"] != "sum":
        raise Unfusable("masks of a trimmed sum")
    tensors = [builder.use(child) for child in node.inputs]
    merged = builder.filled(0.0)
    builder.emit(Code.SCALE, merged, tensors[0], x=1.0)
    for tensor in tensors[1:]:
        builder.emit(Code.ADD, merged, merged, tensor)
    votes = builder.filled(0.0)
    for tensor, strength in zip(tensors, each(values["strength"], len(tensors)), strict=True):
        builder.emit(Code.OUTWEIGHS, votes, tensor, merged, x=strength)
        builder.release(tensor)
    builder.emit(Code.REACHED, merged, merged, votes, x=values["agree"])
    builder.release(votes)
    return merged


def sce(builder: Builder, node: Apply, values: Values, figures: Figures) -> Value:
    selects = values["mask_scope"] == "all"
    least = _MERGEKIT_SMALLEST if values["guard"] == "mergekit" else 0.0
    at_once = decided(builder, node, figures if selects else {}, figures["weights"], least)
    if at_once is not None:
        return at_once
    tensors = [builder.use(child) for child in node.inputs]
    if selects:
        tensors = selected(builder, tensors, figures)
    sign = builder.filled(0.0)
    for tensor in tensors:
        builder.emit(Code.ADD, sign, sign, tensor)
    builder.emit(Code.ELECT, sign, sign, x=1.0)
    total, share = builder.filled(0.0), builder.filled(0.0)
    for tensor, weight in zip(tensors, figures["weights"], strict=True):
        weighted = builder.new()
        builder.emit(Code.SCALE, weighted, tensor, x=weight)
        builder.emit(Code.AGREE, total, tensor, sign, weighted, x=weight).d = share.register
        builder.release(weighted)
        builder.release(tensor)
    if least > 0:
        builder.emit(Code.AT_LEAST, share, share, x=least)
    builder.emit(Code.QUOTIENT, total, total, share)
    builder.release(share)
    builder.release(sign)
    return total


def selected(builder: Builder, tensors: Sequence[Value], figures: Figures) -> list[Value]:
    """The inputs of `sce` where they are selected, else 0; takes the place of what is given."""
    if "cuts" not in figures:
        return list(tensors)
    chosen = figures["cuts"][0]
    bits = settled(figures, chosen) if 0 < chosen.kept < chosen.total else 0
    if bits:
        return [_staying(builder, tensor, bits) for tensor in tensors]
    spread = variance(builder, tensors)
    kept = []
    for tensor in tensors:
        builder.hold(spread)
        kept.append(cut(builder, chosen, spread, tensor))
    builder.release(spread)
    return kept


def _staying(builder: Builder, value: Value, bits: int) -> Value:
    """A value where its bit is set, else 0; takes its place."""
    to = builder.new()
    builder.emit(Code.STAYING, to, value, data=bits)
    builder.release(value)
    return to


def variance(builder: Builder, tensors: Sequence[Value]) -> Value:
    """Population variance over the inputs of `sce`, of differences to the first."""
    registers = listed([tensor.register for tensor in tensors])
    builder.kept.append(registers)
    spread = builder.new()
    builder.emit(Code.VARIANCE, spread, data=ctypes.addressof(registers))
    return spread
