"""Items of tasks kept in the cache by content address: reading and tokenising corpora gives the same at every start.

Owns their stored form. The address covers what the caller names, all pinned packages, Python's version and the source
of every module that makes items, so that nobody has to remember a version. Knows no texts, tokens or models.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from blake3 import blake3

from cuvee.core.lazy import torch
from cuvee.evaluate.task import Item, Provenance
from cuvee.evaluate.tracks import store
from cuvee.evaluate.tracks.sources import source_of

_SHARED = ("cuvee.evaluate.task", *(f"{__package__}.{name}" for name in ("archives", "packages", "parts")))


@dataclass(frozen=True, slots=True)
class Parts:
    """The items of a task before it is made, where they come from, and its classes.

    Inputs are tuples of whole numbers, or tuples of such tuples; targets texts, whole numbers or None.
    """

    train: Sequence[Item]
    selection: Sequence[Item]
    test: Sequence[Item]
    provenance: Provenance
    classes: Sequence[str] = ()


def kept_parts(name: str, address: Sequence[str], modules: Sequence[str], make: Callable[[], Parts]) -> Parts:
    """The stored items, made and stored first where there are none.

    `address`: whatever the items depend on beside packages and code (tokenizer, sizes); `modules`: the names of those
    that make them. They lie where a method's own process may not look.
    """
    place = store.address("items", platform.python_version(), *address, _code((*modules, __name__)))

    def stored() -> dict[str, Any]:
        return {"parts": torch.frombuffer(bytearray(_text_of(make())), dtype=torch.uint8)}

    return _parts_of(store.kept(place, name, stored, kind="data")["parts"].numpy().tobytes())


@cache
def _code(modules: tuple[str, ...]) -> str:
    """A digest of the source of modules and of the table of packages; of cuvee's version where there is no source."""
    found = blake3((files(__package__) / "packages.toml").read_bytes())
    for name in (*_SHARED, *modules):
        found.update(source_of(name))
    return found.hexdigest(length=16)


def _text_of(made: Parts) -> bytes:
    rows = {
        part: [[item.input, item.target, item.group, item.weight] for item in getattr(made, part)]
        for part in ("train", "selection", "test")
    }
    whole = {**rows, "provenance": asdict(made.provenance), "classes": list(made.classes)}
    return json.dumps(whole, separators=(",", ":")).encode()


def _parts_of(text: bytes) -> Parts:
    content = json.loads(text)
    train, selection, test = (_items(content[part]) for part in ("train", "selection", "test"))
    return Parts(train, selection, test, Provenance(**content["provenance"]), content["classes"])


def _items(rows: Iterable[Sequence[Any]]) -> list[Item]:
    return [Item(_tupled(asked), target, group, weight) for asked, target, group, weight in rows]


def _tupled(value: list[Any]) -> tuple[Any, ...]:
    return tuple(map(_tupled, value)) if value and isinstance(value[0], list) else tuple(value)
