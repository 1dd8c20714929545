"""Recipes whose output is a package: a method that restores one expert, asked to restore every one.

Owns which methods can be stored as packages, and how their recipes are read. Must not know codecs or files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cuvee.errors import Diagnostic, RecipeError, Where
from cuvee.methods.registry import get, stage
from cuvee.recipe.model import Input, PackageOutput, Recipe, Rule

RESTORING = ("tall_masks", "emr_expert", "tsv_c", "reversible_merging", "restore_expert")  # combine stages
METHODS = ("tall_masks", "emr", "tsv_c", "reversible_merging", "onebit")
_IN_PACKAGES: Mapping[str, str] = {"emr": "emr_expert"}  # names that mean another method elsewhere


def packaged_method(name: str) -> str:
    """The method that a name means where the output is a package."""
    return _IN_PACKAGES.get(name, name)


def stored_stage(recipe: Recipe) -> str | None:
    """The stage of the recipe's chain that restores one expert of several; None where there is none."""
    names = (
        [step.stage for step in get(recipe.method).steps]
        if recipe.method
        else [c.stage for c in recipe.chain]
    )
    combine = next((n for n in names if stage(n).role == "combine"), None)
    last = bool(names) and names[-1] == combine
    return combine if last and combine in RESTORING else None


def packaged(recipe: Recipe, where: Where | None = None) -> Recipe:
    """The recipe with the first expert as the one restored, which a package's writer goes beyond; the rest is equal.

    RecipeError where the method does not restore experts, or layers are rearranged.
    """
    problem = _problem(recipe)
    if problem is not None:
        message, hint = problem
        raise RecipeError("CV-R180", message, where=where, hint=hint)
    (module,) = recipe.modules.values()
    (part,) = module.slices
    first = next(one for one in part.inputs if one.source != recipe.base)
    flag = {"restore": (Rule(True),)}
    inputs = tuple(
        replace(one, settings={**one.settings, **flag}) if one is first else one for one in part.inputs
    )
    modules = {"*": replace(module, slices=(replace(part, inputs=inputs),))}
    return replace(recipe, modules=modules)


def tasks_of(recipe: Recipe) -> tuple[str, ...]:
    """The experts of a package's recipe, in order."""
    return tuple(one.source for one in _inputs(recipe) if one.source != recipe.base)


def problem_of(recipe: Recipe, where: Where | None) -> Diagnostic | None:
    """What keeps a recipe from being written as a package."""
    found = _problem(recipe)
    return Diagnostic("CV-R180", found[0], where, found[1]) if found else None


def _inputs(recipe: Recipe) -> tuple[Input, ...]:
    return recipe.modules["*"].slices[0].inputs


def _problem(recipe: Recipe) -> tuple[str, str | None] | None:
    if stored_stage(recipe) is None:
        named = f"`{recipe.method}`" if recipe.method else "this chain"
        shown = ", ".join(f"`{name}`" for name in METHODS)
        return (
            f"{named} cannot be written as a package",
            f"{shown} can, and chains that end in `restore_expert`",
        )
    slices = recipe.modules["*"].slices if set(recipe.modules) == {"*"} else ()
    whole = len(slices) == 1 and all(one.layers is None for one in slices[0].inputs)
    if not whole:
        return (
            "a package holds whole models, so it cannot be made of runs of layers or of single modules",
            None,
        )
    if "restore" in _given(recipe):
        return "a package restores every expert, so `restore` has no place in its recipe", None
    return None


def _given(recipe: Recipe) -> Mapping[str, Any]:
    every = [recipe.settings, *(c.settings for c in recipe.chain), *(one.settings for one in _inputs(recipe))]
    return {name: value for settings in every for name, value in settings.items()}


__all__ = [
    "METHODS",
    "PackageOutput",
    "packaged",
    "packaged_method",
    "problem_of",
    "stored_stage",
    "tasks_of",
]
