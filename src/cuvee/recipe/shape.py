"""What may stand at each place of a recipe: shapes that check plain data, tell every mistake at its place, and say
themselves as JSON Schema.

A mapping with keys of its own is a frozen dataclass whose fields are made with `part`. Nothing is coerced unless a
check does it, and unknown keys are mistakes. Must not know what recipes mean. (A library for this takes longer to
import than the whole of `cuvee check`: decision 0010.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from cuvee.core.names import did_you_mean, printable
from cuvee.errors import Diagnostic
from cuvee.recipe.document import Document, Path, problem

R = TypeVar("R")
BAD: Any = object()  # what a shape gives for a value that it refused


class Refusal(Exception):
    """What a check has against a value: the end of a sentence that starts with the key."""

    def __init__(self, message: str, hint: str | None = None, code: str = "CV-R006") -> None:
        super().__init__(message)
        self.message, self.hint, self.code = message, hint, code


def wrong_type(expected: str, value: Any, hint: str | None = None) -> Refusal:
    """A value of another type than its place asks for."""
    return Refusal(f"{expected}, got {shown(value)}", hint, "CV-R010")


def shown(value: Any) -> str:
    """A value of a recipe for a message: short, printable, collections by their kind."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list) else f"`{printable(str(value), 60)}`"


@dataclass(slots=True)
class Reading:
    """One document being read: its mistakes, and whether a value is lacking without which nothing can be made."""

    document: Document
    found: list[Diagnostic]
    lacking: bool = False

    def say(self, refusal: Refusal, path: Path) -> None:
        """A mistake at the value there."""
        name = f"`{printable(str(path[-1]))}`" if path else "the recipe"
        message = f"{name} {refusal.message}"
        self.found.append(problem(self.document, refusal.code, path, message, hint=refusal.hint))


class Shape(Protocol):
    """What may stand at a place."""

    def read(self, value: Any, path: Path, reading: Reading) -> Any:
        """The value to keep, or BAD with every mistake told."""

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        """JSON Schema; what has a name goes to `definitions`."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A value that a function checks: it gives what to keep, or raises Refusal."""

    check: Callable[[Any], Any]
    described: Mapping[str, Any] = field(default_factory=dict)

    def read(self, value: Any, path: Path, reading: Reading) -> Any:
        try:
            return self.check(value)
        except Refusal as refusal:
            reading.say(refusal, path)
            return BAD

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        return dict(self.described)


@dataclass(frozen=True, slots=True)
class Listed:
    """A list with at least so many entries."""

    inner: Shape
    least: int = 0

    def read(self, value: Any, path: Path, reading: Reading) -> Any:
        if not isinstance(value, list) or len(value) < self.least:
            entries = "entry" if self.least == 1 else "entries"
            short = f"needs at least {self.least} {entries}"
            reading.say(wrong_type(short if isinstance(value, list) else "must be a list", value), path)
            return BAD
        read = [self.inner.read(item, (*path, i), reading) for i, item in enumerate(value)]
        if any(item is BAD for item in read):
            reading.lacking = True  # the places of the entries after it would be wrong
            return BAD
        return read

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        least = {"minItems": self.least} if self.least else {}
        return {"type": "array", "items": self.inner.schema(definitions), **least}


@dataclass(frozen=True, slots=True)
class Named:
    """A mapping whose keys are names the user chooses."""

    inner: Shape

    def read(self, value: Any, path: Path, reading: Reading) -> Any:
        if not isinstance(value, dict):
            reading.say(wrong_type("must be a mapping of keys to values", value), path)
            return BAD
        read = {key: self.inner.read(item, (*path, key), reading) for key, item in value.items()}
        return {key: item for key, item in read.items() if item is not BAD}

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        return {"type": "object", "additionalProperties": self.inner.schema(definitions)}


@dataclass(frozen=True, slots=True)
class Section:
    """A mapping with keys of its own: a dataclass made with `part`.

    `check` looks at the whole and raises Refusal; `before` may bring a short form into the long one.
    """

    record: type[Any]
    check: Callable[[Any], None] | None = None
    before: Callable[[Any], Any] | None = None

    def read(self, value: Any, path: Path, reading: Reading) -> Any:
        data = self.before(value) if self.before else value
        if not isinstance(data, dict):
            reading.say(wrong_type("must be a mapping of keys to values", value), path)
            return BAD
        parts = parts_of(self.record)
        before = len(reading.found)
        given = {
            p.name: _value(p, data[key], (*path, key), reading) for key, p in parts.items() if key in data
        }
        meant = self._unknown([key for key in data if key not in parts], path, reading)
        self._missing(
            [key for key, p in parts.items() if p.required and key not in data], meant, path, reading
        )
        kept = {name: item for name, item in given.items() if item is not BAD}
        if any(p.required and p.name not in kept for p in parts.values()):
            return BAD
        return self._whole(self.record(**kept), path, reading, quiet=len(reading.found) > before)

    def _whole(self, made: Any, path: Path, reading: Reading, *, quiet: bool) -> Any:
        """The record, checked as a whole; that says nothing new where a part of it was refused."""
        try:
            if self.check is not None:
                self.check(made)
        except Refusal as refusal:
            if not quiet:
                reading.say(refusal, path)
            return BAD
        return made

    def _unknown(self, keys: list[str], path: Path, reading: Reading) -> set[str | None]:
        """Tell unknown keys; the hints that were given."""
        hints = {key: _meant(key, self.record) for key in keys}
        for key, hint in hints.items():
            message = f"unknown key `{printable(key)}`"
            reading.found.append(
                problem(reading.document, "CV-R004", (*path, key), message, key=True, hint=hint)
            )
        return set(hints.values())

    def _missing(self, keys: list[str], meant: set[str | None], path: Path, reading: Reading) -> None:
        """Tell missing keys, less those that a misspelt one stands for."""
        for key in keys:
            reading.lacking = True
            if f"did you mean `{key}`?" not in meant:
                message = f"the key `{key}` is missing"
                reading.found.append(problem(reading.document, "CV-R005", path, message, key=True))

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        name = self.record.__name__
        if name not in definitions:
            definitions[name] = {}  # the place is taken, so that shapes may hold each other
            definitions[name] = _described(self.record, definitions)
        return {"$ref": f"#/$defs/{name}"}


@dataclass(frozen=True, slots=True)
class Part:
    """One key of a section."""

    name: str  # of the dataclass's field
    shape: Shape
    required: bool
    optional: bool  # nothing may be written
    default: Any


def part(shape: Shape, *default: Any, key: str | None = None) -> Any:
    """A field of a section: its shape, its default (required without one), its key where that is no Python name.

    With the default None, nothing may be written for it.
    """
    metadata = {"shape": shape, "key": key}
    if not default:
        return field(kw_only=True, metadata=metadata)
    if isinstance(default[0], (dict, list)):
        return field(kw_only=True, metadata=metadata, default_factory=type(default[0]))
    return field(kw_only=True, metadata=metadata, default=default[0])


def parts_of(record: type[Any]) -> dict[str, Part]:
    """The keys of a section."""
    return {
        each.metadata["key"] or each.name: Part(
            name=each.name,
            shape=each.metadata["shape"],
            required=each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING,
            optional=each.default is None,
            default=each.default if each.default_factory is dataclasses.MISSING else each.default_factory(),
        )
        for each in dataclasses.fields(record)
    }


def validate(section: Section, document: Document, found: list[Diagnostic]) -> Any:
    """The record that a document holds, or None with every mistake appended to `found`."""
    reading = Reading(document, found)
    made = section.read(document.data, (), reading)
    return None if made is BAD or reading.lacking else made


def json_schema(section: Section) -> dict[str, Any]:
    """The JSON Schema of documents that hold this section, with `$defs`."""
    definitions: dict[str, Any] = {}
    section.schema(definitions)
    whole = definitions.pop(section.record.__name__)
    return {**({"$defs": definitions} if definitions else {}), **whole}


def _value(one: Part, value: Any, path: Path, reading: Reading) -> Any:
    if value is None and one.optional:
        return None
    return one.shape.read(value, path, reading)


def _described(record: type[Any], definitions: dict[str, Any]) -> dict[str, Any]:
    parts = parts_of(record)
    properties = {}
    for key, one in parts.items():
        inner = one.shape.schema(definitions)
        if one.optional and inner:
            inner = {"anyOf": [inner, {"type": "null"}]}
        plain = one.default is not dataclasses.MISSING and not dataclasses.is_dataclass(one.default)
        properties[key] = {**inner, "default": one.default} if plain else inner
    required = [key for key, one in parts.items() if one.required]
    return {
        "type": "object",
        "description": (record.__doc__ or "").strip(),
        "properties": properties,
        **({"required": required} if required else {}),
        "additionalProperties": False,
    }


def _meant(key: str, record: type[Any]) -> str | None:
    """The hint for an unknown key of a section: a key of its own that is close, else one further in."""
    own = parts_of(record)
    foreign: Mapping[str, str] = getattr(record, "foreign", {})
    if key in foreign:
        return foreign[key]
    inner = {
        name: outer
        for outer, one in own.items()
        for record in _inside(one.shape)
        for name in parts_of(record)
    }
    elsewhere = f"`{printable(key)}` belongs under `{inner[key]}`" if key in inner else None
    return did_you_mean(key, own) or elsewhere or did_you_mean(key, inner)


def _inside(shape: Any) -> list[type[Any]]:
    """The sections that a shape is or holds."""
    if isinstance(shape, Section):
        return [shape.record]
    inner = getattr(shape, "inner", None)
    return [] if inner is None else _inside(inner)
