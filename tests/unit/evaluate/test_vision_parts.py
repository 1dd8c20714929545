"""Parts of track V do not touch: type families, emoji, near duplicates, and what the base was schooled on."""

from __future__ import annotations

import itertools
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cuvee.errors import EvaluationError
from cuvee.evaluate.task import ACCURACY, Item, Provenance, Task
from cuvee.evaluate.tracks.exchange import exchange
from cuvee.evaluate.tracks.packages import package
from cuvee.evaluate.tracks.parts import in_test
from cuvee.evaluate.tracks.vision import duplicates, foundation, glyphs, lessons, pictures, tasks
from cuvee.evaluate.tracks.vision.model import Training
from cuvee.evaluate.tracks.vision.network import SMALL, new, parameters
from cuvee.evaluate.tracks.vision.typefaces import family

pytest.importorskip("PIL")


@pytest.mark.parametrize(
    "names",
    [
        ("FreeSans", "FreeMono", "Free Serif Bold Oblique"),
        ("IPAGothic", "IPAPGothic", "IPAMincho", "IPAPMincho"),
        ("Kaliber Round (BRK)", "Mini Kaliber O TT (BRK)"),
        ("Corpulent Caps (BRK)", "Corpulent Caps Shadow (BRK)"),
        ("36 days ago (BRK)", "36 days ago Thick (BRK)"),
        ("Bend 2 Squares (BRK)", "Bend 2 Squares OL1 (BRK)"),
        ("BIZ UDGothic", "BIZ UDPGothic"),
        ("Lato", "Lato Hairline Italic"),
    ],
)
def test_styles_of_a_typeface_are_one_family(names: tuple[str, ...]) -> None:
    assert len({family(name) for name in names}) == 1


def test_names_that_are_nothing_but_style_are_families_of_their_own() -> None:
    assert family("Bold Italic") == "bold italic" != family("Light Italic")
    assert len({family(n) for n in ("Vantage (BRK)", "Variance (BRK)", "Ink Tank (BRK)", "8-bit")}) == 4


def test_no_type_family_of_the_packages_is_cut_into_training_and_test() -> None:
    """An oracle of its own: a name that is another's beginning, word for word, is of its family."""
    fonts = [name for name in (*pictures.LATIN, *pictures.JAPANESE) if package(name).path.exists()]
    if not fonts:
        pytest.skip("the font packages are not in the cache")
    names = {re.sub(r"\(?BRK\)?", "", face.getname()[0]).strip() for _, face in pictures._faces(fonts)}
    side = {name: in_test(family(name), 0.3) for name in names}
    kin = [(a, b) for a, b in itertools.permutations(sorted(names), 2) if b.startswith(f"{a} ")]
    assert [pair for pair in kin if side[pair[0]] != side[pair[1]]] == []
    assert len(fonts) < 26 or (len(kin) > 50 and 0.2 < np.mean(list(side.values())) < 0.4)


def test_letters_are_split_by_family_whatever_the_file_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    class Face:
        def __init__(self, name: str) -> None:
            self.name = name

        def getname(self) -> tuple[str, str]:
            return self.name, "Regular"

    names = ["FreeSans", "FreeMono", "Zoidal (BRK)", "Acid Reflux (BRK)", "Acid Reflux Oblique (BRK)", "Lynx"]
    faces = [(f"{i}{name[:3].lower()}oblique.ttf", Face(name)) for i, name in enumerate(names)]
    monkeypatch.setattr(pictures, "_faces", lambda fonts: iter(faces))
    monkeypatch.setattr(pictures, "characters", lambda face, wanted: [(0, np.zeros((64, 64), np.uint8))])
    found = [(p.group, p.test) for p in pictures.lettered("A", [])]
    assert [group for group, _ in found] == ["free", "free", "zoidal", "acid", "acid", "lynx"]
    assert all(test == in_test(group, 0.3) for group, test in found)


def test_an_emoji_is_one_whoever_is_shown() -> None:
    farmers = ("1F468-200D-1F33E", "1F469-200D-1F33E", "1F469-1F3FD-200D-1F33E")
    assert {pictures.whoever(code) for code in farmers} == {"1F33E"}
    assert pictures.whoever("1F3C3-200D-2640-FE0F") == pictures.whoever("1F3C3") == "1F3C3"
    assert pictures.whoever("1F468") == "1F468" and pictures.whoever("1F1FA-1F1F8") == "1F1FA-1F1F8"


def _drawn(count: int, seed: int) -> list[glyphs.Pixels]:
    from PIL import ImageFont

    letters = [p for _, p in glyphs.characters(ImageFont.load_default(48), "ABCDEFGHKLMNPRSTXYZ2345678")]
    chance = random.Random(seed)
    return [glyphs.jittered(chance.choice(letters), chance) for _ in range(count)]


def test_distances_are_those_of_block_means() -> None:
    chance = np.random.default_rng(0)
    grey = [chance.integers(0, 256, (64, 64)).astype(np.uint8) for _ in range(3)]
    colour = [chance.integers(0, 256, (64, 64, 3)).astype(np.uint8) for _ in range(2)]
    found = duplicates.distances([*grey, colour[0]], [grey[1], colour[1]])

    def blocks(picture: Any) -> Any:
        wide = picture.astype(np.float64)
        wide = np.stack([wide] * 3, 2) if wide.ndim == 2 else wide
        return np.array(
            [[wide[r : r + 4, c : c + 4].mean((0, 1)) for c in range(0, 64, 4)] for r in range(0, 64, 4)]
        )

    for picture, distance in zip([*grey, colour[0]], found, strict=True):
        wanted = min(np.sqrt(np.mean((blocks(picture) - blocks(o)) ** 2)) for o in (grey[1], colour[1]))
        assert float(distance) == pytest.approx(wanted, abs=1e-2)
    assert duplicates.near([grey[0]], []) == [False] and duplicates.near([], grey) == []


def test_pictures_nearly_those_of_the_test_part_are_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    outside, test = _drawn(90, 1), _drawn(20, 2)
    faint = [np.clip(picture.astype(int) + 3, 0, 255).astype(np.uint8) for picture in test[:5]]
    given = [*outside, *faint, *test]
    stored = {
        "pixels": torch.from_numpy(np.stack(given)),
        "test": torch.tensor([False] * (len(given) - 20) + [True] * 20),
        "label": ["0"] * len(given),
        "group": [str(number) for number in range(len(given))],
    }
    monkeypatch.setattr(tasks, "rendered", lambda name: stored)
    task, items = tasks.make("mnist")
    kept = [item.input for item in (*task.train, *task.selection)]
    shown = [item.input for item in items]
    assert all(p.base is None for p in (*kept, *shown)), "a view leads to the pictures beside it"
    assert len(shown) == 20 and 60 < len(kept) <= 90
    assert float(duplicates.distances(kept, shown).min()) >= duplicates.NEAR
    chosen = [item.input for item in task.selection]
    assert float(duplicates.distances([i.input for i in task.train], chosen).min()) >= duplicates.NEAR


def test_the_base_is_schooled_on_nothing_that_a_task_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {*"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", *pictures.HIRAGANA, *pictures.KATAKANA}
    asked |= {chr(code) for first, last in pictures.SCRIPTS.values() for code in range(first, last + 1)}
    ranges = lessons.SYSTEMS.values()
    taught = {*lessons.SMALL, *lessons.ALPHABETS} | {chr(c) for a, b in ranges for c in range(a, b + 1)}
    assert not asked & taught and not set(pictures.SCRIPTS) & set(lessons.SYSTEMS)
    assert lessons.RANKS[0] >= pictures.RADICALS
    some = [pictures.Picture(p, "a", "x", number % 2 == 0) for number, p in enumerate(_drawn(6, 3))]
    monkeypatch.setattr(lessons, "lettered", lambda wanted, fonts, copies: iter(some))
    assert [p.test for p in lessons.small()] == [False] * 6


def test_weights_of_another_shape_are_refused_and_sides_of_one_are_not() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 1, bias=False))
    matrix = torch.arange(15.0).reshape(5, 3)
    exchange(network, {"0.weight": matrix.bfloat16()})
    assert torch.equal(network[0].weight.detach()[:, :, 0, 0], matrix)
    for wrong in (matrix.T, matrix.flatten(), matrix[:4]):
        with pytest.raises(EvaluationError, match="has the shape") as caught:
            exchange(network, {"0.weight": wrong})
        assert caught.value.diagnostics[0].code == "CV-B012"
    assert torch.equal(network[0].weight.detach()[:, :, 0, 0], matrix)


def test_the_base_is_schooled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path))
    torch.set_num_threads(1)
    items = list({(i := Item(p, n % 2)).digest: i for n, p in enumerate(_drawn(60, 4))}.values())
    lesson = Task.of(
        "lesson",
        train=items,
        selection=(),
        test=(),
        metric=ACCURACY,
        head="frozen",
        provenance=Provenance("drawn here"),
        classes=["a", "b"],
    )
    monkeypatch.setattr(foundation, "pretrained", lambda: new(SMALL, 3))
    monkeypatch.setattr(foundation, "lessons", lambda: [lesson])
    monkeypatch.setattr(foundation, "SCHOOLING", Training(samples=64, batch=16, rate=1e-3))
    first = parameters(foundation.schooled())
    assert not torch.equal(first["_conv_head.weight"], parameters(new(SMALL, 3))["_conv_head.weight"])
    monkeypatch.setattr(foundation, "lessons", lambda: pytest.fail("schooled a second time"))
    again = parameters(foundation.schooled())
    assert all(torch.equal(first[name], again[name]) for name in first)
