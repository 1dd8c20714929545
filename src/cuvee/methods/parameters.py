"""Parameters of stages, read from their signatures: the one source of schema, help, docs and validation.

Annotations understood: `float`, `int`, `bool`, `str`, `Literal[...]`, `Fraction` (0…1), `NonNegative`,
`Positive`, `Tolerance` (0…1, without 1), `Unbounded` floats, `Listed` texts, `| None`, and `PerExpert[T]` around
any of them (one value per input).
The line of the docstring's `Args:` section that starts with the parameter's name is its help text.
"""

from __future__ import annotations

import inspect
import math
import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, TypeAlias, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Range:
    """Bounds of a number; `open_low` and `open_high` exclude the bound itself."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def holds(self, x: float) -> bool:
        above = x > self.low if self.open_low else x >= self.low
        below = x < self.high if self.open_high else x <= self.high
        return above and below

    def __str__(self) -> str:
        low = "" if self.low == -math.inf else f"{'more than' if self.open_low else 'at least'} {self.low:g}"
        above = "less than" if self.open_high else "at most"
        high = "" if self.high == math.inf else f"{above} {self.high:g}"
        return " and ".join(part for part in (low, high) if part)


Fraction = Annotated[float, Range(0.0, 1.0)]
NonNegative = Annotated[float, Range(0.0)]
Positive = Annotated[float, Range(0.0, open_low=True)]
Tolerance = Annotated[
    float, Range(0.0, 1.0, open_high=True)
]  # relative to the largest, which is never left out

_LISTED = "also a list of numbers"
Listed = Annotated[str, _LISTED]  # a text for which a recipe may write a list of numbers: `[0.9, 0.4]`


if TYPE_CHECKING:
    PerExpert: TypeAlias = Annotated[T, "one value for each input model"]
else:

    class PerExpert(Generic[T]):
        """Annotation: one value for each input model."""


def each(value: Any, count: int) -> list[Any]:
    """The values of a `PerExpert` parameter in a combine stage: the list it came as, or one value for all."""
    return list(value) if isinstance(value, (list, tuple)) else [value] * count


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter as users see it."""

    name: str  # as written in recipes: `lambda`
    argument: str  # as named in Python: `lam`
    type: Literal["float", "int", "bool", "str", "choice"]
    per_expert: bool
    required: bool
    default: Any
    optional: bool  # None is allowed
    range: Range | None
    choices: tuple[str, ...]
    help: str
    listed: bool = False  # a list of numbers is one value: the text of it

    def problem(self, value: Any) -> str | None:
        """What is wrong with one (scalar) value, as the rest of a sentence begun by the name, or None."""
        if value is None:
            return None if self.optional else f"must be {self.expected()}, got nothing"
        right_type = {
            "float": isinstance(value, (int, float)) and not isinstance(value, bool),
            "int": isinstance(value, int) and not isinstance(value, bool),
            "bool": isinstance(value, bool),
            "str": isinstance(value, str),
            "choice": value in self.choices,
        }[self.type]
        if not right_type:
            return f"must be {self.expected()}, got {value!r}"
        if self.type in ("float", "int") and not math.isfinite(value):
            return f"must be finite, got {value!r}"
        if self.range is not None and not self.range.holds(value):
            return f"must be {self.range}, got {value:g}"
        return None

    def expected(self) -> str:
        """The set of allowed values in words."""
        if self.type == "choice":
            return "one of " + ", ".join(f"`{c}`" for c in self.choices)
        words = {"float": "a number", "int": "a whole number", "bool": "true or false", "str": "a text"}[
            self.type
        ]
        return f"{words} {self.range}" if self.range and str(self.range) else words


_RENAMED = {"lam": "lambda"}
_INJECTED = {"summary", "uniforms", "decompose", "factors", "block"}


def parameters_of(function: Callable[..., Any]) -> tuple[Parameter, ...]:
    """The parameters a stage function declares: its keyword-only arguments, less the injected ones."""
    hints = typing.get_type_hints(function, localns=_HINT_NAMES, include_extras=True)
    helps = _argument_help(function.__doc__ or "")
    return tuple(
        _parameter(arg, hints[arg.name], helps.get(arg.name, ""))
        for arg in inspect.signature(function).parameters.values()
        if arg.kind is inspect.Parameter.KEYWORD_ONLY and arg.name not in _INJECTED
    )


class _AnyTensor:
    """Stands for torch.Tensor while hints are resolved, so that reading a signature never imports torch."""


_HINT_NAMES: dict[str, Any] = {"Tensor": _AnyTensor, "Summary": dict, "Uniforms": object, "Block": object}


def _parameter(argument: inspect.Parameter, hint: Any, text: str) -> Parameter:
    per_expert = typing.get_origin(hint) is PerExpert
    if per_expert:
        (hint,) = typing.get_args(hint)
    hint, optional = _without_none(hint)
    bounds: Range | None = None
    listed = False
    if typing.get_origin(hint) is Annotated:
        hint, *extras = typing.get_args(hint)
        bounds = next((e for e in extras if isinstance(e, Range)), None)
        listed = _LISTED in extras
    choices: tuple[str, ...] = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
    kind: Any = "choice" if choices else hint.__name__
    required = argument.default is inspect.Parameter.empty
    return Parameter(
        name=_RENAMED.get(argument.name, argument.name),
        argument=argument.name,
        type=kind,
        per_expert=per_expert,
        required=required,
        default=None if required else argument.default,
        optional=optional,
        range=bounds,
        choices=choices,
        help=text,
        listed=listed,
    )


def _without_none(hint: Any) -> tuple[Any, bool]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        rest = [a for a in typing.get_args(hint) if a is not type(None)]
        return rest[0], True
    return hint, False


def _argument_help(doc: str) -> dict[str, str]:
    section = re.search(
        r"^\s*Args:\s*\n(.*?)(?:\n\s*\n|\n\s*(?:Returns|Raises|Example):|\Z)", doc, re.S | re.M
    )
    if not section:
        return {}
    out: dict[str, str] = {}
    current = ""
    for line in section.group(1).splitlines():
        start = re.match(r"\s*(\w+): (.*)", line)
        if start:
            current = start.group(1)
            out[current] = start.group(2).strip()
        elif current:
            out[current] += " " + line.strip()
    return out
