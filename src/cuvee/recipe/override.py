"""`--set key=value`: shared parameters of a recipe changed from the command line."""

from __future__ import annotations

from dataclasses import replace

from cuvee.core.names import did_you_mean, printable
from cuvee.errors import RecipeError, UsageError
from cuvee.methods.parameters import Parameter
from cuvee.methods.registry import get, parameters_for
from cuvee.recipe.coerce import Refused, coerce
from cuvee.recipe.document import parse_documents
from cuvee.recipe.model import Curve, ModuleRecipe, Recipe, Rule, Scalar, Settings


def overridden(recipe: Recipe, changes: list[str]) -> Recipe:
    """The recipe with each `name=value` as the value of that parameter for every tensor and model.

    A list is a curve over the layers. `merge.density` may be written for `density`.
    """
    if not changes:
        return recipe
    if recipe.method is None:
        raise UsageError("CV-U005", "`--set` works on recipes that name a method, not on chains of stages")
    method = get(recipe.method)
    known = parameters_for(method)
    dialect = method.dialects.get(recipe.dialect)
    settings = dict(recipe.settings)
    for change in changes:
        _, equals, text = change.partition("=")
        name = _named(change)
        spelling = dialect.spelling(name) if dialect else None
        if not equals:
            raise UsageError("CV-U005", f"`--set {printable(change)}` is not of the form `name=value`")
        if (dialect is None and name not in known) or (dialect is not None and spelling is None):
            hint = did_you_mean(name, dialect.names if dialect else known)
            raise RecipeError("CV-R007", f"`{method.name}` has no parameter `{printable(name)}`", hint=hint)
        documents = parse_documents(text)
        value = documents[0].data if documents else None
        points = value if isinstance(value, list) else [value]
        checked = [_checked(v, known.get(name), spelling.type if spelling else None, name) for v in points]
        rule = Rule(Curve(tuple(checked)) if isinstance(value, list) else checked[0])
        settings[name] = (rule,)
    names = frozenset(_named(change) for change in changes)
    modules = {key: _without(module, names) for key, module in recipe.modules.items()}
    return replace(recipe, settings=settings, modules=modules)


def _named(change: str) -> str:
    return change.partition("=")[0].strip().removeprefix("merge.").removeprefix("parameters.")


def _without(module: ModuleRecipe, names: frozenset[str]) -> ModuleRecipe:
    """The module without the more specific values of these parameters, which would win over the given one."""

    def kept(settings: Settings) -> Settings:
        return {name: setting for name, setting in settings.items() if name not in names}

    slices = tuple(
        replace(
            part,
            settings=kept(part.settings),
            inputs=tuple(replace(one, settings=kept(one.settings)) for one in part.inputs),
        )
        for part in module.slices
    )
    return ModuleRecipe(slices, kept(module.settings))


def _checked(value: Scalar, parameter: Parameter | None, kind: str | None, name: str) -> Scalar:
    if kind is not None:
        try:
            return coerce(value, kind)  # type: ignore[arg-type]
        except Refused as error:
            raise RecipeError("CV-R010", f"`{name}` {error}, got `{printable(str(value))}`") from None
    wrong = parameter.problem(value) if parameter else None
    if wrong:
        raise RecipeError("CV-R010", f"`{name}` {wrong}")
    return value
