"""Packages in Python: writing one, naming its tasks, saying what it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.api.blend import Blend
from cuvee.api.package_out import PackageSaved, save_package
from cuvee.api.python_recipe import recipe_from
from cuvee.core.limits import DEFAULT
from cuvee.core.names import printable
from cuvee.engine.events import Listener, ignore
from cuvee.errors import UsageError
from cuvee.recipe.model import PackageOutput
from cuvee.recipe.packaging import packaged, packaged_method
from cuvee.sources.package import is_package, summary
from cuvee.sources.reference import fragment

if TYPE_CHECKING:
    from cuvee.engine.options import RunOptions


def save_as_package(
    models: Sequence[Any] | Mapping[str, Any],
    out: str | Path,
    *,
    base: Any,
    method: str | Sequence[Any] = "emr",
    include_base: bool = False,
    out_dtype: Any = None,
    overwrite: bool = False,
    offline: bool = False,
    run: RunOptions | None = None,
    listener: Listener = ignore,
    **parameters: Any,
) -> PackageSaved:
    """Write several models as one package; each is a task, which `cuvee.open("PACKAGE#TASK")` gives back.

    Args:
        models: the fine-tuned models, as a list or by name; the names are those of the tasks.
        out: the folder to write.
        base: their common ancestor.
        method: `tall_masks`, `emr`, `tsv_c`, `reversible_merging`, `onebit`, or a chain of conditions that ends in
            `restore_expert`, such as `[("trim", {"density": 0.1}), "restore_expert"]`.
        include_base: put the base into the package; it must be where neither path nor repository names it.
        out_dtype: of vectors, factors and bases; that of the arithmetic when not given.
        parameters: of the method.

    Raises:
        RecipeError: CV-R180, the method cannot be written as a package.
        PlanError: CV-P180, CV-P181.
    """
    named = packaged_method(method) if isinstance(method, str) else method
    recipe = recipe_from(models, base, named, parameters, {"out_dtype": out_dtype})
    form = PackageOutput(include_base)
    recipe = packaged(replace(recipe, output=replace(recipe.output, package=form)))
    plan = Blend(recipe, offline=offline).build()
    try:
        return save_package(plan, Path(out), form, run, overwrite=overwrite, listener=listener)
    finally:
        plan.close()


def task_reference(package: str, tasks: Sequence[str], base: str | None = None) -> str:
    """How a recipe names tasks written `name` or `name=weight`: `./pack#math`."""
    chosen = []
    for text in tasks:
        name, given, value = text.rpartition("=")
        try:
            chosen.append((name, float(value)) if given else (text, 1.0))
        except ValueError:
            chosen.append((text, 1.0))  # a name with `=` in it
    if len({name for name, _ in chosen}) < len(chosen):
        shown = ", ".join(f"`{printable(text)}`" for text in tasks)
        raise UsageError(
            "CV-U180", f"a task is named twice: {shown}", hint="give each task once, with its weight"
        )
    return f"{package}#{fragment(chosen, base)}"


def package_summary(folder: str | Path) -> dict[str, Any] | None:
    """What a package holds (schema `cuvee.package/1`), or None where the folder is none."""
    path = Path(folder)
    return {**summary(path, DEFAULT), "source": str(folder)} if is_package(path) else None
