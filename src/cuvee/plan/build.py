"""Recipe → plan. Opens sources (headers only), arranges the output, resolves parameters, writes expressions.

Problems are collected and raised together; nothing here reads a weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cuvee.bundle.pipeline import COMPONENTS, is_pipeline, stem_of
from cuvee.core.dtypes import BY_NAME, FLOAT32, FLOAT64, DType
from cuvee.core.names import printable
from cuvee.core.tensors import TensorMeta
from cuvee.errors import Diagnostic
from cuvee.families import Family
from cuvee.methods.contract import Heads, Place
from cuvee.plan.arrangement import Arrangement, Feed, Target, arrange
from cuvee.plan.chain import Call, expression, thresholds_apart
from cuvee.plan.companions import Companions, Facts, companions
from cuvee.plan.factored import factors_lacking
from cuvee.plan.feeds import Fed, arithmetic, feed
from cuvee.plan.heads import heads_of
from cuvee.plan.locks import lock_problems
from cuvee.plan.matrices import kept_note, matrices_lacking
from cuvee.plan.methods import Chosen, chain_settings, choose
from cuvee.plan.nodes import Agree, Convert, Node
from cuvee.plan.parameters import Resolver, Values
from cuvee.plan.plan import Opened, OutputTensor, Plan
from cuvee.plan.rules import apply_rules
from cuvee.plan.views import Opener, View, as_dtype, promoted, raise_if, same_family
from cuvee.plan.vocabulary import Realigner, realigner
from cuvee.plan.whole_numbers import copied_of, integers_copied, kinds_differ
from cuvee.recipe.model import BlockValues, Recipe
from cuvee.sinks.layout import Layout, plan_layout, plan_parts


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """Choices of a plan that are not the recipe's: rules switched off, mixing of architectures."""

    rules_off: tuple[str, ...] = ()
    allow_mixed: bool = False


def build(recipe: Recipe, opener: Opener, options: PlanOptions | None = None, prefix: str = "") -> Plan:
    """The plan of a recipe; PlanError with everything that is wrong. `prefix`: its place in a tree of recipes."""
    return builder(recipe, opener, options, prefix).plan()


def builder(recipe: Recipe, opener: Opener, options: PlanOptions | None = None, prefix: str = "") -> Builder:
    """What makes the plan of a recipe; its sources are opened through the opener."""
    chosen = options or PlanOptions()
    if opener.build is None:
        opener.build = lambda inner, same, place: build(inner, same, chosen, place)
    return Builder(recipe, opener, chosen, prefix)


@dataclass(frozen=True, slots=True)
class Ready:
    """What of an output tensor that is merged does not depend on values of parameters."""

    target: Target
    fed: Fed
    stored: DType
    compute: DType
    experts: list[Node]
    base: Node | None
    call: Call


@dataclass(slots=True)
class Builder:
    """Makes one plan; keeps what is `ready` of its tensors, by name, for others of the same sources and chain."""

    recipe: Recipe
    opener: Opener
    options: PlanOptions
    prefix: str
    found: list[Diagnostic] = field(default_factory=list)
    untied: bool = False
    layers: dict[str, int] = field(default_factory=dict)  # of each module of the output
    heads: Mapping[str, Heads] = field(default_factory=dict)  # of modules, where a stage asks for it
    ready: dict[str, Ready] = field(default_factory=dict)

    def plan(self) -> Plan:
        chosen = choose(self.recipe)
        views = self.opener.views(self.recipe, self.found, self.prefix)
        raise_if(self.found)
        self.found += [note for view in views.values() for note in view.notes]
        same_family(self.recipe, views, self.options.allow_mixed, self.found)
        self.found += lock_problems(self.recipe, views, self.opener)
        donor = self._donor(views)
        family = donor.family
        if family.note:
            self.found.append(Diagnostic("CV-P006", family.note, severity="note"))
        align = realigner(self.recipe, views, family, self.found)
        arrangement = arrange(self.recipe, views, donor, self.found)
        self.layers = {module: len(source) for module, source in arrangement.layers.items()}
        self.heads = heads_of(chosen, donor, arrangement.targets, self.found)
        raise_if(self.found)
        settings = chain_settings(self.recipe.chain) if self.recipe.chain else self.recipe.settings
        resolver = Resolver(self.recipe, chosen, settings, self.found)
        if self.recipe.dialect == "cuvee":
            self.found += resolver.strangers()
        self._check_slices(chosen, arrangement)
        tensors = [
            t for target in arrangement.targets if (t := self._tensor(target, chosen, resolver, align))
        ]
        self._leftovers(resolver, views, arrangement)
        raise_if(self.found)
        return self._finished(chosen, views, donor, align, arrangement, tensors)

    def _donor(self, views: Mapping[str, View]) -> View:
        """The view whose config and files the output starts from: the base, else the first source."""
        base = self.recipe.base
        return views[base] if base is not None and base in views else next(iter(views.values()))

    def _check_slices(self, chosen: Chosen, arrangement: Arrangement) -> None:
        """What the method asks of its inputs, checked once for each slice."""
        told: set[int] = set()
        for target in arrangement.targets:
            if target.copied or id(target.slice) in told:
                continue
            told.add(id(target.slice))
            self.found += slice_problems(chosen, self.recipe, target)
        raise_if(self.found)

    def _tensor(
        self, target: Target, chosen: Chosen, resolver: Resolver, align: Realigner
    ) -> OutputTensor | None:
        fed = feed(target, chosen, self.recipe, align, self.found)
        if fed is None:
            return None
        self.untied |= fed.untied
        inputs = fed.metas
        stored = self._stored(fed.kept)
        compute = arithmetic(self.recipe, inputs)
        if not all(m.dtype.is_float for m in inputs):
            return self._integers(target, fed)
        if target.copied or fed.alone or not fed.experts:  # nothing to merge: the only model is the base
            node = as_dtype(fed.nodes[0], inputs[0].dtype, compute)
            return self._output(target, node, fed.shape, stored, compute, {})
        nodes = [
            as_dtype(n, m.dtype, compute) for n, m in zip(fed.expert_nodes, fed.expert_metas, strict=True)
        ]
        base = (
            as_dtype(fed.base_node, fed.base_meta.dtype, compute) if fed.base_node and fed.base_meta else None
        )
        labels = [f.input.source for f in fed.experts]
        call = Call(self._place(target), labels, self.recipe.seed, self.prefix)
        ready = self.ready[target.name] = Ready(target, fed, stored, compute, nodes, base, call)
        values = resolver.values(target, fed.experts)
        return None if values is None else self.merged(ready, chosen, values)

    def merged(self, ready: Ready, chosen: Chosen, values: Values) -> OutputTensor:
        """The output tensor with these values of the parameters."""
        stored, compute = ready.stored, ready.compute
        node = expression(chosen, dict(values.ours), ready.experts, ready.base, ready.call)
        if compute not in (FLOAT32, FLOAT64) and stored != compute:
            node = Convert(node, compute)  # a wider output does not get digits that the arithmetic has not
        return self._output(ready.target, node, ready.fed.shape, stored, compute, values.shown)

    def _place(self, target: Target) -> Place:
        where = target.place
        count, heads = self.layers.get(where.module, 0), self.heads.get(where.module)
        return Place(target.name, where.role, where.layer, count, heads)

    def _output(
        self,
        target: Target,
        node: Node,
        shape: tuple[int, ...],
        stored: DType,
        compute: DType,
        shown: Mapping[str, object],
    ) -> OutputTensor:
        place = target.place
        simplest = apply_rules(node, stored)
        off = self.options.rules_off
        meta = TensorMeta(target.name, stored, shape)
        return OutputTensor(
            meta,
            apply_rules(node, stored, off) if off else simplest,
            place.module,
            place.layer,
            place.role,
            compute,
            shown,  # type: ignore[arg-type]
            simplest if off else None,
        )

    def _integers(self, target: Target, fed: Fed) -> OutputTensor | None:
        """Integer and boolean tensors are copied: from the base or first model, or after a check that all agree."""
        if problem := kinds_differ(target, fed):
            self.found.append(problem)
            return None
        if self.recipe.differing_buffers == "error" and len(fed.nodes) > 1:
            labels = tuple(f.input.source for f in fed.feeds)
            node: Node = Agree(tuple(fed.nodes), labels)
        else:
            node = fed.nodes[copied_of(fed)]
        meta = fed.metas[copied_of(fed)]
        return self._output(target, node, fed.shape, meta.dtype, meta.dtype, {})

    def _stored(self, kept: Sequence[DType]) -> DType:
        wanted = self.recipe.output.dtype or self.recipe.compute
        return BY_NAME[wanted] if wanted else promoted(list(kept))

    def _leftovers(self, resolver: Resolver, views: Mapping[str, View], arrangement: Arrangement) -> None:
        """Rules and sources that nothing came of: errors in Cuvée's recipes, warnings in MergeKit's."""
        severity = "error" if self.recipe.dialect == "cuvee" else "warning"
        for rule in resolver.unused():
            by_block = ", ".join(rule.blocks) or (isinstance(rule.value, BlockValues) and "blocks")
            shown = rule.name or ", ".join(rule.roles) or rule.module or by_block or "layers"
            message = f"the filter `{printable(str(shown))}` matches no tensor that is merged"
            self.found.append(Diagnostic("CV-P021", message, rule.where, severity=severity))  # type: ignore[arg-type]
        used = {f.input.source for t in arrangement.targets for f in t.feeds} | {self.recipe.base}
        used |= {name for spec in self.recipe.sources.values() for _, name in getattr(spec, "terms", ())}
        for rule_model in self.recipe.vocabulary.tokens.values() if self.recipe.vocabulary else ():
            used.add(rule_model.source)
        if self.recipe.vocabulary:
            used.add(self.recipe.vocabulary.source)
        for alias in views:
            if alias not in used and self.recipe.dialect == "cuvee":
                where = getattr(self.recipe.sources[alias], "where", None)
                self.found.append(
                    Diagnostic("CV-P026", f"the source `{printable(alias)}` is never used", where)
                )

    def _finished(
        self,
        chosen: Chosen,
        views: Mapping[str, View],
        donor: View,
        align: Realigner,
        arrangement: Arrangement,
        tensors: list[OutputTensor],
    ) -> Plan:
        self._unique(tensors)
        metas = [t.meta for t in tensors]
        facts = Facts(arrangement.layers, self.untied, metas)
        extras: Companions = companions(self.recipe, views, donor, donor.family, align, facts)
        raise_if(self.found)
        layout = _layout(donor.config, metas, self.recipe.output.shard_bytes)
        nested = tuple(view.plan for view in views.values() if view.plan is not None)
        self.found += integers_copied(tensors)
        self.found += [*kept_note(tensors), *matrices_lacking(tensors)]
        self.found += factors_lacking(chosen, self.recipe, tensors, self.opener.opened)
        self.found += thresholds_apart(tensors, {name for plan in nested for name in plan.groups()})
        notes = (*self.recipe.notes, *_distinct(self.found), *align.notes, *extras.notes)
        return Plan(
            recipe=self.recipe,
            sources=self._opened(views),
            tensors=tuple(tensors),
            layout=layout,
            family=donor.family,
            donor=donor.alias,
            config=extras.config,
            side_files=extras.files,
            notes=notes,
            method_label=self.recipe.method or chosen.method.summary,
            nested=nested,
        )

    def _opened(self, views: Mapping[str, View]) -> dict[str, Opened]:
        families: dict[str, Family] = {v.key: v.family for v in views.values() if v.key}
        paths = self.opener.paths
        return {k: Opened(k, s, families.get(k), paths.get(k, ())) for k, s in self.opener.opened.items()}

    def _unique(self, tensors: Iterable[OutputTensor]) -> None:
        seen: set[str] = set()
        for tensor in tensors:
            if tensor.meta.name in seen:
                message = f"two output tensors would be named `{printable(tensor.meta.name)}`"
                self.found.append(Diagnostic("CV-P027", message))
            seen.add(tensor.meta.name)
        raise_if(self.found)


def _layout(config: Mapping[str, Any] | None, metas: list[TensorMeta], limit: int | None) -> Layout:
    """One folder of weights, or one for each component of a pipeline, under the names its library looks for."""
    if config is None or not is_pipeline(config):
        return plan_layout(metas, max_shard_bytes=limit, stem=stem_of(config or {}))
    parts = dict.fromkeys(meta.name.partition(".")[0] for meta in metas)
    stems = {part: stem_of(config[COMPONENTS].get(part, {})) for part in parts}
    return plan_parts(metas, stems, max_shard_bytes=limit)


def slice_problems(chosen: Chosen, recipe: Recipe, target: Target) -> list[Diagnostic]:
    """What is wrong with the inputs of a slice for this method."""
    part = target.slice
    where = part.where
    names = [i.source for i in part.inputs]
    name = chosen.method.name
    out: list[Diagnostic] = []
    out += [
        Diagnostic("CV-P033", f"`{printable(twice)}` is listed twice as an input", where)
        for twice in sorted({n for n in names if names.count(n) > 1})
    ]
    base = part.base or recipe.base
    present = base is not None and base in names
    if chosen.base == "required" and not present:
        what = (
            "needs a base model" if base is None else f"needs its base `{printable(base)}` among the inputs"
        )
        hint = "set `base`" if recipe.dialect == "cuvee" else "set `base_model`"
        out.append(Diagnostic("CV-P034", f"`{name}` {what}", where, hint if base is None else None))
        return out
    apart = chosen.base != "ordinary" and present
    count = len(names) - apart
    least, most = chosen.inputs
    if count < least or (most is not None and count > most):
        wanted = (
            f"exactly {least}"
            if least == most
            else f"at least {least}"
            if count < least
            else f"at most {most}"
        )
        besides = " besides the base" if apart else ""
        plural = "" if wanted.endswith(" 1") else "s"
        out.append(
            Diagnostic("CV-P035", f"`{name}` takes {wanted} model{plural}{besides}, got {count}", where)
        )
    return out


def _distinct(notes: Iterable[Diagnostic]) -> list[Diagnostic]:
    return list(dict.fromkeys(notes))


__all__ = ["Feed", "PlanOptions", "build", "slice_problems"]
