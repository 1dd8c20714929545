"""Labelled pictures of each task as they come out of the packages: pixels, labels, groups, and which are test.

A group (a typeface, a character, an emoji) is what a split must not cut through. Knows no models.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cuvee.core.lazy import numpy
from cuvee.evaluate.tracks.packages import package
from cuvee.evaluate.tracks.parts import in_test
from cuvee.evaluate.tracks.vision.glyphs import SIDE, characters, fitted, jittered, strokes, typeface
from cuvee.evaluate.tracks.vision.typefaces import family

if TYPE_CHECKING:
    from cuvee.evaluate.tracks.vision.glyphs import Pixels

LATIN = ("fonts-aenigma", "fonts-lato", "fonts-liberation", "fonts-freefont-ttf", "fonts-dejavu-core")
JAPANESE = (
    "fonts-ipafont-gothic",
    "fonts-ipafont-mincho",
    "fonts-vlgothic",
    "fonts-motoya-l-cedar",
    "fonts-motoya-l-maruberi",
    "fonts-misaki",
    "fonts-yusei-magic",
    "fonts-dotgothic16",
    "fonts-reggae",
    "fonts-rocknroll",
    "fonts-stick",
    "fonts-rampart",
    "fonts-kiloji",
    "fonts-seto",
    "fonts-sawarabi-gothic",
    "fonts-sawarabi-mincho",
    "fonts-komatuna",
    "fonts-konatu",
    "fonts-kouzan-mouhitsu",
    "fonts-umeplus",
    "fonts-morisawa-bizud-gothic",
)
HIRAGANA = "あいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほまみむめもやゆよらりるれろわをん"
KATAKANA = "アイウエオカキクケコサシスセソタチツテトナニヌネノハヒフヘホマミムメモヤユヨラリルレロワヲン"
EMOJI = (
    "Smileys & Emotion",
    "People & Body",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
    "Flags",
)
SCRIPTS = {
    "Arabic": (0x620, 0x6D3),
    "Armenian": (0x531, 0x587),
    "Bengali": (0x985, 0x9E3),
    "Cherokee": (0x13A0, 0x13F5),
    "Devanagari": (0x904, 0x939),
    "Ethiopic": (0x1200, 0x135A),
    "Georgian": (0x10A0, 0x10FF),
    "Gujarati": (0xA85, 0xAB9),
    "Gurmukhi": (0xA05, 0xA39),
    "Hebrew": (0x5D0, 0x5EA),
    "Kannada": (0xC85, 0xCB9),
    "Khmer": (0x1780, 0x17B3),
    "Lao": (0xE81, 0xEB0),
    "Malayalam": (0xD05, 0xD3A),
    "Myanmar": (0x1000, 0x1050),
    "Sinhala": (0xD85, 0xDC6),
    "Tamil": (0xB85, 0xBB9),
    "Telugu": (0xC05, 0xC39),
    "Thai": (0xE01, 0xE30),
}
_PERSONS = frozenset(
    ("1F468", "1F469", "1F9D1", "200D", "2640", "2642", "FE0F", "1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF")
)
RADICALS = 20
_KANJI = re.compile(r"kanji/0[4-9][0-9a-f]{3}\.svg")
_FONT = re.compile(r"\.(ttf|otf|ttc)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture (SIDE, SIDE) or (SIDE, SIDE, 3), uint8, with its label, group, and part."""

    pixels: Pixels
    label: str
    group: str
    test: bool


def handwritten() -> Iterator[Picture]:
    """MNIST digits: 10,000 of them, split by picture."""
    for name, data in package("mnist").walk(lambda name: "/src/digits/" in name):
        values = numpy.array(json.loads(data)["data"]).reshape(-1, 28, 28)
        label = name.rsplit("/", 1)[1].removesuffix(".json")
        for number, value in enumerate((values * 255).astype(numpy.uint8)):
            group = f"{label}/{number}"
            yield Picture(_scaled(value), label, group, in_test(group))


def clothes(train: int = 12_000) -> Iterator[Picture]:
    """Fashion-MNIST with its official parts; of the training part the first `train`."""
    stored = dict(package("dataset-fashion-mnist").walk(lambda name: name.endswith("ubyte.gz")))
    for part, most in (("train", train), ("t10k", 4000)):
        pixels, labels = (
            gzip.decompress(next(v for k, v in stored.items() if f"{part}-{kind}" in k))
            for kind in ("images", "labels")
        )
        pictures = numpy.frombuffer(pixels, numpy.uint8, offset=16).reshape(-1, 28, 28)
        for number in range(most):
            yield Picture(
                _scaled(pictures[number]), str(labels[8 + number]), f"{part}{number}", part == "t10k"
            )


def scanned() -> Iterator[Picture]:
    """UCI optical digits: 1,797 of 8 × 8 pixels, split by picture."""
    data = gzip.decompress(package("scikit-learn").read("sklearn/datasets/data/digits.csv.gz")).decode()
    for number, line in enumerate(data.splitlines()):
        *values, label = (int(float(cell)) for cell in line.split(","))
        pixels = numpy.array(values, dtype=numpy.float64).reshape(8, 8) * 15.9
        yield Picture(_scaled(pixels.astype(numpy.uint8)), str(label), str(number), in_test(str(number), 0.4))


def lettered(wanted: Sequence[str], fonts: Sequence[str], copies: int = 0) -> Iterator[Picture]:
    """Characters of typefaces, split by family; `copies` > 0: that many turned and moved copies instead."""
    chance = random.Random(0)
    for _, face in _faces(fonts):
        kin = family(face.getname()[0])
        test = in_test(kin, 0.3)
        for number, picture in characters(face, wanted):
            for _ in range(max(1, copies)):
                pixels = jittered(picture, chance) if copies else picture
                yield Picture(pixels, wanted[number], kin, test)


def written(systems: Mapping[str, tuple[int, int]]) -> Iterator[tuple[str, str, Pixels]]:
    """Name of the writing system, character and picture, in the regular and bold faces of Noto."""
    for file, face in _faces(["fonts-noto-core"]):
        found = re.fullmatch(r"Noto(?:Sans|Serif|Kufi|Naskh)?(\w+?)-(?:Regular|Bold)\.ttf", file)
        if found and found.group(1) in systems:
            name = found.group(1)
            first, last = systems[name]
            wanted = [chr(code) for code in range(first, last + 1)]
            for number, picture in characters(face, wanted):
                yield name, wanted[number], picture


def scripts() -> Iterator[Picture]:
    """Which writing system a character is of, split by character."""
    for name, character, picture in written(SCRIPTS):
        yield Picture(picture, name, character, in_test(character))


def radicals(first: int = 0, last: int = RADICALS) -> Iterator[Picture]:
    """The radical of a kanji, of those `first` to `last` by frequency, drawn stroke by stroke; split by character."""
    found = []
    for name, data in package("kanjivg").walk(lambda name: _KANJI.fullmatch(name) is not None):
        text = data.decode()
        radical = re.search(r'kvg:element="([^"]+)"[^>]*kvg:radical="(?:general|tradit)"', text)
        if radical:
            found.append((name, radical.group(1), re.findall(r'<path[^>]* d="([^"]+)"', text)))
    wanted = {radical for radical, _ in Counter(f[1] for f in found).most_common(last)[first:]}
    chance = random.Random(0)
    for name, kind, paths in found:
        if kind in wanted:
            for width in (8, 12, 16):
                pixels = jittered(strokes(paths, 109.0, width), chance)
                yield Picture(pixels, kind, name, in_test(name))


def emoji(vendor: str = "google") -> Iterator[Picture]:
    """The group of an emoji in one vendor's drawing, in colour on black, split by emoji whoever is shown."""
    from PIL import Image

    archive = package(f"emoji-datasource-{vendor}")
    images = dict(archive.walk(lambda name: f"/img/{vendor}/64/" in name or name == "package/emoji.json"))
    for entry in json.loads(images["package/emoji.json"]):
        if entry["category"] not in EMOJI:
            continue
        for one in [entry, *list(entry.get("skin_variations", {}).values())[:2]]:
            data = images.get(f"package/img/{vendor}/64/{one['image']}")
            if data is not None:
                drawn = Image.open(io.BytesIO(data)).convert("RGBA")
                ground = Image.new("RGBA", drawn.size, (0, 0, 0, 255))
                ground.alpha_composite(drawn)
                shown = whoever(entry["unified"])
                yield Picture(fitted(ground.convert("RGB")), entry["category"], shown, in_test(shown))


def whoever(unified: str) -> str:
    """The code points of an emoji without those of sex and skin, which change little in the drawing."""
    points = [point for point in unified.split("-") if point not in _PERSONS]
    return "-".join(points) or unified


PICTURES: dict[str, tuple[Callable[[], Iterator[Picture]], tuple[str, ...], str]] = {
    "mnist": (handwritten, ("mnist",), "by picture"),
    "fashion": (clothes, ("dataset-fashion-mnist",), "official"),
    "scanned": (scanned, ("scikit-learn",), "by picture"),
    "letters": (lambda: lettered("ABCDEFGHIJKLMNOPQRSTUVWXYZ", LATIN), LATIN, "by type family"),
    "hiragana": (lambda: lettered(HIRAGANA, JAPANESE, copies=4), JAPANESE, "by type family"),
    "scripts": (scripts, ("fonts-noto-core",), "by character"),
    "radicals": (radicals, ("kanjivg",), "by character"),
    "emoji": (emoji, ("emoji-datasource-google",), "by emoji, whoever is shown"),
    "numerals": (lambda: lettered("0123456789", LATIN), LATIN, "by type family"),
    "katakana": (lambda: lettered(KATAKANA, JAPANESE, copies=2), JAPANESE, "by type family"),
    "emoji_twitter": (lambda: emoji("twitter"), ("emoji-datasource-twitter",), "by emoji, whoever is shown"),
}


def _faces(fonts: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """File name and face of every readable font file of Debian packages."""
    for name in fonts:
        for path, data in package(name).walk(lambda path: _FONT.search(path) is not None):
            face = typeface(data)
            if face is not None:
                yield path.rsplit("/", 1)[1], face


def _scaled(pixels: Pixels) -> Pixels:
    from PIL import Image

    return numpy.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
