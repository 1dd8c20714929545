"""Records: the standard library's dataclasses, made ten times faster, because a start makes hundreds of them.

The standard decorator writes and compiles six functions for each class. Here `__init__` is compiled when the first
instance is made, the others are shared closures. What they do is the same, and type checkers see the standard one;
left out are `order`, `InitVar` and inheritance between records, which nothing here uses. Knows no record.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import MISSING, FrozenInstanceError
from inspect import get_annotations
from operator import attrgetter
from reprlib import recursive_repr
from typing import TYPE_CHECKING, Any

_set = object.__setattr__

if TYPE_CHECKING:
    from dataclasses import dataclass
else:

    def dataclass(
        *, frozen: bool = False, slots: bool = False, eq: bool = True
    ) -> Callable[[type[Any]], type[Any]]:
        """A class decorator; what the class itself defines is kept."""

        def decorate(plain: type[Any]) -> type[Any]:
            written = {name for name, value in vars(plain).items() if value is not None}
            if plain.__doc__ is None:
                plain.__doc__ = f"{plain.__name__}({', '.join(get_annotations(plain))})"
            record = dataclasses.dataclass(init=False, repr=False, eq=False, slots=slots)(plain)
            methods = {
                "__init__": _first(record, frozen),
                "__repr__": _representation(record),
                **(_comparison(record, frozen) if eq else {}),
                **(_FROZEN if frozen else {}),
                **(_STATE if frozen and slots else {}),
            }
            for name, method in methods.items():
                if name not in written:
                    setattr(record, name, method)
            return record

        return decorate


def _first(record: type[Any], frozen: bool) -> Callable[..., None]:
    """An `__init__` that puts the compiled one into its place at the first call."""

    def __init__(self: Any, /, *arguments: Any, **named: Any) -> None:  # noqa: N807 (it is one)
        compiled = _initialiser(record, frozen)
        type.__setattr__(record, "__init__", compiled)
        compiled(self, *arguments, **named)

    return __init__


def _initialiser(record: type[Any], frozen: bool) -> Callable[..., None]:
    """The compiled `__init__`: text is made of the fields' names alone, which are Python's own identifiers."""
    known: dict[str, Any] = {"_set": _set, "_unset": MISSING}
    positional, named, body = ["self"], list[str](), list[str]()
    for field in dataclasses.fields(record):
        name = value = field.name
        default = ""
        if field.default_factory is not MISSING:
            known[f"_new_{name}"], default = field.default_factory, "=_unset"
            value = f"_new_{name}() if {name} is _unset else {name}" if field.init else f"_new_{name}()"
        elif field.default is not MISSING:
            known[f"_usual_{name}"], default = field.default, f"=_usual_{name}"
            value = name if field.init else f"_usual_{name}"
        elif not field.init:
            continue  # `__post_init__` gives it
        if field.init:
            (named if field.kw_only else positional).append(name + default)
        body.append(f"_set(self, {name!r}, {value})" if frozen else f"self.{name} = {value}")
    if hasattr(record, "__post_init__"):
        body.append("self.__post_init__()")
    heading = ", ".join([*positional, "*", *named] if named else positional)
    exec(f"def __init__({heading}):\n " + "\n ".join(body or ["pass"]), known)  # noqa: S102 (our own text)
    made: Callable[..., None] = known["__init__"]
    made.__qualname__, made.__module__ = f"{record.__qualname__}.__init__", record.__module__
    return made


def _representation(record: type[Any]) -> Callable[[Any], str]:
    names = [field.name for field in dataclasses.fields(record) if field.repr]

    @recursive_repr()
    def __repr__(self: Any) -> str:  # noqa: N807
        return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    return __repr__


def _comparison(record: type[Any], frozen: bool) -> Mapping[str, Any]:
    """`__eq__` over the fields of instances of one class; `__hash__` where they stay as they are."""
    fields = dataclasses.fields(record)
    compared = _values([field.name for field in fields if field.compare])
    hashed = _values([f.name for f in fields if (f.compare if f.hash is None else f.hash)])

    def __eq__(self: Any, other: Any) -> bool:  # noqa: N807
        if other.__class__ is not self.__class__:
            return NotImplemented
        return bool(compared(self) == compared(other))

    def __hash__(self: Any) -> int:  # noqa: N807
        return hash(hashed(self))

    return {"__eq__": __eq__, "__hash__": __hash__ if frozen else None}


def _values(names: list[str]) -> Callable[[Any], tuple[Any, ...]]:
    if len(names) > 1:
        return attrgetter(*names)
    return lambda record: tuple(getattr(record, name) for name in names)


def _refuse_set(self: Any, name: str, value: Any) -> None:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_delete(self: Any, name: str) -> None:
    raise FrozenInstanceError(f"cannot delete field {name!r}")


def _state(self: Any) -> list[Any]:
    return [getattr(self, field.name) for field in dataclasses.fields(self)]


def _restore(self: Any, state: list[Any]) -> None:
    for field, value in zip(dataclasses.fields(self), state, strict=True):
        _set(self, field.name, value)


_FROZEN: Mapping[str, Any] = {"__setattr__": _refuse_set, "__delattr__": _refuse_delete}
_STATE: Mapping[str, Any] = {"__getstate__": _state, "__setstate__": _restore}

__all__ = ["dataclass"]
