"""`docs/promises.md` lists all promises, and every test it names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "promises.md"
_TEST = re.compile(r"\]\((\.\./tests/[\w/]+\.py)#(test_\w+)\)")
_ITEM = re.compile(r"^(\d+)\. \*\*(.*?)(?=^\d+\. \*\*|\Z)", re.S | re.M)


def test_all_twenty_five_have_a_status() -> None:
    items = {int(m[1]): m[2] for m in _ITEM.finditer(PAGE.read_text(encoding="utf-8"))}
    assert list(items) == list(range(1, 26))
    for number, text in items.items():
        kept, partly, not_yet = ("*Kept:*" in text, "*In part:*" in text, "*Not yet" in text)
        assert kept + partly + not_yet == 1, f"promise {number} has no single status"
        assert bool(_TEST.search(text)) == (kept or partly), f"promise {number} and its tests"


def test_every_named_test_exists() -> None:
    for file, name in _TEST.findall(PAGE.read_text(encoding="utf-8")):
        tree = ast.parse((PAGE.parent / file).read_text(encoding="utf-8"))
        functions = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
        assert name in functions, f"{file} has no {name}"
