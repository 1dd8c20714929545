"""What the base learns before any task: to tell apart characters and radicals that no task asks for.

Its type families are those of training parts, so that no test typeface was seen. Knows no models.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from cuvee.evaluate.tracks.vision.glyphs import jittered
from cuvee.evaluate.tracks.vision.pictures import JAPANESE, LATIN, Picture, lettered, radicals, written

SMALL = "abcdefghijklmnopqrstuvwxyz"
ALPHABETS = "αβγδεζηθικλμνξπρστυφχψωбвгджзийклмнптуфцчшщъыьэюя"
SYSTEMS = {
    "Adlam": (0x1E900, 0x1E943),
    "Balinese": (0x1B05, 0x1B33),
    "Bamum": (0xA6A0, 0xA6EF),
    "CanadianAboriginal": (0x1401, 0x14FF),
    "Coptic": (0x2C80, 0x2CB1),
    "Glagolitic": (0x2C00, 0x2C5E),
    "Javanese": (0xA984, 0xA9B2),
    "LinearB": (0x10000, 0x1004D),
    "NKo": (0x7CA, 0x7EA),
    "OlChiki": (0x1C5A, 0x1C7D),
    "Oriya": (0xB05, 0xB39),
    "Runic": (0x16A0, 0x16EA),
    "Syriac": (0x710, 0x72F),
    "Thaana": (0x780, 0x7A5),
    "Tibetan": (0xF40, 0xF6C),
    "Tifinagh": (0x2D30, 0x2D67),
    "Vai": (0xA500, 0xA5FF),
    "Yi": (0xA000, 0xA0FF),
}
_COPIES = 4
RANKS = (20, 60)  # of radicals by frequency; the tasks ask for the first twenty
_KEPT = "training families only"


def small() -> Iterator[Picture]:
    """Small Latin letters, and small Greek and Cyrillic ones of the faces that have them."""
    for wanted, fonts in ((SMALL, LATIN), (ALPHABETS, (*LATIN[1:], *JAPANESE))):
        yield from (p for p in lettered(wanted, fonts, copies=1) if not p.test)


def signs() -> Iterator[Picture]:
    """Characters of eighteen writing systems that the task `scripts` does not ask for, each character a class."""
    chance = random.Random(0)
    for name, character, picture in written(SYSTEMS):
        for _ in range(_COPIES):
            yield Picture(jittered(picture, chance), f"{name} {ord(character):x}", character, False)


LESSONS: dict[str, tuple[Callable[[], Iterator[Picture]], tuple[str, ...], str]] = {
    "lesson_small": (small, (*LATIN, *JAPANESE), _KEPT),
    "lesson_signs": (signs, ("fonts-noto-core",), "training only"),
    "lesson_radicals": (lambda: radicals(*RANKS), ("kanjivg",), "training only"),
}
