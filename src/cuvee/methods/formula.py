"""Formulas of one variable x as text: `0.5 * (1 + cos(pi * x))` → numbers. The text is parsed, never evaluated as code.

Owns the little language: numbers, x, pi, e, + − * / **, parentheses, and a few functions. Must not know any method.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

FUNCTIONS: dict[str, Callable[..., float]] = {
    "abs": abs,
    "cos": math.cos,
    "exp": math.exp,
    "log": math.log,
    "max": max,
    "min": min,
    "sin": math.sin,
    "sqrt": math.sqrt,
}
_CONSTANTS = {"pi": math.pi, "e": math.e}
_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: math.pow,
}
_LISTS = (ast.Tuple, ast.List)
_LONGEST = 2000  # characters: keeps nesting within what the parser can take


class BadFormula(ValueError):
    """The text is no formula of x, or has no value there; the message is a sentence without full stop."""


def values(text: str, points: Sequence[float]) -> list[float]:
    """The formula's value at each x, or the numbers of a list `0.9, 0.7, 0.4`, as many as there are points.

    BadFormula where the text is neither, holds anything but arithmetic, has no finite value, or a list has another
    length.
    """
    tree = _parsed(text)
    if isinstance(tree, _LISTS):
        if len(tree.elts) != len(points):
            raise BadFormula(f"the list has {len(tree.elts)} values, expected {len(points)}")
        return [_finite(element, x) for element, x in zip(tree.elts, points, strict=True)]
    return [_finite(tree, x) for x in points]


def is_list(text: str) -> bool:
    """Whether the text is a list of numbers rather than one formula; BadFormula where it cannot be read."""
    return isinstance(_parsed(text), _LISTS)


def _parsed(text: str) -> ast.expr:
    if len(text) > _LONGEST:
        raise BadFormula(f"is longer than {_LONGEST} characters")
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BadFormula(f"cannot be read as a formula of `x`: {getattr(error, 'msg', error)}") from error


def _finite(tree: ast.expr, x: float) -> float:
    try:
        value = float(_value(tree, x))
    except (ArithmeticError, ValueError, TypeError, RecursionError) as error:
        if isinstance(error, BadFormula):
            raise
        raise BadFormula(f"has no value at x = {x:g}: {error}") from error
    if not math.isfinite(value):
        raise BadFormula(f"is not finite at x = {x:g}")
    return value


def _value(node: Any, x: float) -> float:
    if (
        isinstance(node, ast.Constant)
        and isinstance(node.value, (int, float))
        and not isinstance(node.value, bool)
    ):
        return float(node.value)
    if isinstance(node, ast.Name) and node.id in ("x", *_CONSTANTS):
        return x if node.id == "x" else _CONSTANTS[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        inner = _value(node.operand, x)
        return -inner if isinstance(node.op, ast.USub) else inner
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _BINARY[type(node.op)](_value(node.left, x), _value(node.right, x))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        function = FUNCTIONS.get(node.func.id)
        if function is not None:
            return function(*(_value(argument, x) for argument in node.args))
    known = ", ".join(("x", *_CONSTANTS, *FUNCTIONS))
    raise BadFormula(f"may hold numbers, + - * / **, parentheses and {known} only")
