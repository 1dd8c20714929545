"""The stages that the compiled machine does: what each emits, and which parameter values it accepts.

Every emission repeats the stage's function operation by operation. Stages whose coefficients come from a Gram matrix
are run themselves, on traced values, so that their mathematics stands once. Must not import torch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from typing import Any

from cuvee.core.dtypes import FLOAT32
from cuvee.engine.blocks import access_of
from cuvee.engine.fused.builder import Builder, Figures, Unfusable, Value
from cuvee.engine.fused.chosen import cut
from cuvee.engine.fused.coefficients import shares
from cuvee.engine.fused.crowd import dropping, elected, mixed
from cuvee.engine.fused.kept import voted
from cuvee.engine.fused.trace import TRACED, trace
from cuvee.engine.fused.votes import consensus, magmax, ram, sce
from cuvee.engine.kernels.operations import Code
from cuvee.engine.streams import uniforms_of
from cuvee.methods.combine.elect import tied_sign
from cuvee.methods.parameters import each
from cuvee.plan.nodes import Apply

Values = Mapping[str, Any]
_NEGLIGIBLE = 1e-8  # as in `weighted_sum`


def emitted(builder: Builder, node: Apply, figures: Figures) -> Value:
    """The operations of a stage; its result."""
    if node.stage in TRACED:
        summary, place = figures.get("traced", ({}, 0))
        return trace(builder, node, place, summary)
    found = _EMITTERS.get(node.stage)
    if found is None:
        raise Unfusable(node.stage)
    return found(builder, node, dict(node.values), figures)


def known_stage(node: Apply) -> bool:
    """Whether a stage with these parameter values can be emitted (once its figures are known)."""
    values = dict(node.values)
    if node.stage == "nuslerp":
        return bool(values["flatten"])
    if node.stage == "model_stock":
        return not values["filter_wise"]
    if node.stage in ("consensus", "tall_masks"):
        return bool(values["total"] == "sum")
    if node.stage == "nearswap":
        return single(values["t"]) > 0  # signs of zeros differ at 0
    if node.stage in TRACED:
        return access_of(node) == "element"
    return node.stage in _EMITTERS


def thinned(builder: Builder, node: Apply, figures: Figures) -> Value:
    """A condition stage's result before it is rescaled: the input where it is kept, 0 elsewhere."""
    values = dict(node.values)
    delta = _single(builder, node)
    if node.stage == "drop":
        return _kept(builder, node, values, delta)
    if node.stage == "trim":
        return cut(builder, figures["cuts"][0], delta, delta)
    outer, inner = figures["cuts"]
    builder.hold(delta)
    middle = cut(builder, inner, delta, delta)
    return cut(builder, outer, Value(delta.register, FLOAT32), middle, drop=True)


def ballot(builder: Builder, node: Apply) -> tuple[Value, list[Value], list[Value]]:
    """The figure whose sign `elect` elects, the values and what their signs are judged by (all to be released)."""
    values = dict(node.values)
    weights = each(values["weight"], len(node.inputs))
    vote = values["vote"]
    total = builder.filled(0.0)
    entries, judged = [], []
    for child, weight in zip(node.inputs, weights, strict=True):
        delta = builder.use(child)
        value = delta
        if weight != 1:
            value = builder.new()
            builder.emit(Code.SCALE, value, delta, x=weight)
            if vote == "weighted":
                builder.release(delta)
        elif vote != "weighted":
            builder.hold(delta)
        entries.append(value)
        judged.append(value if vote == "weighted" else delta)
        cast = judged[-1]
        if vote == "count":
            cast = builder.new()
            builder.emit(Code.SIGN, cast, judged[-1])
        builder.emit(Code.ADD, total, total, cast)
        if vote == "count":
            builder.release(cast)
    return total, entries, [] if vote == "weighted" else judged


def _single(builder: Builder, node: Apply) -> Value:
    return Value(builder.use(node.inputs[0]).register, FLOAT32)


def _kept(builder: Builder, node: Apply, values: Values, delta: Value) -> Value:
    below, _ = dropping(values)
    if below >= 1 << 32:
        return delta
    to = builder.new()
    builder.emit(Code.KEEP, to, delta, bits=below, key=uniforms_of(node).key)  # type: ignore[attr-defined]
    builder.release(delta)
    return to


def _trim(builder: Builder, node: Apply, values: Values, figures: Figures) -> Value:
    if "cuts" not in figures:
        return _single(builder, node)
    kept = thinned(builder, node, figures)
    return builder.scaled(kept, figures["factor"]) if values["rescale"] == "l1" else kept


def _drop(builder: Builder, node: Apply, values: Values, figures: Figures) -> Value:
    if values["density"] >= 1:
        return _single(builder, node)
    kept = thinned(builder, node, figures)
    if values["rescale"] == "l1":
        return builder.scaled(kept, figures["factor"])
    return builder.scaled(kept, dropping(values)[1], Code.SHRINK)


def _magprune(builder: Builder, node: Apply, values: Values, figures: Figures) -> Value:
    """What was left of it before; without ranks everything, or nothing."""
    if "values" in figures:
        to = builder.new()
        builder.emit(Code.RECALL, to, data=figures["values"])
        return to
    if "bits" in figures:
        delta, to = _single(builder, node), builder.new()
        builder.emit(Code.STAYING, to, delta, data=figures["bits"])
        builder.release(delta)
        return builder.scaled(to, figures["factor"])
    if 0 < values["density"] < 1:
        raise Unfusable("ranks come from elsewhere")
    return _single(builder, node) if values["density"] >= 1 else builder.filled(0.0)


def _weighted_sum(builder: Builder, node: Apply, values: Values, figures: Figures) -> Value:
    weights = each(values["weight"], len(node.inputs))
    total = mixed(builder, node, weights, first=False)
    if total is None:
        total = builder.filled(0.0)
        for child, weight in zip(node.inputs, weights, strict=True):
            delta = builder.use(child)
            builder.emit(Code.MULTIPLY_ADD, total, total, delta, x=weight)
            builder.release(delta)
    share = sum(weights)
    if values["normalize"] and abs(share) >= _NEGLIGIBLE:
        return builder.scaled(total, share, Code.SHRINK)
    return total


def _linear(builder: Builder, node: Apply, values: Values, figures: Figures) -> Value:
    weights = each(values["weight"], len(node.inputs))
    factors = shares(weights) if values["normalize"] else weights
    total = mixed(builder, node, factors, first=True)
    if total is not None:
        return total
    for child, factor in zip(node.inputs, factors, strict=True):
        tensor = builder.use(child)
        if total is None:
            total = builder.new()
            builder.emit(Code.SCALE, total, tensor, x=factor)
        else:
            builder.emit(Code.MULTIPLY_ADD, total, total, tensor, x=factor)
        builder.release(tensor)
    if total is None:
        raise Unfusable("no inputs")
    return total


def _elect(builder: Builder, node: Apply, values: Values, figures: Figures) -> Value:
    weights = each(values["weight"], len(node.inputs))
    tied = tied_sign(values["zero_sign"], values["merge"], figures)
    if values["vote"] == "weighted":
        at_once = voted(builder, node, values, tied) or elected(builder, node, values, tied)
        if at_once is not None:
            return at_once
    sign, entries, judged = ballot(builder, node)
    builder.emit(Code.ELECT, sign, sign, x=tied)
    total, share = builder.filled(0.0), builder.filled(0.0)
    for value, by, weight in zip(entries, judged or entries, weights, strict=True):
        if values["merge"] == "max":
            builder.emit(Code.LARGEST, total, by, sign, value)
            continue
        op = builder.emit(
            Code.AGREE, total, by, sign, value, x=weight if values["divisor"] == "weight" else 1.0
        )
        op.d = share.register
    for value in (*entries, *judged):
        builder.release(value)
    if values["merge"] == "max":
        builder.emit(Code.MUL, total, total, sign)
    elif values["merge"] == "mean":
        builder.emit(Code.QUOTIENT, total, total, share)
    builder.release(share)
    builder.release(sign)
    return total


def _scale(builder: Builder, node: Apply, values: Values, figures: Figures) -> Value:
    return builder.scaled(_single(builder, node), values["lam"])


def _negate(builder: Builder, node: Apply, values: Values, figures: Figures) -> Value:
    return builder.scaled(_single(builder, node), -values["lam"])


def _passthrough(builder: Builder, node: Apply, values: Values, figures: Figures) -> Value:
    tensor = builder.use(node.inputs[0])
    (factor,) = each(values["scale"], 1)
    if factor is None:
        return tensor
    return builder.rounded(builder.scaled(tensor, factor), tensor.dtype)


def _nearswap(builder: Builder, node: Apply, values: Values, figures: Figures) -> Value:
    limit, floor = single(values["t"]), values["floor"]
    share = min(single(limit / single(floor)), 1.0) if floor > 0 else 1.0
    moved = builder.scaled(_single(builder, node), share)
    return builder.scaled(moved, limit, Code.CLAMP)


def _pcb(builder: Builder, node: Apply, values: Values, figures: Figures) -> Value:
    from cuvee.engine.fused.balance import balance  # few merges need it

    return balance(builder, node, values, figures)


def _traced(builder: Builder, node: Apply, values: Values, figures: Figures) -> Value:
    return trace(builder, node, 0, figures)


def single(x: float) -> float:
    """The nearest float32."""
    return ctypes.c_float(x).value


_EMITTERS: dict[str, Callable[[Builder, Apply, Values, Figures], Value]] = {
    "trim": _trim,
    "drop": _drop,
    "band": _trim,  # the same shape: thin, then rescale
    "magprune": _magprune,
    "weighted_sum": _weighted_sum,
    "linear": _linear,
    "elect": _elect,
    "scale": _scale,
    "negate": _negate,
    "passthrough": _passthrough,
    "nearswap": _nearswap,
    "ram": ram,
    "ram_plus": ram,
    "sce": sce,
    "magmax": magmax,
    "consensus": consensus,
    "pcb": _pcb,
    "slerp": _traced,
    "nuslerp": _traced,
    "multislerp": _traced,
    "karcher": _traced,
    "model_stock": _traced,
}
