"""What reaches a terminal: nothing invisible from files, colour only where it is wanted."""

from __future__ import annotations

import unicodedata

import pytest

from cuvee.cli import render
from cuvee.errors import CuveeError, Diagnostic, UsageError, Where

HOSTILE = "a\x1b[31mred\x07\u202eevil\u2066\u200b\x9b2J\r\n\x00b\u2028c\ud800"
HIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def invisible(text: str) -> set[str]:
    return {c for c in text if unicodedata.category(c) in HIDDEN} - {"\n", "\t"}


def test_every_part_of_a_diagnostic_is_escaped() -> None:
    where = Where(file=HOSTILE, line=3, column=2, width=5, path=HOSTILE, text=HOSTILE)
    text = render.diagnostic_text(Diagnostic("CV-R004", HOSTILE, where, HOSTILE))
    assert not invisible(text)
    assert (
        len(text.splitlines()) == 5
    )  # message, place, line, caret, hint: a line end in a name makes no line
    text = render.diagnostic_text(Diagnostic("CV-S001", "x", Where(source=HOSTILE, tensor=HOSTILE)))
    assert not invisible(text)


def test_the_last_door_escapes_what_came_so_far(capsys: pytest.CaptureFixture[str]) -> None:
    render.stdout(HOSTILE)
    render.stderr(HOSTILE)
    for stream in capsys.readouterr():
        assert not invisible(stream)
        assert "\\x1b[31mred\\x07\\u202eevil" in stream


def test_plain_text_passes_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    text = "naïve\tκ = 0.5 · 日本 ×\u00a0→ 🙂\n\n  two"
    render.stdout(text)
    assert capsys.readouterr().out == text + "\n"


@pytest.mark.parametrize(("force", "no", "coloured"), [("1", "", True), ("1", "1", False), ("", "", False)])
def test_colour(
    force: str, no: str, coloured: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", force)
    monkeypatch.setenv("NO_COLOR", no)
    render.stderr(render.diagnostic_text(Diagnostic("CV-R004", HOSTILE, None, "h")))
    err = capsys.readouterr().err
    assert err.startswith(
        "\x1b[31m\x1b[1merror[CV-R004]\x1b[0m: a\\x1b[31m" if coloured else "error[CV-R004]: a\\x1b[31m"
    )
    assert err.count("\x1b") == (3 if coloured else 0)


def test_json_is_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    render.print_json({HOSTILE: HOSTILE})
    render.json_line({"a": HOSTILE})
    out = capsys.readouterr().out
    assert out.isascii()
    assert not invisible(out)


def test_several_errors_are_counted_and_explained() -> None:
    found = [Diagnostic("CV-R004", "one"), Diagnostic("CV-R010", "two", hint="do this")]
    text = render.error_text(CuveeError.collected(found))
    assert text.endswith("hint: do this\n\n2 errors\nhint: `cuvee explain CV-R004`")
    assert render.error_text(UsageError("CV-U001", "one")) == "error[CV-U001]: one"


def test_json_holds_null_where_there_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    import json

    import numpy

    content = {"a": [float("nan"), (numpy.float64("inf"), 1.5)], "b": {"c": -float("inf"), "d": None}}
    for show in (render.print_json, render.json_line):
        show(content)
        found = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
        assert found == {"a": [None, [None, 1.5]], "b": {"c": None, "d": None}}
