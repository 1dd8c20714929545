"""The text kept with an output that was made from Python: its recipe in Cuvée's own language, where it has one.

Owns the proof that the text means the same, by reading it back. Must not know how outputs are written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from cuvee.errors import CuveeError
from cuvee.plan.plan import Plan
from cuvee.recipe.load import parse_recipe
from cuvee.recipe.model import Recipe, Reference

_PLAIN = (bool, int, float, str, type(None))
_BESIDE = frozenset(
    {"where", "file", "notes", "places", "changes"}
)  # say where values stood, not what is merged


def with_text(plan: Plan) -> Plan:
    """The plan with the text of its recipe; as it is where it has one, or where none would mean the same."""
    if plan.recipe.text:
        return plan
    text = text_of(plan.recipe)
    return replace(plan, recipe=replace(plan.recipe, text=text)) if text else plan


def text_of(recipe: Recipe) -> str:
    """The recipe as YAML; empty for models in memory, addresses that hold secrets, and what YAML cannot say."""
    if not _is_plain(recipe) or any(_is_secret(one.text) for one in _references(recipe)):
        return ""
    from cuvee.recipe.export import MODELINE, native_text

    try:
        text = native_text(recipe)[0].removeprefix(MODELINE)
        again = parse_recipe(text)
    except CuveeError:
        return ""
    same = list(again.sources) == list(recipe.sources) and _meaning(again) == _meaning(recipe)
    return text if same else ""


def _references(recipe: Recipe) -> Iterator[Reference]:
    for spec in recipe.sources.values():
        if isinstance(spec, Recipe):
            yield from _references(spec)
        elif isinstance(spec, Reference):
            yield from (spec, *spec.adapters)


def _is_secret(text: str) -> bool:
    """Whether an address may hold a password or a signature."""
    for word in text.split():
        try:
            address = urlsplit(word)
        except ValueError:
            return True
        if "://" in word and ("@" in address.netloc or address.query):
            return True
    return False


def _parts(value: Any) -> Iterator[Any] | None:
    """What a value is made of; None for one that is made of nothing."""
    if is_dataclass(value):
        return (getattr(value, one.name) for one in fields(value) if one.name not in _BESIDE)
    if isinstance(value, Mapping):
        return (part for item in value.items() for part in item)
    return iter(value) if isinstance(value, (list, tuple)) else None


def _is_plain(value: Any) -> bool:
    """Whether nothing in a recipe lives only in Python, numbers of other libraries included."""
    parts = _parts(value)
    return type(value) in _PLAIN if parts is None else all(_is_plain(part) for part in parts)


def _meaning(value: Any) -> Any:
    """A recipe as data that is equal where what is merged is equal."""
    if is_dataclass(value):
        dropped = _BESIDE | ({"text"} if isinstance(value, Recipe) else frozenset())
        own = [one.name for one in fields(value) if one.name not in dropped]
        return (type(value).__name__, {name: _meaning(getattr(value, name)) for name in own})
    if isinstance(value, Mapping):
        return {key: _meaning(part) for key, part in value.items()}
    return [_meaning(part) for part in value] if isinstance(value, (list, tuple)) else value
