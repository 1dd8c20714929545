"""The arguments of a call that are held while parameters change: models, base, method, and the parameters so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cuvee.api.python_recipe import named, recipe_from
from cuvee.core.names import did_you_mean, printable
from cuvee.errors import UsageError
from cuvee.methods.registry import get, parameters_for
from cuvee.recipe.layouts import LAYOUTS
from cuvee.recipe.model import Recipe


@dataclass(frozen=True, slots=True)
class Models:
    """What `cuvee.hold` was given; `parameters` are the values where a candidate does not say otherwise."""

    models: Sequence[Any] | Mapping[str, Any]
    base: Any
    method: str | Mapping[str, Any] | Sequence[Any]
    parameters: Mapping[str, Any]
    options: Mapping[str, Any]

    def recipe(self, changes: Mapping[str, Any]) -> Recipe:
        """The recipe with some parameters changed; RecipeError for unknown or impossible ones."""
        method, parameters = named(self.method, self.parameters)
        if isinstance(method, str):
            known = {} if method in LAYOUTS else parameters_for(get(method))
            own = {p.argument: name for name, p in known.items()} | {name: name for name in known}
            values = {own.get(k, k): v for k, v in parameters.items()}
            values |= {own.get(k, k): v for k, v in changes.items()}
            return recipe_from(self.models, self.base, method, values, self.options)
        return recipe_from(self.models, self.base, _chain(method, changes), parameters, self.options)


def _chain(method: Sequence[tuple[str, Mapping[str, Any]]], changes: Mapping[str, Any]) -> list[Any]:
    """The chain with `stage.parameter` values changed; UsageError where there is no such stage."""
    calls = [(name, dict(values)) for name, values in method]
    names = [name for name, _ in calls]
    for key, value in changes.items():
        name, _, parameter = key.partition(".")
        if name not in names or not parameter:
            hint = did_you_mean(name, names) or "write `stage.parameter`"
            raise UsageError("CV-U221", f"the chain has no parameter `{printable(key)}`", hint=hint)
        for one, values in calls:
            if one == name:
                values[parameter] = value
    return calls
