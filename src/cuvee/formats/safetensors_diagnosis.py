"""Why an entry of a safetensors header is refused, found out after the fact.

The scanner knows only that an entry does not match; this module reads the same bytes again, at leisure and
within a small window, and names the flaw. Must not accept anything.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cuvee.errors import CorruptFile
from cuvee.formats.refusals import corrupt, over_limit, quoted

_WINDOW = 8_192  # bytes; a sound entry takes a few hundred
_FIELDS = ("dtype", "shape", "data_offsets")


def explain_entry(data: bytes, position: int, name: str, path: Path, rank: int) -> CorruptFile:
    """The error for the entry of `name` whose value begins at `position`."""
    if data[position : position + 1] != b"{":
        message = f"the entry of {quoted(name)} is not an object with `dtype`, `shape` and `data_offsets`"
        return corrupt("CV-S055", path, message, tensor=name)
    try:
        value, repeated, after = _loosely(data[position : position + _WINDOW])
    except (ValueError, RecursionError):
        message = f"the entry of {quoted(name)} is not well-formed JSON or far too long"
        return corrupt("CV-S054", path, message, tensor=name)
    if repeated:
        message = f"the entry of {quoted(name)} has {quoted(repeated[0])} twice"
        return corrupt("CV-S058", path, message, tensor=name)
    if after not in (",", "}"):
        message = f"the header is not valid JSON: expected `,` or `}}` after the entry of {quoted(name)}"
        return corrupt("CV-S054", path, message, tensor=name)
    shape = value.get("shape")
    if isinstance(shape, list) and len(shape) > rank:
        return over_limit(path, "rank", len(shape), rank, tensor=name)
    return corrupt("CV-S055", path, _bad_key(name, value) or _bad_field(name, value), tensor=name)


def _loosely(window: bytes) -> tuple[dict[str, Any], list[str], str]:
    """The JSON object that the window begins with, the keys repeated in it, and the character after it."""
    repeated: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in items]
        repeated.extend(key for key in keys if keys.count(key) > 1)
        return dict(items)

    text = window.decode("utf-8", "replace")
    value, end = json.JSONDecoder(object_pairs_hook=pairs).raw_decode(text)
    return value, repeated, text[end:].lstrip()[:1]


def _bad_key(name: str, value: dict[str, Any]) -> str | None:
    """One sentence on a field too many or too few."""
    for key in value:
        if key not in _FIELDS:
            return f"the entry of {quoted(name)} has an unknown field {quoted(key)}"
    for key in _FIELDS:
        if key not in value:
            return f"the entry of {quoted(name)} has no `{key}`"
    return None


def _bad_field(name: str, value: dict[str, Any]) -> str:
    """One sentence on the field whose value is of the wrong kind."""
    if not isinstance(value["dtype"], str):
        return f"the `dtype` of {quoted(name)} is {_shown(value['dtype'])}, expected a string such as `F32`"
    for key in ("shape", "data_offsets"):
        numbers = value[key]
        if not isinstance(numbers, list):
            return f"the `{key}` of {quoted(name)} is {_shown(numbers)}, expected a list"
        if key == "data_offsets" and len(numbers) != 2:
            return f"the `data_offsets` of {quoted(name)} has {len(numbers)} entries, expected 2"
        for number in numbers:
            if type(number) is not int or number < 0 or number >= 1 << 63:
                return f"the `{key}` of {quoted(name)} holds {_shown(number)}, expected whole numbers from 0"
    return f"the entry of {quoted(name)} is not written as the format asks"


def _shown(value: Any) -> str:
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "an object"
    return quoted(json.dumps(value) if isinstance(value, (bool, str, float, type(None))) else str(value)[:40])
