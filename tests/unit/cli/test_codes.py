"""The table of error codes and the source hold each other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import cuvee
from cuvee.cli.codes import codes

SOURCE = Path(cuvee.__file__).parent
CODE = re.compile(r"\bCV-[A-Z]\d+\b")


def _used() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        for code in CODE.findall(path.read_text(encoding="utf-8")):
            found.setdefault(code, []).append(str(path.relative_to(SOURCE)))
    return found


def test_every_code_in_the_source_is_explained_and_no_other() -> None:
    used = _used()
    missing = {code: places for code, places in used.items() if code not in codes()}
    unused = codes().keys() - used.keys()
    assert not missing, f"add to codes.toml: {missing}"
    assert not unused, f"in codes.toml but nowhere raised: {unused}"


def test_entries_are_complete_and_sorted() -> None:
    text = (SOURCE / "codes.toml").read_text(encoding="utf-8")
    tables = re.findall(r'^\["(.+)"\]$', text, re.M)
    assert tables == sorted(tables)
    titles = [entry["title"] for entry in codes().values()]
    assert len(set(titles)) == len(titles)
    for code, entry in codes().items():
        assert entry.keys() == {"title", "text"}, code
        assert not entry["title"].endswith("."), code
        sentences = re.findall(r"[.:?;](?:\s|$)", entry["text"])
        assert 2 <= len(sentences) <= 8, code
        assert entry["text"].strip().endswith("."), code


@pytest.mark.parametrize("code", sorted(codes()))
def test_explain_prints_every_code(code: str, cli: Any) -> None:
    outcome = cli("explain", code)
    assert outcome.code == 0
    assert outcome.err == ""
    assert outcome.out.startswith(f"{code}: {codes()[code]['title']}\n")
    assert codes()[code]["text"].strip() in outcome.out
    assert cli("explain", code.lower(), "--json").json["code"] == code


def test_codes_of_a_module_keep_their_letter() -> None:
    """S: sources and formats, R: recipes, P: plans, E: runs, V: verification, T: bundle, U: usage."""
    at_home = {"formats": "S", "sources": "S", "sinks": "E", "engine": "EU", "bundle": "TV"}
    for code, places in _used().items():
        for place in places:
            letters = at_home.get(place.split("/")[0])
            if letters is not None:
                assert code[3] in letters, f"{code} in {place}"
