"""The arguments of a call that are held while parameters change: models, base, method, and the parameters so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cuvee.api.python_recipe import recipe_from
from cuvee.core.names import did_you_mean, printable
from cuvee.errors import UsageError
from cuvee.methods.registry import get, parameters_for
from cuvee.recipe.model import Recipe


@dataclass(frozen=True, slots=True)
class Models:
    """What `cuvee.hold` was given; `parameters` are the values where a candidate does not say otherwise."""

    models: Sequence[Any] | Mapping[str, Any]
    base: Any
    method: str | Sequence[Any]
    parameters: Mapping[str, Any]
    options: Mapping[str, Any]

    def recipe(self, changes: Mapping[str, Any]) -> Recipe:
        """The recipe with some parameters changed; RecipeError for unknown or impossible ones."""
        if isinstance(self.method, str):
            known = parameters_for(get(self.method))
            own = {p.argument: name for name, p in known.items()} | {name: name for name in known}
            values = {own.get(k, k): v for k, v in self.parameters.items()}
            values |= {own.get(k, k): v for k, v in changes.items()}
            return recipe_from(self.models, self.base, self.method, values, self.options)
        chain = _chain(self.method, changes)
        return recipe_from(self.models, self.base, chain, self.parameters, self.options)


def _chain(method: Sequence[Any], changes: Mapping[str, Any]) -> list[Any]:
    """The chain with `stage.parameter` values changed; UsageError where there is no such stage."""
    calls = [(item, {}) if isinstance(item, str) else (item[0], dict(item[1])) for item in method]
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
