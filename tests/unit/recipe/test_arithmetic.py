"""Arithmetic of checkpoints as text, against Python's own arithmetic on numbers."""

from __future__ import annotations

import random

import pytest

from cuvee.recipe.expressions import BadExpression, terms


def expression(chance: random.Random, depth: int = 0) -> str:
    """A random text that is linear in a, b and c."""
    kind = chance.randrange(6 if depth < 4 else 1)
    if kind == 0:
        return chance.choice("abc")
    inner = expression(chance, depth + 1)
    if kind == 1:
        return f"({inner})"
    if kind == 2:
        return f"-{inner}" if inner[0] != "(" else f"- {inner}"
    if kind == 3:
        return f"{chance.choice(['2', '0.5', '.25', '1e1'])} * ({inner})"
    return f"{inner} {chance.choice('+-')} ({expression(chance, depth + 1)})"


@pytest.mark.parametrize("seed", range(100))
def test_the_coefficients_are_those_of_the_linear_form(seed: int) -> None:
    text = expression(random.Random(seed))
    found = {name: c for c, name in terms(text)}
    for name in "abc":
        values = {other: float(other == name) for other in "abc"}
        assert found.get(name, 0.0) == eval(text, {"__builtins__": {}}, values), text


def test_any_number_of_signs_and_terms() -> None:
    assert terms("-" * 20_001 + "a") == ((-1.0, "a"),)
    assert terms("a" + " + a" * 20_000) == ((20_001.0, "a"),)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a * b", "multiplies two checkpoints"),
        ("a + 1", "stands alone"),
        ("", "ends too early"),
        ("a -", "ends too early"),
        ("(a", "ends too early"),
        ("a b", "unexpected `b`"),
        ("a / 2", "unexpected `/`"),
        ("2 * 3", "stands alone"),
        ("1e999 * a", "beyond all numbers"),
        ("1e300 * 1e300 * a", "beyond all numbers"),
        ("(" * 50 + "a" + ")" * 50, "nested too deeply"),
    ],
)
def test_what_is_not_a_sum_is_refused(text: str, word: str) -> None:
    with pytest.raises(BadExpression, match=word):
        terms(text)
