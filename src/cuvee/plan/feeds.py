"""The inputs of one output tensor: which models have it, what stands in where one lacks it, and shapes that fit.

Owns the rules of missing tensors, tied weights and mismatched shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cuvee.core.dtypes import BY_NAME, FLOAT32, FLOAT64, DType
from cuvee.core.names import printable
from cuvee.core.tensors import TensorMeta
from cuvee.errors import Diagnostic, Where
from cuvee.plan.arrangement import Feed, Target
from cuvee.plan.methods import Chosen
from cuvee.plan.nodes import Node
from cuvee.plan.vocabulary import Realigner, mismatch_hint
from cuvee.recipe.model import Recipe


@dataclass(frozen=True, slots=True)
class Fed:
    """The inputs that are there, realigned to one shape. `alone`: only one model has the tensor, so it is copied."""

    feeds: tuple[Feed, ...]
    nodes: tuple[Node, ...]
    metas: tuple[TensorMeta, ...]
    kept: tuple[DType, ...]  # types the models would have the tensor written in
    base: int | None  # position of the base among the feeds, when the method sets it apart
    untied: bool  # some model had the tensor only because its config ties it
    alone: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return self.nodes[0].shape

    @property
    def experts(self) -> list[Feed]:
        return [f for i, f in enumerate(self.feeds) if i != self.base]

    @property
    def expert_nodes(self) -> list[Node]:
        return [n for i, n in enumerate(self.nodes) if i != self.base]

    @property
    def expert_metas(self) -> list[TensorMeta]:
        return [m for i, m in enumerate(self.metas) if i != self.base]

    @property
    def base_node(self) -> Node | None:
        return None if self.base is None else self.nodes[self.base]

    @property
    def base_meta(self) -> TensorMeta | None:
        return None if self.base is None else self.metas[self.base]


def feed(
    target: Target, chosen: Chosen, recipe: Recipe, align: Realigner, found: list[Diagnostic]
) -> Fed | None:
    """The inputs of a target; None when it is left out or (with a diagnostic) cannot be fed."""
    present: list[tuple[Feed, str]] = []
    untied = False
    for each in target.feeds:
        name = each.name if each.name in each.view.tensors else each.view.tied(each.name)
        if name is not None:
            present.append((each, name))
            untied |= name != each.name and not each.view.always_tied(each.name)
    absent = [one for one in target.feeds if one not in [p for p, _ in present]]
    alone = False
    if absent:
        verdict = _missing(target, present, absent, chosen, recipe, found)
        if verdict is None:
            return None
        alone = verdict == "alone"
    if alone:
        present = present[:1]
    nodes = [one.view.node(name) for one, name in present]
    metas = [one.view.tensors[name] for one, name in present]
    kept = tuple(one.view.kept(name) for one, name in present)
    base = recipe.base if target.slice.base is None else target.slice.base
    feeds = [one for one, _ in present]
    axis = target.place.vocabulary_axis
    if axis is not None:
        wide = arithmetic(recipe, metas)
        nodes = align.inputs([f.input.source for f in feeds], nodes, axis, base, wide)
    if len({node.shape for node in nodes}) > 1:
        if not _copied_where_shapes_differ(target, metas, recipe):
            _shapes_differ(target, feeds, nodes, found)
            return None
        alone, one = True, _first_of(feeds, base)
        feeds, nodes, metas, kept = [feeds[one]], [nodes[one]], [metas[one]], (kept[one],)
        _warn_copied(target, feeds[0], found)
    position = next((i for i, f in enumerate(feeds) if f.input.source == base), None)
    if chosen.base_first and position is not None:
        order = [position, *(i for i in range(len(feeds)) if i != position)]
        feeds, nodes, metas = ([x[i] for i in order] for x in (feeds, nodes, metas))  # type: ignore[assignment]
    apart = chosen.base != "ordinary" and not chosen.base_first and not alone
    return Fed(tuple(feeds), tuple(nodes), tuple(metas), kept, position if apart else None, untied, alone)


def arithmetic(recipe: Recipe, inputs: Sequence[TensorMeta]) -> DType:
    """The type a tensor is merged in: the recipe's, else float32, or float64 where an input has it."""
    if recipe.compute:
        return BY_NAME[recipe.compute]
    return FLOAT64 if any(meta.dtype == FLOAT64 for meta in inputs) else FLOAT32


def _missing(
    target: Target,
    present: list[tuple[Feed, str]],
    absent: list[Feed],
    chosen: Chosen,
    recipe: Recipe,
    found: list[Diagnostic],
) -> str | None:
    """`some` (merge those that have it), `alone` (copy the only one) or None (left out, or an error was found)."""
    lacking = ", ".join(f"`{printable(f.input.source)}`" for f in absent)
    if recipe.names == "intersection":
        _note(target, f"is missing from {lacking}; it is left out", found)
        return None
    family = target.feeds[0].view.family
    allowed = recipe.names == "union" or family.optional(target.name) or family.head(target.name)
    if not allowed or chosen.missing == "error":
        message = f"`{printable(target.name)}` is missing from {lacking}"
        hint = "`--tensor-intersection` leaves such tensors out"
        if chosen.missing != "error" and len(present) > 0:
            hint += ", `--tensor-union` merges them from the models that have them"
        found.append(Diagnostic("CV-P036", message, _place(target), hint))
        return None
    if len(present) == 1 and (chosen.base != "ordinary" or chosen.inputs[0] > 1):
        _note(target, f"is only in `{printable(present[0][0].input.source)}` and is copied from there", found)
        return "alone"
    base = target.slice.base or recipe.base
    if (
        chosen.base == "required"
        and not chosen.base_first
        and all(f.input.source != base for f, _ in present)
    ):
        _note(target, "is not in the base; it is copied from the first model that has it", found)
        return "alone"
    beside = (
        chosen.base != "ordinary" and not chosen.base_first
    )  # a base is none of the models that are counted
    if sum(not beside or f.input.source != base for f, _ in present) < chosen.inputs[0]:
        _note(target, f"is in too few models for `{chosen.method.name}` and is copied from the first", found)
        return "alone"
    _note(target, f"is missing from {lacking}; the others are merged", found)
    return "some"


def _place(target: Target) -> Where:
    """Where the recipe speaks of a target, and its name: findings of one cause are told together."""
    return replace(target.slice.where or Where(), tensor=target.name)


def _note(target: Target, what: str, found: list[Diagnostic]) -> None:
    where = Where(tensor=target.name)
    found.append(Diagnostic("CV-P037", f"`{printable(target.name)}` {what}", where, severity="note"))


def _copied_where_shapes_differ(target: Target, metas: Sequence[TensorMeta], recipe: Recipe) -> bool:
    """Whether shapes may differ: task heads, and buffers of whole numbers, are then copied (not in MergeKit's)."""
    head = target.feeds[0].view.family.head(target.name)
    return recipe.dialect == "cuvee" and (head or not any(meta.dtype.is_float for meta in metas))


def _first_of(feeds: Sequence[Feed], base: str | None) -> int:
    """The position of the base, else of the first model."""
    return next((i for i, f in enumerate(feeds) if f.input.source == base), 0)


def _warn_copied(target: Target, one: Feed, found: list[Diagnostic]) -> None:
    message = (
        f"`{printable(target.name)}` has different shapes in the models, so it is not merged but copied from "
        f"`{printable(one.input.source)}`"
    )
    found.append(Diagnostic("CV-P038", message, _place(target), severity="warning"))


def _shapes_differ(target: Target, feeds: list[Feed], nodes: list[Node], found: list[Diagnostic]) -> None:
    shapes: Mapping[str, tuple[int, ...]] = {
        f.input.source: n.shape for f, n in zip(feeds, nodes, strict=True)
    }
    shown = ", ".join(f"`{printable(name)}` {list(shape)}" for name, shape in shapes.items())
    axis = target.place.vocabulary_axis
    hint = "models of different sizes cannot be merged weight by weight; `cuvee diff A B --structure` compares them"
    if axis is not None:
        without = {shape[:axis] + shape[axis + 1 :] for shape in shapes.values()}
        if len(without) == 1:
            hint = mismatch_hint({name: shape[axis] for name, shape in shapes.items()})
    message = f"`{printable(target.name)}` has different shapes: {shown}"
    found.append(Diagnostic("CV-P038", message, _place(target), hint))
