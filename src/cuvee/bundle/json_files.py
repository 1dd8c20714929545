"""JSON that strangers wrote: parsed strictly and within limits; and our own, printed the same way each time.

Knows nothing about what the files mean.
"""

from __future__ import annotations

import json
from typing import Any

from cuvee.core.limits import DEFAULT, Limits
from cuvee.core.names import printable
from cuvee.errors import CorruptFile, Where


def load_json(data: bytes, file: str, limits: Limits = DEFAULT) -> Any:
    """The value in a JSON file; CorruptFile on duplicate keys, NaN, bad UTF-8, or beyond the limits."""
    if len(data) > limits.json_bytes:
        raise _corrupt(file, f"is {len(data)} bytes long, and at most {limits.json_bytes} are read")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise _corrupt(file, f"is nested more than {limits.json_depth} levels deep") from None
    except ValueError as problem:
        raise _corrupt(file, f"is not valid JSON: {printable(str(problem))}") from None
    if _deeper_than(value, limits.json_depth):
        raise _corrupt(file, f"is nested more than {limits.json_depth} levels deep")
    return value


def load_object(data: bytes, file: str, limits: Limits = DEFAULT) -> dict[str, Any]:
    """As `load_json`, for files that must hold an object."""
    value = load_json(data, file, limits)
    if not isinstance(value, dict):
        raise _corrupt(file, f"must hold a JSON object, got {type(value).__name__}")
    return value


def dump_json(value: Any, indent: int | None = 2) -> bytes:
    """UTF-8 JSON in the mapping's order of keys with a final newline; the same bytes for the same value."""
    try:
        return (json.dumps(value, ensure_ascii=False, indent=indent) + "\n").encode("utf-8")
    except UnicodeEncodeError:  # lone surrogates can only be written escaped
        return (json.dumps(value, indent=indent) + "\n").encode("ascii")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {printable(twice)!r} appears twice")
    return found


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is not a JSON number")


def _deeper_than(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [child for node in level for child in _children(node)]
        if not level:
            return False
    return True


def _children(node: Any) -> list[Any]:
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return [child for child in inner if isinstance(child, (dict, list))]


def _corrupt(file: str, what: str) -> CorruptFile:
    return CorruptFile("CV-T002", f"`{printable(file)}` {what}", where=Where(file=printable(file)))
