"""Arithmetic of checkpoints, as text: `c + 0.5 * (b - a)` → weighted terms. No code is ever evaluated."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

_TOKEN = re.compile(r"\s*(?:(\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+)|([A-Za-z_][\w-]*)|([-+*()]))")


class BadExpression(ValueError):
    """The text is not a sum of checkpoints with number factors."""


def terms(text: str) -> tuple[tuple[float, str], ...]:
    """The coefficients of each name, in order of first mention; BadExpression when it is not linear."""
    parser = _Parser(list(_tokens(text)))
    result = parser.sum()
    if parser.position != len(parser.tokens):
        raise BadExpression(f"unexpected `{parser.tokens[parser.position]}`")
    names, constant = result
    if not all(math.isfinite(c) for c in (constant, *names.values())):
        raise BadExpression("has a factor beyond all numbers")
    if constant:
        raise BadExpression(f"the number {constant:g} stands alone; every term needs a checkpoint")
    if not names:
        raise BadExpression("names no checkpoint")
    return tuple((c, n) for n, c in names.items())


def _tokens(text: str) -> Iterator[str]:
    position = 0
    while text[position:].strip():
        match = _TOKEN.match(text, position)
        if match is None:
            raise BadExpression(f"unexpected `{text[position:].strip()[0]}`")
        yield match.group().strip()
        position = match.end()


Value = tuple[dict[str, float], float]  # coefficients by name, and a plain number


class _Parser:
    """Recursive descent over + − * and parentheses; values are linear forms."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.position = 0
        self.depth = 0

    def peek(self) -> str | None:
        return self.tokens[self.position] if self.position < len(self.tokens) else None

    def take(self) -> str:
        token = self.peek()
        if token is None:
            raise BadExpression("ends too early")
        self.position += 1
        return token

    def sum(self) -> Value:
        names, number = self.product()
        while self.peek() in ("+", "-"):
            sign = 1.0 if self.take() == "+" else -1.0
            more, rest = self.product()
            for name, c in more.items():
                names[name] = names.get(name, 0.0) + sign * c
            number += sign * rest
        return names, number

    def product(self) -> Value:
        left = self.factor()
        while self.peek() == "*":
            self.take()
            left = _times(left, self.factor())
        return left

    def factor(self) -> Value:
        token, sign = self.take(), 1.0
        while token == "-":
            token, sign = self.take(), -sign
        return _times(({}, sign), self.plain(token))

    def plain(self, token: str) -> Value:
        """A number, a name, or a sum in parentheses."""
        if token == "(":
            self.depth += 1
            if self.depth > 32:
                raise BadExpression("is nested too deeply")
            inner = self.sum()
            if self.take() != ")":
                raise BadExpression("lacks a closing parenthesis")
            self.depth -= 1
            return inner
        if token[0].isdigit() or token[0] == ".":
            return {}, float(token)
        if token in "+*)":
            raise BadExpression(f"unexpected `{token}`")
        return {token: 1.0}, 0.0


def _times(a: Value, b: Value) -> Value:
    if a[0] and b[0]:
        raise BadExpression("multiplies two checkpoints; only numbers may be factors")
    names, number = (a[0], b[1]) if a[0] else (b[0], a[1])
    constant = a[1] * b[1]
    return {n: c * number for n, c in names.items()}, constant
