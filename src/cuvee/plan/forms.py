"""Diffusion models of several forms in one recipe: all are put under the names of the output's.

A model lies in one file under its original names, or in a pipeline's folder. The output has the form of the base
(else of the first source), unless the recipe names a form or a pipeline to be like; sources in the other form are
read through `sources.single_file`. Knows names, not values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cuvee.bundle.pipeline import is_pipeline
from cuvee.core.names import printable
from cuvee.errors import CuveeError, Diagnostic, PlanError
from cuvee.plan.views import Opener, View, source_view
from cuvee.recipe.model import Recipe
from cuvee.sources.single_file import Layout, as_pipeline, as_single, layout_for, layout_of
from cuvee.sources.source import Source

if TYPE_CHECKING:
    from cuvee.sources.mapped import MappedSource


@dataclass(frozen=True, slots=True)
class _Form:
    """What views are put into: a single-file layout as in `tensors`, or the form of a pipeline."""

    layout: Layout | None = None
    model: View | None = None  # whose spelling (prefixes, names) is taken over
    pipeline: Source | None = None


def one_form(
    recipe: Recipe, views: Mapping[str, View], opener: Opener, found: list[Diagnostic]
) -> dict[str, View]:
    """The views, all in the form of the output; components that a pipeline of that form lacks are left out."""
    out = dict(views)
    if not views:
        return out
    donor = views.get(recipe.base or "") or next(iter(views.values()))
    try:
        form = _form(recipe, donor, opener)
        for alias, view in views.items():
            out[alias] = _put(view, form, opener)
    except CuveeError as error:
        found += error.diagnostics
        return out
    first = out[donor.alias]
    if is_pipeline(first.config):
        out = {alias: _within(view, first, found) for alias, view in out.items()}
        found += _lacking(recipe, out, first)
    return out


def _form(recipe: Recipe, donor: View, opener: Opener) -> _Form:
    like, wanted = recipe.output.like, recipe.output.form
    if like is not None:
        source = opener.source("like", like, recipe)
        if not is_pipeline(source.config):
            raise PlanError(
                "CV-P152", f"`output.like` must be a pipeline's folder, and `{printable(like.text)}` is none"
            )
        return _Form(pipeline=source)
    if wanted == "single_file" and is_pipeline(donor.config):
        layout = layout_for(donor.config or {})
        if layout is None:
            kind = printable(str((donor.config or {}).get("_class_name")))
            raise PlanError("CV-P153", f"there is no single-file form of `{kind}` that is known")
        return _Form(layout)
    if is_pipeline(donor.config):
        return _Form(pipeline=None if donor.key is None else opener.opened[donor.key], model=donor)
    return _Form(layout_of(donor.tensors), donor)


def _put(view: View, form: _Form, opener: Opener) -> View:
    """The view in the form that is asked for; itself where it is in that form already."""
    if is_pipeline(view.config):
        if form.layout is None:
            return view
        like = form.model.tensors if form.model is not None else None
        return _renamed(view, as_single(_source(view, opener), form.layout, like), opener)
    layout = layout_of(view.tensors) if form.layout is None else None
    if layout is None or view is form.model:
        return view
    if form.pipeline is None:
        raise _made_by_recipe(form.model or view)
    return _renamed(view, as_pipeline(_source(view, opener), layout, form.pipeline), opener)


def _source(view: View, opener: Opener) -> Source:
    if view.key is None:
        raise _made_by_recipe(view)
    return opener.opened[view.key]


def _made_by_recipe(view: View) -> PlanError:
    return PlanError(
        "CV-P150",
        f"`{printable(view.alias)}` is made by a recipe, so its weights cannot be put under other names here",
        hint="let all models of the inner recipe be of the form of the outer one",
    )


def _renamed(view: View, source: MappedSource, opener: Opener) -> View:
    """The view of a source under other names, which takes the old one's place among those opened."""
    assert view.key is not None
    opener.opened[view.key] = source
    return source_view(view.alias, view.key, source)


def _lacking(recipe: Recipe, views: Mapping[str, View], donor: View) -> list[Diagnostic]:
    """Components to merge that some model has not."""
    every = _components(donor)
    wanted = every if "*" in recipe.modules else [part for part in every if part in recipe.modules]
    out = []
    for view in views.values():
        absent = [part for part in wanted if part not in _components(view)]
        if absent:
            shown = ", ".join(f"`{printable(part)}`" for part in absent)
            rest = ", ".join(f"{part}: {{}}" for part in wanted if part not in absent)
            message = f"`{printable(view.alias)}` has no {shown}, so it cannot be merged"
            hint = (
                f"write `modules: {{{rest}}}` to merge the rest; what is left out is copied" if rest else None
            )
            out.append(Diagnostic("CV-P155", message, hint=hint))
    return out


def _components(view: View) -> list[str]:
    return list(dict.fromkeys(name.partition(".")[0] for name in view.tensors))


def _within(view: View, donor: View, found: list[Diagnostic]) -> View:
    """The view without components that the output does not have."""
    have = _components(donor)
    extra = [part for part in _components(view) if part not in have]
    if not extra:
        return view
    shown = ", ".join(f"`{printable(part)}`" for part in extra)
    who, whose = printable(view.alias), printable(donor.alias)
    message = f"{shown} of `{who}` is left out: `{whose}` has no such component"
    found.append(Diagnostic("CV-P151", message, severity="note"))
    return replace(view, tensors={n: m for n, m in view.tensors.items() if n.partition(".")[0] in have})
