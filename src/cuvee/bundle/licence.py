"""Which licence the output may state: the inputs', when all of them state the same one.

Owns reading licences out of model cards. Never interprets one, and never parses a card beyond its front
matter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cuvee.bundle.json_files import load_object
from cuvee.bundle.vocabulary.tokens import FileReader
from cuvee.core.names import printable
from cuvee.errors import CorruptFile, Diagnostic

_FRONT_MATTER = 1 << 16  # bytes of a card that are looked at
_KEYS = ("license", "license_name", "license_link")
_LINE = re.compile(r"(license(?:_name|_link)?)\s*:\s*(.*?)\s*$")
_ITEM = re.compile(r"\s*-\s+(.*?)\s*$")


@dataclass(frozen=True, slots=True)
class Licence:
    """A licence as model cards state it: the hub's identifier, and name and link where that is `other`."""

    id: str
    name: str | None = None
    link: str | None = None

    def __str__(self) -> str:
        return self.name or self.id


def licence_of(files: FileReader) -> Licence | None:
    """The licence a model's card states, else its config.json; None when neither states exactly one."""
    card = files.read("README.md")
    stated = {} if card is None else _front_matter(card)
    if "license" not in stated:
        config = files.read("config.json")
        stated = {} if config is None else _from_config(config)
    if "license" not in stated:
        return None
    return Licence(stated["license"], stated.get("license_name"), stated.get("license_link"))


def agreed(licences: Mapping[str, Licence | None]) -> tuple[Licence | None, list[Diagnostic]]:
    """The licence all models state; None and a warning that lists them when they differ or one has none."""
    found = set(licences.values())
    if len(found) == 1:
        (only,) = found
        if only is not None:
            return only, []
    if not licences:
        return None, []
    listed = ", ".join(f"`{printable(m)}` {_shown(licence)}" for m, licence in licences.items())
    message = f"the output's card states no licence, because the models do not agree on one: {listed}"
    if found == {None}:
        message = f"the output's card states no licence, because none of the models does: {listed}"
    hint = "read the models' licences and set `license` in the card yourself"
    return None, [Diagnostic("CV-T040", message, hint=hint, severity="warning")]


def _shown(licence: Licence | None) -> str:
    return "none" if licence is None else f"`{printable(str(licence), 60)}`"


def _front_matter(card: bytes) -> dict[str, str]:
    """The three licence keys at the top level of a card's front matter, read line by line."""
    lines = card[:_FRONT_MATTER].decode("utf-8", errors="replace").splitlines()
    if not lines or lines[0].rstrip() != "---":
        return {}
    found: dict[str, str] = {}
    for number, line in enumerate(lines[1:], 1):
        if line.rstrip() in ("---", "..."):
            return found
        key = _LINE.match(line)
        if key is None or key[1] in found:
            continue
        values = [_scalar(key[2])] if key[2] else list(_items(lines[number + 1 :]))
        if len(values) == 1 and values[0]:
            found[key[1]] = values[0]
    return {}  # the front matter never ends: this is not one


def _items(lines: list[str]) -> Iterator[str]:
    for line in lines:
        item = _ITEM.match(line)
        if item is None:
            return
        yield _scalar(item[1])


def _scalar(text: str) -> str:
    """A plain or quoted YAML scalar; empty for anything else, such as a list of several licences."""
    text = re.sub(r"\s+#.*$", "", text).strip()
    if text[:1] in ("[", "{", "&", "*", "|", ">"):
        return _scalar(text[1:-1]) if text[0] == "[" and "," not in text else ""
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    return "" if text in ("~", "null") else text[:200]


def _from_config(data: bytes) -> dict[str, str]:
    try:
        content = load_object(data, "config.json")
    except CorruptFile:
        return {}  # whoever needs the configuration reports it
    return {key: content[key] for key in _KEYS if isinstance(content.get(key), str) and content[key]}
