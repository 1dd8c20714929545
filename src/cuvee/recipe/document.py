"""YAML text → plain data with the position of every key and value.

YAML 1.2 (so that `1e-3` is a number and `no` is a text), strict: duplicate keys, custom tags, too many aliases and
too deep nesting are refused. The only module that knows the YAML library.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from cuvee.core.limits import DEFAULT, Limits
from cuvee.core.names import printable
from cuvee.errors import Diagnostic, RecipeError, Where

Path = tuple[str | int, ...]
_LINE = 2000  # characters of a line that are kept for a message
_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True)
class Spot:
    """Position of one scalar or the start of a collection: 1-based line and column, width in columns."""

    line: int
    column: int
    width: int


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML document: plain `data` (dict, list, str, int, float, bool, None) and where each part stands."""

    data: Any
    text: str
    file: str | None
    keys: dict[Path, Spot] = field(repr=False)
    values: dict[Path, Spot] = field(repr=False)

    def where(self, path: Path, *, key: bool = False) -> Where:
        """The place of the value (or key) at `path`, or of the closest enclosing thing that has one."""
        first, second = (self.keys, self.values) if key else (self.values, self.keys)
        for end in range(len(path), -1, -1):
            spot = first.get(path[:end]) or second.get(path[:end])
            if spot is not None:
                break
        else:
            return Where(file=self.file, path=dotted(path))
        lines = self.text.splitlines()
        line = lines[spot.line - 1] if spot.line <= len(lines) else ""
        return Where(
            file=self.file,
            line=spot.line,
            column=spot.column,
            width=spot.width,
            path=dotted(path),
            text=shown_line(line),
        )

    def places(self, *names: str) -> dict[str, Where]:
        """Where the values of these top-level keys stand; keys that are not there are left out."""
        return {name: self.where((name,)) for name in names if (name,) in self.values}


def shown_line(line: str) -> str:
    """A line of the text for a terminal, character for character, so that a caret below it stands right."""
    plain = line[:_LINE].replace("\t", " ")
    return plain if plain.isprintable() else "".join(c if printable(c) == c else "\ufffd" for c in plain)


def dotted(path: Path) -> str:
    """`("models", 0, "weight")` → `models.0.weight`."""
    return ".".join(printable(str(p)) for p in path)


def parse_documents(text: str, file: str | None = None, limits: Limits = DEFAULT) -> list[Document]:
    """All YAML documents of a text; RecipeError (CV-R001, CV-R002) when it is not YAML or not allowed YAML."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    if len(text.encode("utf-8", "surrogatepass")) > limits.yaml_bytes:
        raise RecipeError(
            "CV-R002",
            f"the recipe is larger than {limits.yaml_bytes} bytes",
            where=Where(file=file),
        )
    _refuse_deep_indentation(text, file, limits)
    try:
        nodes = list(YAML(typ="safe", pure=True).compose_all(text))
        return [_Builder(text, file, limits).document(node) for node in nodes if node is not None]
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise RecipeError(
            "CV-R001",
            f"not valid YAML: {printable(' '.join(filter(None, (error.context, error.problem))))}",
            where=_mark_where(mark, text, file),
        ) from None
    except (YAMLError, RecursionError, ValueError) as error:
        raise RecipeError(
            "CV-R001", f"not valid YAML: {printable(str(error))}", where=Where(file=file)
        ) from None


def _refuse_deep_indentation(text: str, file: str | None, limits: Limits) -> None:
    # The composer recurses, so nesting must be bounded before it starts; flow brackets are the cheap attack.
    depth = 0
    for match in re.finditer(r"[\[\]{}]", text):
        depth += 1 if match.group() in "[{" else -1
        if depth > 8 * limits.yaml_depth:
            line = text.count("\n", 0, match.start()) + 1
            raise RecipeError("CV-R002", "nested too deeply", where=Where(file=file, line=line))


def _mark_where(mark: Any, text: str, file: str | None) -> Where:
    if mark is None:
        return Where(file=file)
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    return Where(file=file, line=mark.line + 1, column=mark.column + 1, text=shown_line(line))


class _Builder:
    """Turns composed nodes into plain data, remembering positions."""

    def __init__(self, text: str, file: str | None, limits: Limits) -> None:
        self.text, self.file, self.limits = text, file, limits
        self.keys: dict[Path, Spot] = {}
        self.values: dict[Path, Spot] = {}
        self.seen: dict[int, int] = {}

    def document(self, node: Any) -> Document:
        data = self.value(node, ())
        return Document(data, self.text, self.file, self.keys, self.values)

    def value(self, node: Any, path: Path) -> Any:
        if len(path) > self.limits.yaml_depth:
            raise self.refuse(node, "nested too deeply")
        self.seen[id(node)] = self.seen.get(id(node), 0) + 1
        if self.seen[id(node)] > self.limits.yaml_aliases:
            raise self.refuse(node, "too many uses of one alias")
        self.values[path] = _spot(node)
        kind = str(node.tag).removeprefix(_TAG)
        if kind == "map":
            return {key: self.value(child, (*path, key)) for key, child in self.pairs(node, path)}
        if kind == "seq":
            return [self.value(child, (*path, i)) for i, child in enumerate(node.value)]
        if kind in _SCALARS:
            return _SCALARS[kind](node.value)
        raise self.refuse(node, f"the tag `{printable(str(node.tag))}` is not allowed")

    def pairs(self, node: Any, path: Path) -> Iterator[tuple[str, Any]]:
        """Keys and value nodes of a mapping, with `<<` merged in under the explicit keys."""
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if str(key_node.tag) == _TAG + "merge":
                parts = value_node.value if str(value_node.tag) == _TAG + "seq" else [value_node]
                for part in parts:
                    for key, child in self.pairs(part, path):
                        merged.setdefault(key, child)
                continue
            if not isinstance(key_node.value, str):
                raise self.refuse(key_node, "a key must be a plain word")
            key = key_node.value
            if key in own:
                first = self.keys[(*path, key)]
                raise self.refuse(key_node, f"`{printable(key)}` is given twice, first in line {first.line}")
            own[key] = value_node
            self.keys[(*path, key)] = _spot(key_node)
        yield from {**merged, **own}.items()

    def refuse(self, node: Any, problem: str) -> RecipeError:
        return RecipeError("CV-R002", problem, where=_mark_where(node.start_mark, self.text, self.file))


def _spot(node: Any) -> Spot:
    start, end = node.start_mark, node.end_mark
    same_line = start.line == end.line and not isinstance(node.value, list)
    return Spot(start.line + 1, start.column + 1, max(1, end.column - start.column) if same_line else 1)


def _integer(text: str) -> int:
    plain = text.replace("_", "").lower()
    sign, digits = (-1, plain[1:]) if plain[0] == "-" else (1, plain.lstrip("+"))
    for prefix, radix in (("0x", 16), ("0o", 8), ("0b", 2)):
        if digits.startswith(prefix):
            return sign * int(digits[2:], radix)
    if len(digits) > 40:
        raise ValueError("a whole number of more than 40 digits")
    return sign * int(digits)


def _float(text: str) -> float:
    plain = text.replace("_", "").lower()
    special = {".inf": math.inf, "+.inf": math.inf, "-.inf": -math.inf, ".nan": math.nan}
    return special[plain] if plain in special else float(plain)


_SCALARS: dict[str, Callable[[str], Any]] = {
    "str": str,
    "int": _integer,
    "float": _float,
    "bool": lambda text: text.lower() == "true",
    "null": lambda text: None,
    "timestamp": str,
    "value": str,
}


def problem(document: Document, code: str, path: Path, message: str, **more: Any) -> Diagnostic:
    """A diagnostic at a place of the document; `key=True` points at the key, `hint` as usual."""
    hint = more.get("hint")
    return Diagnostic(code, message, document.where(path, key=more.get("key", False)), hint)
