"""Which faces are of one type family, told by the names they carry themselves.

File names will not do: they are cut to eight letters, and `sans` and `sansoblique` look like two families. Owns the
words that name a style. Knows no pictures.
"""

from __future__ import annotations

import re

_BRACKETED = re.compile(r"\(.*?\)")
_JAPANESE = re.compile(r"P?\s*(?:Gothic|Mincho)")  # the P is of proportional
_WORD = re.compile(r"[A-Z]?[a-z]{2,}|[A-Z]{2,}(?![a-z])")
_NAMES = """
    thin hairline light book regular normal medium semibold bold heavy black italic italics oblique slant upright
    outline outlined hollow solid plain shad shadow wide tall narrow condensed thick mini round sans serif mono
"""
STYLES = frozenset(_NAMES.split())


def family(name: str) -> str:
    """The first word of a typeface's own name that names no style, in small letters.

    `FreeSans` and `FreeMono` are one family, as are `IPAGothic` and `IPAPMincho`, `Kaliber Round` and `Mini Kaliber O`:
    rather two families in one than one in two, for a family must not be cut into training and test.
    """
    bare = _JAPANESE.sub(" ", _BRACKETED.sub(" ", name))
    words = [word.lower() for word in _WORD.findall(bare)]
    return next((word for word in words if word not in STYLES), name.strip().lower())
