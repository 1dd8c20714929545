"""Arguments of `cuvee.merge` → the same recipe a file would give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cuvee.core.dtypes import parse_dtype
from cuvee.core.names import did_you_mean, printable
from cuvee.errors import Diagnostic, RecipeError, UsageError
from cuvee.methods.parameters import Parameter
from cuvee.methods.registry import get, parameters_for, stage
from cuvee.recipe.model import (
    Curve,
    InMemory,
    Input,
    ModuleRecipe,
    Output,
    Recipe,
    Reference,
    Rule,
    Setting,
    Slice,
    SourceSpec,
    StageCall,
)

BASE = "base"


@dataclass(frozen=True, slots=True)
class Given:
    """The models of a call by name, and the base."""

    experts: Mapping[str, Any]
    base: Any


def recipe_from(
    models: Sequence[Any] | Mapping[str, Any],
    base: Any,
    method: str | Sequence[Any],
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
    chosen = None if not isinstance(method, str) else get(method)
    known = parameters_for(chosen) if chosen else {}
    shared, each = _settings(parameters, known, list(experts), chosen.name if chosen else "a chain", found)
    chain = () if chosen else tuple(_call(item, list(experts), each, found) for item in method)
    if found:
        raise RecipeError.collected(found)
    inputs = [Input(name, None, each.get(name, {})) for name in experts]
    if base is not None and (chosen is None or chosen.base != "ordinary"):
        inputs.append(Input(BASE))
    return Recipe(
        sources=sources,
        modules={"*": ModuleRecipe((Slice(tuple(inputs)),))},
        method=chosen.name if chosen else None,
        base=BASE if base is not None else None,
        chain=chain,
        settings=shared,
        compute=_dtype(options.get("dtype"), "dtype"),
        seed=int(options.get("seed") or 0),
        names=options.get("names") or "strict",
        chat_template=options.get("chat_template"),
        vocabulary=options.get("tokenizer"),
        output=Output(
            dtype=_dtype(options.get("out_dtype"), "out_dtype"),
            shard_bytes=options.get("shard_bytes") or 5_000_000_000,
        ),
    )


def spec_of(value: Any) -> SourceSpec:
    """A path, hub URI, dictionary of tensors, module, recipe or opened checkpoint as a source of a recipe."""
    if isinstance(value, (str, Path)):
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
    words = [Path(m).name if isinstance(m, (str, Path)) else "" for m in models]
    made = {f"expert_{i}" for i in range(1, len(models) + 1)}
    unique = [w if words.count(w) == 1 and w not in {"", BASE, *made} else "" for w in words]
    return {w or f"expert_{i}": m for i, (w, m) in enumerate(zip(unique, models, strict=True), 1)}


def _call(
    item: Any, experts: list[str], each: dict[str, dict[str, Setting]], found: list[Diagnostic]
) -> StageCall:
    """A stage of a chain: `"trim"`, or `("trim", {"density": 0.3})`; values of single experts go to `each`."""
    name, values = (item, {}) if isinstance(item, str) else item
    known = {p.name: p for p in stage(name).parameters}
    shared, own = _settings(values, known, experts, name, found)
    for expert, settings in own.items():
        each.setdefault(expert, {}).update(settings)
    return StageCall(name, shared)


def _settings(
    given: Mapping[str, Any],
    known: Mapping[str, Parameter],
    experts: list[str],
    owner: str,
    found: list[Diagnostic],
) -> tuple[dict[str, Setting], dict[str, dict[str, Setting]]]:
    shared: dict[str, Setting] = {}
    each: dict[str, dict[str, Setting]] = {}
    by_argument = {p.argument: p for p in known.values()} | dict(known)
    for name, value in given.items():
        parameter = by_argument.get(name)
        if parameter is None:
            hint = did_you_mean(name, by_argument)
            found.append(Diagnostic("CV-R007", f"`{owner}` has no parameter `{printable(name)}`", hint=hint))
            continue
        if parameter.per_expert and isinstance(value, Sequence) and not isinstance(value, str):
            if len(value) != len(experts):
                message = f"`{name}` has {len(value)} values for {len(experts)} models"
                found.append(Diagnostic("CV-R010", message))
                continue
            for expert, one in zip(experts, value, strict=True):
                each.setdefault(expert, {})[parameter.name] = _setting(one, parameter, found)
        else:
            shared[parameter.name] = _setting(value, parameter, found)
    return shared, each


def _setting(value: Any, parameter: Parameter, found: list[Diagnostic]) -> Setting:
    if isinstance(value, Mapping):
        rules = [Rule(v, name=None if k in ("default", "*") else k) for k, v in value.items()]
        rules.sort(key=lambda rule: rule.name is None)  # a default must not hide the patterns
    elif isinstance(value, (list, tuple)):
        rules = [Rule(Curve(tuple(value)))]
    else:
        rules = [Rule(value)]
    for rule in rules:
        for one in rule.value.points if isinstance(rule.value, Curve) else (rule.value,):
            wrong = parameter.problem(one)
            if wrong:
                found.append(Diagnostic("CV-R010", f"`{parameter.name}` {wrong}"))
    return tuple(rules)


def _dtype(value: Any, name: str) -> str | None:
    if value is None:
        return None
    found = parse_dtype(str(value))
    if found is None or not found.is_float:
        raise UsageError("CV-U011", f"`{name}` must name a float type, got `{printable(str(value))}`")
    return found.name
