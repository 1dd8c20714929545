"""The only module that prints. stdout carries data; progress, warnings and hints go to stderr."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import click

from cuvee.core import settings
from cuvee.core.grouping import grouped
from cuvee.core.names import printable
from cuvee.core.plain import plain
from cuvee.errors import CuveeError, Diagnostic, Where

_COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}
_WIDTH = 160  # characters of a line that are shown
_HEAD = re.compile(r"(\x1b\[3[136]m\x1b\[1m(?:error|warning|note)\[CV-[A-Z]\d{3}\]\x1b\[0m)")


def stdout(text: str) -> None:
    """Data for the caller."""
    click.echo(visible(text))


def stderr(text: str) -> None:
    """Everything else."""
    click.echo(visible(text), err=True, color=in_colour() or None)


def visible(text: str) -> str:
    """The text with every control, bidi or other invisible character escaped: the last door before a terminal.

    Line ends, tabs and this program's own coloured heads stay.
    """
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "\n".join(line if line.isprintable() else _escaped(line) for line in text.split("\n"))


def _escaped(line: str) -> str:
    parts = _HEAD.split(line) if in_colour() else [line]
    return "".join(
        part if i % 2 else "\t".join(printable(piece, 10 * len(piece) + 10) for piece in part.split("\t"))
        for i, part in enumerate(parts)
    )


def print_json(content: Any) -> None:
    """One JSON object on stdout; characters from files are escaped."""
    stdout(json.dumps(plain(content), indent=2, ensure_ascii=True, default=str))


def json_line(content: Any) -> None:
    """One line of a JSON stream on stdout."""
    stdout(json.dumps(plain(content), ensure_ascii=True, default=str))
    sys.stdout.flush()


def coloured(text: str, colour: str) -> str:
    """The text in colour where colour is wanted."""
    return click.style(text, fg=colour, bold=True) if in_colour() else text


def in_colour() -> bool:
    """Whether stderr is coloured: on a terminal or with FORCE_COLOR, never with NO_COLOR."""
    return bool((sys.stderr.isatty() or settings.get("FORCE_COLOR")) and not settings.get("NO_COLOR"))


def diagnostic_text(d: Diagnostic, others: str | None = None) -> str:
    """A finding with its place, the line, a caret, what `others` it stands for, and the hint."""
    lines = [f"{coloured(f'{d.severity}[{d.code}]', _COLOURS[d.severity])}: {_whole(d.message)}"]
    where = d.where
    if where is not None:
        place = printable(where.file) if where.file else ""
        if where.line is not None:
            place = f"{place or 'recipe'}:{where.line}" + (f":{where.column}" if where.column else "")
        logical = f" ({printable(where.path)})" if where.path else ""
        if place:
            lines.append(f"  --> {place}{logical}")
        lines += _excerpt(where)
        if not place and where.source:
            lines.append(
                f"  --> {printable(where.source)}" + (f" · {printable(where.tensor)}" if where.tensor else "")
            )
    if others:
        lines.append(f"  = {_whole(others)}")
    if d.hint:
        lines.append(f"hint: {_whole(d.hint)}")
    return "\n".join(lines)


def _excerpt(where: Where) -> list[str]:
    """The line of the file with a caret below it; of a long line the part around the caret."""
    if where.text is None or where.line is None:
        return []
    text, at = where.text, (where.column or 1) - 1
    if len(text) > _WIDTH:
        start = max(0, at - _WIDTH // 2)
        end = start + _WIDTH
        text = ("…" if start else "") + text[start:end] + ("…" if end < len(text) else "")
        at -= start - bool(start)
    number = f"{where.line:>4}"
    lines = [f"{number} | {_whole(text)}"]
    if where.column is not None:
        width = max(1, min(where.width, len(text) - at))
        lines.append(f"{' ' * len(number)} | {' ' * at}{'^' * width}")
    return lines


def _whole(text: str) -> str:
    return printable(text, 4000)


def error_text(error: CuveeError) -> str:
    """All findings of an error, and how many there are."""
    parts = list(grouped_texts(in_order(error.diagnostics)))
    if len(error.diagnostics) > 1:
        parts.append(counted(error.diagnostics, early=error.exit_code == 2))
    return "\n\n".join(parts)


def counted(found: Sequence[Diagnostic], *, early: bool) -> str:
    """The last words on errors: how many, in which file, whether anything was done (`early`: it was not)."""
    files = {d.where.file for d in found if d.where and d.where.file}
    place = f" in {printable(files.pop())}" if len(files) == 1 else ""
    number = f"{len(found)} error{'' if len(found) == 1 else 's'}{place}"
    done = "; nothing was read or written" if early else ""
    return f"{number}{done}\nhint: `cuvee explain {found[0].code}`"


def grouped_texts(found: Iterable[Diagnostic]) -> Iterator[str]:
    """A text for each cause: what many tensors have in common is told once."""
    for group in grouped(found):
        yield diagnostic_text(group.first, group.others)


def in_order(found: Iterable[Diagnostic]) -> list[Diagnostic]:
    """Findings in the order of the file they are in; what has no line comes last."""
    listed = list(found)
    files = list(dict.fromkeys(d.where.file for d in listed if d.where))
    return sorted(
        listed,
        key=lambda d: (
            files.index(d.where.file) if d.where and d.where.line else len(files),
            (d.where.line or 0, d.where.column or 0) if d.where else (0, 0),
        ),
    )


def notes(diagnostics: Iterable[Diagnostic], quiet: bool = False) -> None:
    """Warnings and notes on stderr; notes are left out when quiet."""
    for text in grouped_texts(d for d in diagnostics if d.severity != "note" or not quiet):
        stderr(text)


def table(header: list[str], rows: list[list[str]]) -> str:
    """Columns aligned by spaces, for terminals and golden files alike."""
    widths = [max(len(r[i]) for r in [header, *rows]) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, *rows]
    )
