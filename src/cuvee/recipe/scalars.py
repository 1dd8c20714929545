"""Shapes of single values that both recipe languages have: texts, numbers, truth, words among a few."""

from __future__ import annotations

from typing import Any

from cuvee.core.names import did_you_mean
from cuvee.recipe.shape import Checked, wrong_type


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise wrong_type("must be a text", value)


def _truth(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise wrong_type("must be true or false", value)


def _whole(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise wrong_type("must be a whole number", value)


def whole(least: int | None = None) -> Checked:
    """A whole number, at least so large."""

    def check(value: Any) -> int:
        if least is not None and _whole(value) < least:
            raise wrong_type(f"must be at least {least}", value)
        return _whole(value)

    return Checked(check, {"type": "integer"} | ({} if least is None else {"minimum": least}))


def one_of(*words: Any) -> Checked:
    """One of a few texts or numbers."""
    listed = [f"`{word}`" if isinstance(word, str) else str(word) for word in words]
    expected = f"must be one of {', '.join(listed)}"

    def check(value: Any) -> Any:
        if any(type(value) is type(word) and value == word for word in words):
            return value
        raise wrong_type(expected, value, did_you_mean(str(value), [w for w in words if isinstance(w, str)]))

    return Checked(check, {"enum": list(words)})


TEXT = Checked(_text, {"type": "string"})
TRUTH = Checked(_truth, {"type": "boolean"})
ANYTHING = Checked(lambda value: value)
