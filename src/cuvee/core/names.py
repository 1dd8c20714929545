"""Names: nearest match, patterns, natural order, and making untrusted names safe to print."""

from __future__ import annotations

import fnmatch
import re
import unicodedata
from collections.abc import Iterable

_DIGITS = re.compile(r"(\d+)")
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}  # control, format (bidi), surrogate, private, separators


def edits(a: str, b: str) -> int:
    """Edit distance: insertions, deletions, substitutions and swaps of neighbours, each costing one."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, ca in enumerate(a, 1):
        older, before, row = before, row, [i]
        for j, cb in enumerate(b, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (ca != cb))
            if i > 1 and j > 1 and ca == b[j - 2] and a[i - 2] == cb:
                cost = min(cost, older[j - 2] + 1)
            row.append(cost)
    return row[-1]


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word a person most likely meant, or None."""
    found = candidates(word, known)
    return found[0] if found else None


def candidates(word: str, known: Iterable[str]) -> list[str]:
    """The known words a person may have meant, best first: all at edit distance one, else the most similar one."""
    import difflib  # takes as long to import as most starts need for all names

    words = list(dict.fromkeys(known))
    close = [w for w in words if abs(len(w) - len(word)) <= 1 and edits(word, w) == 1]
    if not close:
        return difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    return sorted(close, key=lambda w: difflib.SequenceMatcher(None, word, w).ratio(), reverse=True)[:3]


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """The hint for a misspelt word, or None."""
    found = candidates(word, known)
    return f"did you mean {' or '.join(f'`{w}`' for w in found)}?" if found else None


def natural(name: str) -> list[tuple[int, int | str]]:
    """Sort key under which `layers.2` comes before `layers.10`."""
    parts = (part for part in _DIGITS.split(name) if part)
    return [(0, int(part)) if part.isascii() and part.isdecimal() else (1, part) for part in parts]


def matches(pattern: str, name: str) -> bool:
    """Whether a tensor name fits a pattern: a glob when it holds `*?[`, else the name itself or a dotted part."""
    if any(c in pattern for c in "*?["):
        return fnmatch.fnmatchcase(name, pattern)
    return f".{pattern}." in f".{name}."


def printable(text: str, limit: int = 200) -> str:
    """The text with control, bidi and other invisible characters escaped, cut at `limit` characters."""
    if len(text) <= limit and text.isascii() and text.isprintable():
        return text
    shown = "".join(
        c if unicodedata.category(c) not in _HIDDEN else c.encode("unicode_escape").decode("ascii")
        for c in text[: limit + 1]
    )
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"
