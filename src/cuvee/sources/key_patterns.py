"""PEFT's `rank_pattern` and `alpha_pattern` keys: regular expressions from a file nobody vouches for.

A key applies to a module when `(.*\\.)?(key)$` matches its name from the start, and the first such key
wins. Python's own engine can take exponential time on a hostile key, so keys with choice or repetition run
on a Thompson automaton, linear in the name. Must not know of adapters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from re import _constants as op  # type: ignore[attr-defined]  # the tables of the standard parser
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

Matcher = Callable[[str], bool]
_PLAIN = re.compile(r"\^?(?:[\w-]|\.|\\[.-])*\$?")
_MAX_KEY = 2_000
_MAX_STATES = 20_000


class BadPatternError(ValueError):
    """The key is not a regular expression that can be matched in linear time."""


def first_match(keys: Iterable[str], name: str) -> str | None:
    """The first key that applies to a module, as in PEFT; BadPatternError when one cannot be used."""
    return next((key for key in keys if matcher(key)(name)), None)


@lru_cache(maxsize=8192)
def matcher(key: str) -> Matcher:
    """A predicate on module names, linear in their length."""
    if len(key) > _MAX_KEY:
        raise BadPatternError(f"longer than {_MAX_KEY} characters")
    if _PLAIN.fullmatch(key):  # neither choice nor repetition: the standard engine is linear in each start
        found = re.compile(rf"(.*\.)?({key})$")
        return lambda name: found.match(name) is not None
    try:
        tree = parser.parse(rf"(.*\.)?({key})$")
        program = _Program()
        last = program.sequence(tree, program.add("match"))
    except (re.error, OverflowError, RecursionError) as error:
        raise BadPatternError(str(error)) from None
    return lambda name: _run(program.code, last, name)


class _Program:
    """Instructions `(kind, argument, next, other)`, built back to front."""

    def __init__(self) -> None:
        self.code: list[tuple[str, Any, int, int]] = []

    def add(self, kind: str, argument: Any = None, onward: int = -1, other: int = -1) -> int:
        if len(self.code) >= _MAX_STATES:
            raise BadPatternError("too many repetitions")
        self.code.append((kind, argument, onward, other))
        return len(self.code) - 1

    def sequence(self, tree: Any, onward: int) -> int:
        for kind, argument in reversed(list(tree)):
            onward = self.node(kind, argument, onward)
        return onward

    def node(self, kind: Any, argument: Any, onward: int) -> int:
        if kind in (op.LITERAL, op.NOT_LITERAL, op.ANY, op.IN):
            return self.add("char", _accepts(kind, argument), onward)
        if kind is op.SUBPATTERN and not argument[1] and not argument[2]:
            return self.sequence(argument[3], onward)
        if kind is op.BRANCH:
            return self.branch([self.sequence(tree, onward) for tree in argument[1]])
        if kind in (op.MAX_REPEAT, op.MIN_REPEAT):
            least, most, tree = argument
            return self.repeat(least, most, tree, onward)
        if kind is op.AT and argument in (op.AT_BEGINNING, op.AT_BEGINNING_STRING):
            return self.add("start", None, onward)
        if kind is op.AT and argument in (op.AT_END, op.AT_END_STRING):
            return self.add("end", None, onward)
        raise BadPatternError("back references, look-around, flags and word boundaries are not supported")

    def branch(self, starts: list[int]) -> int:
        first = starts[-1]
        for start in reversed(starts[:-1]):
            first = self.add("split", None, start, first)
        return first

    def repeat(self, least: int, most: Any, tree: Any, onward: int) -> int:
        if most is op.MAXREPEAT:
            loop = self.add("split", None, -1, onward)
            self.code[loop] = ("split", None, self.sequence(tree, loop), onward)
            onward = loop
        else:
            for _ in range(int(most) - least):
                onward = self.add("split", None, self.sequence(tree, onward), onward)
        for _ in range(least):
            onward = self.sequence(tree, onward)
        return onward


def _accepts(kind: Any, argument: Any) -> Callable[[str], bool]:
    if kind is op.ANY:
        return lambda c: c != "\n"
    if kind is op.LITERAL:
        return lambda c: ord(c) == argument
    if kind is op.NOT_LITERAL:
        return lambda c: ord(c) != argument
    negated = argument[0][0] is op.NEGATE
    tests = [_member(*item) for item in argument[1 if negated else 0 :]]
    return lambda c: any(test(c) for test in tests) != negated


_CATEGORIES: dict[Any, Callable[[str], bool]] = {
    op.CATEGORY_DIGIT: str.isdecimal,
    op.CATEGORY_NOT_DIGIT: lambda c: not c.isdecimal(),
    op.CATEGORY_WORD: lambda c: c.isalnum() or c == "_",
    op.CATEGORY_NOT_WORD: lambda c: not (c.isalnum() or c == "_"),
    op.CATEGORY_SPACE: str.isspace,
    op.CATEGORY_NOT_SPACE: lambda c: not c.isspace(),
}


def _member(kind: Any, argument: Any) -> Callable[[str], bool]:
    if kind is op.RANGE:
        return lambda c: argument[0] <= ord(c) <= argument[1]
    if kind is op.CATEGORY:
        return _CATEGORIES[argument]
    return _accepts(kind, argument)


def _run(code: list[tuple[str, Any, int, int]], first: int, name: str) -> bool:
    """Whether the program accepts the name from its start (the pattern itself asks for the end)."""
    states = _closure(code, [first], 0, len(name))
    for position, letter in enumerate(name, 1):
        if not states:
            return False
        onward = [code[s][2] for s in states if code[s][0] == "char" and code[s][1](letter)]
        states = _closure(code, onward, position, len(name))
    return any(code[s][0] == "match" for s in states)


def _closure(
    code: list[tuple[str, Any, int, int]], pending: list[int], position: int, length: int
) -> set[int]:
    """All states reachable without a letter."""
    seen: set[int] = set()
    while pending:
        state = pending.pop()
        if state in seen:
            continue
        seen.add(state)
        kind, _, onward, other = code[state]
        if kind == "split":
            pending += (onward, other)
        elif (kind == "start" and position == 0) or (kind == "end" and position == length):
            pending.append(onward)
    return seen
