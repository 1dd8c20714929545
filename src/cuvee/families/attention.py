"""How the attention of one module is built: heads, groups, rotary positions, from a family's row and a config.

Owns `attention.toml` and what its keys mean. Nothing is guessed: what is not known for certain is told as a reason.
Must not know what heads are asked for.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from cuvee.core.names import printable
from cuvee.families.config import get_path

Rope = Literal["none", "half", "interleaved"]
_SECTIONS = {"text_model": "text_config.", "vision_model": "vision_config."}


@dataclass(frozen=True, slots=True)
class Attention:
    """`heads` query heads of `size` in `groups` that share keys and values; the first `rotated` dimensions of each
    turn with the position; `norm`: an RMS norm for each head with one gain.
    """

    heads: int
    groups: int
    size: int
    rope: Rope
    rotated: int
    norm: bool


def attention(family: str, module: str, config: Mapping[str, Any]) -> Attention | str:
    """The attention of a family's module under a config, or why it is not known (the end of a sentence)."""
    row = _rows().get(family if module == "default" else f"{family}.{module}")
    if row is None:
        return f"how `{printable(family)}` models build it is not described"
    prefix = _SECTIONS.get(module, "")
    if get_path(config, prefix.rstrip(".")) is None:
        prefix = ""  # one tower alone has a flat config
    forbidden = _forbidden(row, config, prefix)
    if forbidden:
        return forbidden
    found = {
        key: _first(config, row.get(key, ()), prefix)
        for key in ("heads", "groups", "size", "width", "rotated")
    }
    heads = found["heads"]
    groups = heads if found["groups"] is None else found["groups"]
    if not _whole(heads) or not _whole(groups) or heads % groups:
        return f"the config gives {heads!r} heads in {groups!r} groups"
    size = found["size"]
    if size is None and _whole(found["width"]) and found["width"] % heads == 0:
        size = found["width"] // heads
    if not _whole(size):
        return f"the config gives a head size of {size!r}"
    rotated = _rotated(row["rope"], found["rotated"], size)
    if rotated is None:
        return f"the config rotates {found['rotated']!r} of {size} dimensions of a head"
    return Attention(heads, groups, size, row["rope"], rotated, bool(row.get("norm", False)))


@lru_cache(maxsize=1)
def _rows() -> Mapping[str, Mapping[str, Any]]:
    data = tomllib.loads(Path(__file__).with_name("attention.toml").read_text(encoding="utf-8"))
    return {name: row for row in data["layout"] for name in row["of"]}


def _first(config: Mapping[str, Any], keys: tuple[str, ...], prefix: str) -> Any:
    return next((value for key in keys if (value := get_path(config, prefix + key)) is not None), None)


def _forbidden(row: Mapping[str, Any], config: Mapping[str, Any], prefix: str) -> str | None:
    for key in row.get("never", ()):
        path, _, wanted = key.partition("=")
        value = get_path(config, prefix + path)
        if value == wanted if wanted else value not in (None, False, 1.0):
            return f"`{path}: {value}` in the config is not supported"
    return None


def _rotated(rope: Rope, given: Any, size: int) -> int | None:
    """How many dimensions turn: none, all, a share (a number up to 1) or a count; None where that makes no sense."""
    if rope == "none":
        return 0
    if given is None:
        return size if size % 2 == 0 else None
    if isinstance(given, bool) or not isinstance(given, int | float):
        return None
    count = int(size * given) if isinstance(given, float) else given
    return count if 0 < count <= size and count % 2 == 0 else None


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
