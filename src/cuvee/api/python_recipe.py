"""Arguments of `cuvee.merge` → the same recipe a file would give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any, get_args

from cuvee.core.dtypes import parse_dtype
from cuvee.core.names import did_you_mean, printable
from cuvee.errors import Diagnostic, RecipeError, UsageError, Where
from cuvee.methods.parameters import Parameter
from cuvee.methods.registry import get, parameters_for, stage
from cuvee.recipe.chains import own_names
from cuvee.recipe.curves import SHAPES, DepthsError, knots, written
from cuvee.recipe.document import Document, Path
from cuvee.recipe.layouts import LAYOUTS
from cuvee.recipe.model import (
    Curve,
    InMemory,
    Input,
    ModuleRecipe,
    Names,
    Output,
    Recipe,
    Reference,
    Setting,
    Slice,
    SourceSpec,
    StageCall,
)
from cuvee.recipe.native_settings import ValueReader

BASE = "base"
_NOWHERE = Document(None, "", None, {}, {})


@dataclass(frozen=True, slots=True)
class Given:
    """The models of a call by name, and the base."""

    experts: Mapping[str, Any]
    base: Any


def recipe_from(
    models: Sequence[Any] | Mapping[str, Any],
    base: Any,
    method: str | Mapping[str, Any] | Sequence[Any],
    parameters: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Recipe:
    """A recipe from Python values; RecipeError lists every unknown or impossible parameter."""
    experts = dict(models) if isinstance(models, Mapping) else _named(models)
    if not experts:
        raise UsageError("CV-U010", "`merge` needs at least one model")
    if BASE in experts:
        raise UsageError("CV-U010", "an expert cannot be called `base`; give the base as `base=`")
    sources: dict[str, SourceSpec] = {} if base is None else {BASE: spec_of(base)}
    sources.update({name: spec_of(value) for name, value in experts.items()})
    found: list[Diagnostic] = []
    method, parameters = named(method, parameters)
    if isinstance(method, str) and method in LAYOUTS:
        return _arranged(method, sources, list(experts), parameters, options)
    chosen = get(method) if isinstance(method, str) else None
    calls = [] if isinstance(method, str) else method
    known = parameters_for(chosen) if chosen else {}
    shared, each = _settings(parameters, known, list(experts), chosen.name if chosen else "a chain", found)
    written = own_names([name for name, _ in calls])
    chain = tuple(
        _call(number, call, list(experts), own, each, found)
        for number, (call, own) in enumerate(zip(calls, written, strict=True))
    )
    if found:
        raise RecipeError.collected(found)
    inputs = [Input(name, None, each.get(name, {})) for name in experts]
    if base is not None and (chosen is None or chosen.base != "ordinary"):
        inputs.append(Input(BASE))
    return replace(
        _plain_recipe(sources, inputs, options),
        method=chosen.name if chosen else None,
        chain=chain,
        settings=shared,
    )


def _plain_recipe(
    sources: Mapping[str, SourceSpec], inputs: Sequence[Input], options: Mapping[str, Any]
) -> Recipe:
    """The recipe but for its method."""
    return Recipe(
        sources=sources,
        modules={"*": ModuleRecipe((Slice(tuple(inputs)),))},
        method=None,
        base=BASE if BASE in sources else None,
        compute=_dtype(options.get("dtype"), "dtype"),
        seed=int(options.get("seed") or 0),
        names=_names(options.get("names", "strict")),
        chat_template=options.get("chat_template"),
        vocabulary=options.get("tokenizer"),
        output=Output(
            dtype=_dtype(options.get("out_dtype"), "out_dtype"),
            shard_bytes=options.get("shard_bytes") or 5_000_000_000,
        ),
    )


def _names(asked: Any) -> Names:
    """What happens to tensors that some models lack; UsageError for another word."""
    known: tuple[Names, ...] = get_args(Names)
    if asked in known:
        return known[known.index(asked)]
    said, hint = printable(str(asked)), did_you_mean(str(asked), known)
    raise UsageError("CV-U380", f"`names` is one of {', '.join(known)}, not `{said}`", hint=hint)


def _arranged(
    name: str,
    sources: Mapping[str, SourceSpec],
    experts: Sequence[str],
    parameters: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Recipe:
    """The recipe of a method that arranges layers or models itself; RecipeError with every mistake."""
    layout, found = LAYOUTS[name], list[Diagnostic]()
    values = {}
    for key, value in parameters.items():
        own = "lambda" if key == "lam" and "lambda" in layout.parameters else key
        if own in layout.parameters:
            values[own] = _as_written(value)
            continue
        hint = did_you_mean(key, layout.parameters)
        found.append(Diagnostic("CV-R007", f"`{name}` has no parameter `{printable(key)}`", hint=hint))
    plain = _plain_recipe(sources, [Input(expert) for expert in experts], options)
    made = plain if found else layout.bound(values, _NOWHERE)(plain, found)
    errors = [one for one in found if one.severity == "error"]
    if errors:
        raise RecipeError.collected(errors)
    return replace(made, notes=tuple(found))


def spec_of(value: Any) -> SourceSpec:
    """A path, hub URI, dictionary of tensors, module, recipe or opened checkpoint as a source of a recipe."""
    if isinstance(value, (str, FilePath)):
        return Reference(str(value))
    if isinstance(value, Recipe):
        return value
    inner = getattr(value, "recipe", None) or getattr(value, "spec", None)
    if isinstance(inner, (Recipe, Reference, InMemory)):
        return inner
    return InMemory(value)


def _named(models: Sequence[Any]) -> dict[str, Any]:
    """Names for unnamed models: the last part of a path where that is unique, else `expert_1`, `expert_2`, …"""
    if isinstance(models, str):
        raise UsageError("CV-U010", "`models` must be a list, or a mapping of names to models")
    words = [FilePath(m).name if isinstance(m, (str, FilePath)) else "" for m in models]
    made = {f"expert_{i}" for i in range(1, len(models) + 1)}
    unique = [w if words.count(w) == 1 and w not in {"", BASE, *made} else "" for w in words]
    return {w or f"expert_{i}": m for i, (w, m) in enumerate(zip(unique, models, strict=True), 1)}


def named(
    method: Any, parameters: Mapping[str, Any]
) -> tuple[str | list[tuple[str, Mapping[str, Any]]], Mapping[str, Any]]:
    """A method's name, or the calls of a chain, from every form that `merge:` of a recipe has; and the parameters.

    A chain's stages are written `"trim"`, `("trim", {"density": 0.3})` or `{"trim": {"density": 0.3}}`, a method also
    `{"method": "ties", "density": 0.3}`. RecipeError CV-R010 for anything else.
    """
    if isinstance(method, str):
        return method, parameters
    if isinstance(method, Mapping):
        name = method.get("method")
        if not isinstance(name, str):
            raise RecipeError("CV-R005", "the key `method` is missing", where=Where(path="method"))
        return name, {**{k: v for k, v in method.items() if k != "method"}, **parameters}
    if not isinstance(method, Sequence) or not method:
        message = "`method` must be a method's name, or a list of stages"
        raise RecipeError("CV-R010", message, where=Where(path="method"))
    return [_written_call(number, item) for number, item in enumerate(method)], parameters


def _written_call(number: int, item: Any) -> tuple[str, Mapping[str, Any]]:
    if isinstance(item, str):
        return item, {}
    pair = next(iter(item.items())) if isinstance(item, Mapping) and len(item) == 1 else item
    if isinstance(pair, (tuple, list)) and len(pair) == 2 and isinstance(pair[0], str):
        name, values = pair
        if values is None or isinstance(values, Mapping):
            return name, values or {}
        message = f"the parameters of `{printable(name)}` must be a mapping"
        raise RecipeError("CV-R010", message, where=Where(path=f"method.{number}"))
    message = "a stage is written `name`, `(name, {parameter: value})` or `{name: {parameter: value}}`"
    raise RecipeError("CV-R010", message, where=Where(path=f"method.{number}"))


def _call(
    number: int,
    call: tuple[str, Mapping[str, Any]],
    experts: list[str],
    own_names: Mapping[str, str],
    each: dict[str, dict[str, Setting]],
    found: list[Diagnostic],
) -> StageCall:
    """A stage of a chain; values of single experts go to `each`, under the names that models give them."""
    name, values = call
    known = {p.name: p for p in stage(name).parameters}
    shared, own = _settings(values, known, experts, name, found, (number, name))
    for expert, settings in own.items():
        each.setdefault(expert, {}).update({own_names[key]: value for key, value in settings.items()})
    return StageCall(name, shared)


def _settings(
    given: Mapping[str, Any],
    known: Mapping[str, Parameter],
    experts: list[str],
    owner: str,
    found: list[Diagnostic],
    path: Path = (),
) -> tuple[dict[str, Setting], dict[str, dict[str, Setting]]]:
    shared: dict[str, Setting] = {}
    each: dict[str, dict[str, Setting]] = {}
    by_argument = {p.argument: p for p in known.values()} | dict(known)
    for key, value in given.items():
        name = str(key)
        parameter = by_argument.get(name)
        if parameter is None:
            hint = did_you_mean(name, by_argument)
            found.append(Diagnostic("CV-R007", f"`{owner}` has no parameter `{printable(name)}`", hint=hint))
            continue
        here = (*path, name)
        if parameter.per_expert and _one_each(value):
            if len(value) != len(experts):
                message = f"`{name}` has {len(value)} values for {len(experts)} models"
                found.append(Diagnostic("CV-R010", message))
                continue
            for expert, one in zip(experts, value, strict=True):
                each.setdefault(expert, {})[parameter.name] = _setting(one, parameter, found, here)
        else:
            shared[parameter.name] = _setting(value, parameter, found, here)
    return shared, each


def _one_each(value: Any) -> bool:
    """Whether a value of a starred parameter is one for each expert: a list, but no rules `[{"value": …}, …]`."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return False
    return not any(isinstance(one, Mapping) and "value" in one for one in value)


def _setting(value: Any, parameter: Parameter, found: list[Diagnostic], path: Path) -> Setting:
    """The setting a value means, in every form that a recipe has."""
    return ValueReader(_NOWHERE, found).setting(_as_written(value), parameter, path)


def _as_written(value: Any) -> Any:
    """Lists for tuples, dictionaries for mappings, the long form for a curve."""
    if isinstance(value, Curve):
        return {"curve": value.shape, "points": written(value, value.points)}
    if isinstance(value, Mapping):
        return {key: _as_written(inner) for key, inner in value.items()}
    return [_as_written(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def curve_of(points: Sequence[Any], shape: Any) -> Curve:
    """A curve of values or of pairs of a depth and a value; RecipeError for what is none."""
    if shape not in SHAPES:
        shapes = ", ".join(f"`{word}`" for word in SHAPES)
        hint = did_you_mean(str(shape), SHAPES)
        raise RecipeError("CV-R010", f"the shape of a curve must be one of {shapes}", hint=hint)
    listed = _as_listed(points)
    if not listed:
        raise RecipeError("CV-R010", "a curve needs a list of at least one value")
    try:
        values, at = knots(listed)
    except DepthsError as error:
        raise RecipeError(
            "CV-R260", f"point {error.index + 1} of a curve: {error}", hint=error.hint
        ) from None
    return Curve(tuple(values), shape, at)


def _as_listed(points: Any) -> list[Any]:
    """Plain lists and numbers of sequences and arrays; empty for anything else."""
    plain = points.tolist() if hasattr(points, "tolist") else points
    return list(plain) if isinstance(plain, (list, tuple)) else []


def _dtype(value: Any, name: str) -> str | None:
    if value is None:
        return None
    found = parse_dtype(str(value))
    if found is None or not found.is_float:
        raise UsageError("CV-U011", f"`{name}` must name a float type, got `{printable(str(value))}`")
    return found.name
