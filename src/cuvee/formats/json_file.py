"""JSON files read strictly: capped size and depth, no key twice, no NaN, no text that cannot be encoded.

Owns nothing but JSON; whoever reads a config or an index checks what is in it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from cuvee.core.limits import DEFAULT, Limits
from cuvee.formats.bytes_file import ByteFile
from cuvee.formats.refusals import corrupt, over_limit, quoted

_CODE = "CV-S069"


class _RefusedError(ValueError):
    """A flaw found by one of the parser's hooks."""


def read_json(path: Path, limits: Limits = DEFAULT) -> Any:
    """The value of a JSON file; CorruptFile when it is malformed, ambiguous or over a limit."""
    raw = ByteFile(path)
    try:
        if raw.size > limits.json_bytes:
            raise over_limit(path, "size in bytes", raw.size, limits.json_bytes)
        data = raw.bytes_at(0, raw.size)
    finally:
        raw.close()
    return parse_json(data, path, limits)


def parse_json(data: bytes, path: Path, limits: Limits = DEFAULT) -> Any:
    """The value of JSON text that came from `path`."""
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except json.JSONDecodeError as error:
        message = f"not valid JSON: {error.msg.lower()} at line {error.lineno}, column {error.colno}"
        raise corrupt(_CODE, path, message) from None
    except UnicodeDecodeError as error:
        raise corrupt(_CODE, path, f"not valid UTF-8 at byte {error.start:,}") from None
    except RecursionError:
        raise over_limit(path, "depth of nesting", 1_000, limits.json_depth) from None
    except ValueError as error:
        reason = str(error) if isinstance(error, _RefusedError) else "a number has too many digits"
        raise corrupt(_CODE, path, f"not acceptable JSON: {reason}") from None
    _check(value, path, limits)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _RefusedError(f"the key {quoted(twice)} is there twice")
    return out


def _no_constant(word: str) -> NoReturn:
    raise _RefusedError(f"`{word}` is not a number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _RefusedError(f"{quoted(text)} does not fit a number")
    return value


def _check(value: Any, path: Path, limits: Limits) -> None:
    """Depth within the limit; every string can be encoded (half a surrogate pair cannot)."""
    level, depth = [value], 0
    while level:
        depth += 1
        below: list[Any] = []
        for item in level:
            if isinstance(item, str) and not item.isascii() and not _encodes(item):
                raise corrupt(_CODE, path, "not acceptable JSON: a string holds half of a surrogate pair")
            if isinstance(item, dict):
                below.extend(item.keys())
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        if depth > limits.json_depth + 1:
            raise over_limit(path, "depth of nesting", depth - 1, limits.json_depth)
        level = below


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
