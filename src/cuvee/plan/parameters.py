"""Values of a method's parameters for one output tensor, with where each came from; and rules that matched nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cuvee.core.names import printable
from cuvee.errors import Diagnostic, Where
from cuvee.methods.registry import stage
from cuvee.plan.arrangement import Feed, Target
from cuvee.plan.methods import Chosen, Slot
from cuvee.recipe.model import BlockValues, ModuleRecipe, Recipe, Rule, Setting, Settings, Slice
from cuvee.recipe.settings import Resolved, Spot, applies, resolve


@dataclass(frozen=True, slots=True)
class Values:
    """Our parameter values (a list for one value per expert), and the display form with origins."""

    ours: Mapping[str, Any]
    shown: Mapping[str, Resolved | Mapping[str, Resolved]]


@dataclass(slots=True)
class Resolver:
    """Resolves parameters of one recipe; remembers which rules were ever used and tells each problem once."""

    recipe: Recipe
    chosen: Chosen
    shared: Settings
    found: list[Diagnostic]
    used: set[int] = field(default_factory=set)
    told: set[tuple[str, str]] = field(default_factory=set)
    blocked: set[int] = field(default_factory=set)  # rules by block that met one

    def values(self, target: Target, experts: Sequence[Feed]) -> Values | None:
        """Values for one output tensor; None (and diagnostics) when one is missing or not allowed."""
        before = len(self.found)
        ours: dict[str, Any] = {}
        shown: dict[str, Resolved | Mapping[str, Resolved]] = {}
        lacking = False
        for slot in self.chosen.slots:
            if slot.scope == "shared":
                one = self._one(slot, target, None)
                if one is None:
                    lacking = True
                    continue
                shown[slot.name] = one
                if slot.ours:
                    ours[slot.ours] = self._typed(slot.ours, slot.translate(one.value))
                self._clamped(slot, one)
                continue
            found = {feed.input.source: self._one(slot, target, feed) for feed in experts}
            each = {source: value for source, value in found.items() if value is not None}
            lacking |= len(each) < len(found)
            shown[slot.name] = each
            for value in each.values():
                self._clamped(slot, value)
            if slot.ours:
                ours[slot.ours] = [self._typed(slot.ours, slot.translate(r.value)) for r in each.values()]
        if lacking:  # said already, perhaps at an earlier tensor
            return None
        self._check(ours, target, shown)
        if len(self.found) == before:
            self._fit(ours, target, shown, len(experts))
        wrong = any(one.severity == "error" for one in self.found[before:])
        return None if wrong else Values(ours, shown)

    def _clamped(self, slot: Slot, given: Resolved) -> None:
        """Warn, once for each place, of a value that acts as the nearest one that makes sense."""
        value, place = given.value, (slot.name, str(given.where))
        low, high = (slot.spelling.clamp if slot.spelling else None) or (-math.inf, math.inf)
        if isinstance(value, (str, bool)) or value is None or high == math.inf or low <= value <= high:
            return
        if place in self.told:
            return
        self.told.add(place)
        acts = low if value < low else high
        message = f"`{slot.name}` {value:g} is out of range [{low:g}, {high:g}]; it acts as {acts:g}, as in MergeKit"
        percent = f"did you mean `{value / 100:g}`?" if high == 1 and 2 <= value <= 100 else None
        self.found.append(Diagnostic("CV-P100", message, given.where, percent, severity="warning"))

    def _typed(self, name: str, value: Any) -> Any:
        """A whole number of a curve as a whole number, where the parameter is one."""
        parameter = self.chosen.parameters.get(name)
        whole = parameter is not None and parameter.type == "int" and isinstance(value, float)
        return int(value) if whole and value.is_integer() else value

    def strangers(self) -> Iterator[Diagnostic]:
        """Values of models and slices under names that the method has not; they would be ignored."""
        slots = {slot.own or slot.name for slot in self.chosen.slots}
        told: dict[str, Diagnostic] = {}
        for module in self.recipe.modules.values():
            for part in module.slices:
                for settings in (module.settings, part.settings, *(one.settings for one in part.inputs)):
                    for name in sorted(settings.keys() - slots):
                        told.setdefault(name, self._stranger(name, settings[name], slots))
        yield from told.values()

    def _stranger(self, name: str, setting: Setting, slots: set[str]) -> Diagnostic:
        where = next((rule.where for rule in setting), None)
        several = sorted(slot for slot in slots if slot.endswith(f".{name}"))
        message = f"`{self.chosen.method.name}` has no parameter `{printable(name)}`"
        if several:
            message = f"`{printable(name)}` belongs to {len(several)} stages of this chain"
        meant = f"write {' or '.join(f'`{slot}`' for slot in several)}" if several else None
        return Diagnostic("CV-R007", message, where, meant)

    def _one(self, slot: Slot, target: Target, feed: Feed | None) -> Resolved | None:
        # MergeKit's filters look at a model's own name of a tensor, Cuvée's at the output's.
        theirs = feed is not None and self.recipe.dialect == "mergekit"
        spot = _spot(target, feed.name if feed and theirs else target.name)
        levels: list[Setting | None] = [feed.input.settings.get(slot.own or slot.name)] if feed else []
        levels += [
            target.slice.settings.get(slot.own or slot.name),
            target.module.settings.get(slot.own or slot.name),
            self.shared.get(slot.name),
        ]
        self._mark(levels, spot)
        value = resolve(levels, spot)
        if value is not None and (value.value is not None or self._takes_nothing(slot)):
            return value
        if slot.required:
            self._missing(slot, target, feed)
            return None
        return Resolved(slot.default, "default")

    def _takes_nothing(self, slot: Slot) -> bool:
        """Whether null is a value of its own: the parameter allows it, and has another default."""
        parameter = self.chosen.parameters.get(slot.ours or "")
        own = self.recipe.dialect == "cuvee" and slot.default is not None
        return own and parameter is not None and parameter.optional

    def _mark(self, levels: list[Setting | None], spot: Spot) -> None:
        """Every rule that applies is used, also where a more specific one wins: it is not a mistake."""
        for setting in levels:
            for rule in setting or ():
                if id(rule) not in self.used and applies(rule, spot):
                    self.used.add(id(rule))
                if spot.block is not None and isinstance(rule.value, BlockValues):
                    self.blocked.add(id(rule))

    def _missing(self, slot: Slot, target: Target, feed: Feed | None) -> None:
        who = f" of `{printable(feed.input.source)}`" if feed else ""
        key = (slot.name, who)
        if key in self.told:
            return
        self.told.add(key)
        message = f"`{self.chosen.method.name}` needs `{slot.name}`{who}; there is none for `{printable(target.name)}`"
        where = (feed.input.where if feed else None) or target.slice.where or Where(file=self.recipe.file)
        hint = f"add `{slot.name}` to the model's parameters, or to the recipe's for all" if feed else None
        if feed and feed.input.source == self.recipe.base and self.recipe.dialect == "mergekit":
            hint = (
                f"`{self.chosen.method.name}` merges `base_model` as one model more: leave it out, or list it under "
                f"`models` with a `{slot.name}`"
            )
        self.found.append(Diagnostic("CV-P030", message, where, hint))

    def _check(self, ours: dict[str, Any], target: Target, shown: Mapping[str, Any]) -> None:
        by_ours = {slot.ours: slot.name for slot in self.chosen.slots if slot.ours}
        for name, value in ours.items():
            parameter = self.chosen.parameters.get(name)
            for one in value if isinstance(value, list) else [value]:
                problem = parameter.problem(one) if parameter is not None else None
                if problem:
                    self._tell(
                        "CV-P031",
                        f"`{by_ours.get(name, name)}` {problem}",
                        target,
                        shown.get(by_ours.get(name, name)),
                    )
        for step, arguments in zip(self.chosen.method.steps, self.chosen.arguments(ours), strict=True):
            for scalar in _scalars(step.stage, arguments):
                problem = stage(step.stage).problem(scalar)
                if problem:
                    self._tell("CV-P032", problem, target, None)

    def _fit(self, ours: dict[str, Any], target: Target, shown: Mapping[str, Any], count: int) -> None:
        """Values that were given and do not go with so many models."""
        for step, arguments in zip(self.chosen.method.steps, self.chosen.arguments(ours), strict=True):
            fits = stage(step.stage).fits
            wrong = fits(arguments, count) if fits else None
            if wrong is None:
                continue
            own = step.names.get(wrong[0], wrong[0])
            given = shown.get(next((s.name for s in self.chosen.slots if s.ours == own), own))
            if isinstance(given, Resolved) and given.origin != "default":
                self._tell("CV-P337", f"`{wrong[0]}` {wrong[1]}", target, given)

    def _tell(self, code: str, message: str, target: Target, origin: Any) -> None:
        if (code, message) in self.told:
            return
        self.told.add((code, message))
        resolved = origin if isinstance(origin, Resolved) else next(iter((origin or {}).values()), None)
        where = resolved.where if resolved else None
        self.found.append(
            Diagnostic(code, f"{message} (for `{printable(target.name)}`)", where or target.slice.where)
        )

    def unused(self) -> list[Rule]:
        """Rules with a condition that no tensor met."""
        every: list[Rule] = [rule for setting in self.shared.values() for rule in setting]
        for module in self.recipe.modules.values():
            every += _rules_of(module)
        idle = [r for r in every if id(r) not in self.used and _conditional(r)]
        return idle + [r for r in every if isinstance(r.value, BlockValues) and id(r) not in self.blocked]


def _spot(target: Target, name: str) -> Spot:
    place = target.place
    depth = target.depth if place.block is None else place.block.depth
    return Spot(name, place.role, place.module, place.layer, depth, place.block)


def _scalars(name: str, arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The argument sets a stage's check sees: one for each expert in condition stages, else the lists themselves."""
    lists = [v for v in arguments.values() if isinstance(v, list)]
    if stage(name).role != "condition" or not lists:
        return [dict(arguments)]
    return [
        {k: v[i] if isinstance(v, list) else v for k, v in arguments.items()} for i in range(len(lists[0]))
    ]


def _conditional(rule: Rule) -> bool:
    named = rule.name is not None and rule.name != "*"
    limited = rule.layers is not None or rule.module is not None or bool(rule.blocks)
    return named or bool(rule.roles) or limited


def _rules_of(module: ModuleRecipe) -> list[Rule]:
    rules = [rule for setting in module.settings.values() for rule in setting]
    for part in module.slices:
        rules += _rules_of_slice(part)
    return rules


def _rules_of_slice(part: Slice) -> list[Rule]:
    settings = [part.settings, *(one.settings for one in part.inputs)]
    return [rule for each in settings for setting in each.values() for rule in setting]
