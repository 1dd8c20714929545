"""Plans that differ from one another in values of parameters alone: a search makes thousands of them.

Sources are opened, the output is arranged and inputs are matched once; a further plan resolves parameters and writes
expressions, of the same nodes as the last one where they say the same. Must not read a weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from cuvee.errors import Diagnostic
from cuvee.plan.arrangement import Feed
from cuvee.plan.build import Builder, PlanOptions, Ready, builder
from cuvee.plan.methods import Chosen, chain_settings, choose
from cuvee.plan.parameters import Resolver, Values
from cuvee.plan.plan import OutputTensor, Plan
from cuvee.plan.views import Opener, raise_if
from cuvee.recipe.model import BlockValues, Curve, Recipe, Settings


@dataclass(slots=True)
class Variants:
    """The plans of one recipe under other values; `first` is that of the recipe itself."""

    first: Plan
    _builder: Builder
    _chosen: Chosen
    _last: dict[str, tuple[str, OutputTensor]] = field(default_factory=dict)

    def plan(self, recipe: Recipe) -> Plan:
        """The plan of a recipe that has the first one's sources, layout and chain.

        Values of single models are looked up by the model's name, others in the recipe's settings. RecipeError or
        PlanError with all values that are not allowed.
        """
        found: list[Diagnostic] = []
        settings = chain_settings(recipe.chain) if recipe.chain else recipe.settings
        resolver = Resolver(recipe, self._chosen, settings, found)
        if recipe.dialect == "cuvee":
            found += resolver.strangers()
        own = _own(recipe)
        even = all(_even(one) for one in (settings, *own.values()))
        known: dict[tuple[str, ...], tuple[str, Values] | None] = {}
        tensors = []
        for tensor in self.first.tensors:
            ready = self._builder.ready.get(tensor.meta.name)
            made = tensor if ready is None else self._made(ready, resolver, own, known if even else {})
            tensors.append(made or tensor)
        found += [
            Diagnostic("CV-P021", "a filter matches no tensor that is merged", rule.where, severity="error")
            for rule in resolver.unused()
        ]
        raise_if(found)
        return replace(self.first, recipe=recipe, tensors=tuple(tensors))

    def _made(
        self,
        ready: Ready,
        resolver: Resolver,
        own: Mapping[str, Settings],
        known: dict[tuple[str, ...], tuple[str, Values] | None],
    ) -> OutputTensor | None:
        """The tensor with the resolver's values; the last one where they are the same; None where they are wrong.

        `known`: values by the models that have the tensor, where they are the same for every tensor.
        """
        models = tuple(feed.input.source for feed in ready.fed.experts)
        if models not in known:
            values = resolver.values(ready.target, _fed(ready.fed.experts, own))
            known[models] = None if values is None else (repr(values.ours), values)
        found = known[models]
        if found is None:
            return None
        said, values = found
        name = ready.target.name
        before = self._last.get(name)
        if before is None or before[0] != said:
            before = self._last[name] = (said, self._builder.merged(ready, self._chosen, values))
        return before[1]


def variants(recipe: Recipe, opener: Opener, options: PlanOptions | None = None) -> Variants:
    """The recipe, planned so that further plans are cheap; PlanError as for `build`."""
    made = builder(recipe, opener, options)
    return Variants(made.plan(), made, choose(recipe))


def _own(recipe: Recipe) -> dict[str, Settings]:
    """The settings of single models by name."""
    parts = (part for module in recipe.modules.values() for part in module.slices)
    return {one.source: one.settings for part in parts for one in part.inputs if one.settings}


def _fed(experts: Sequence[Feed], own: Mapping[str, Settings]) -> list[Feed]:
    """The inputs of a tensor with the new settings of their models."""
    return [
        replace(feed, input=replace(feed.input, settings=own.get(feed.input.source, {}))) for feed in experts
    ]


def _even(settings: Settings) -> bool:
    """Whether values are the same for every tensor."""
    return all(
        rule.name in (None, "*")
        and not (rule.roles or rule.layers or rule.module or rule.blocks)
        and not isinstance(rule.value, (Curve, BlockValues))
        for setting in settings.values()
        for rule in setting
    )
