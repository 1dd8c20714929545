"""What a start of a track need not do again: items kept by content, live models of finished folders, digests of ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from linear_track import Track as LinearTrack

from cuvee.evaluate import phases
from cuvee.evaluate.bench import Done, run
from cuvee.evaluate.cells import Grid, Store
from cuvee.evaluate.contender import Contender
from cuvee.evaluate.task import Item, Provenance
from cuvee.evaluate.tracks import prepared
from cuvee.evaluate.tracks.language.tasks import Sizes, Tokens, make
from cuvee.evaluate.tracks.prepared import Parts, kept_parts

BYTES = Tokens(lambda words: words.encode(), lambda ids: bytes(ids).decode("utf-8", "replace"), 0)
SIZES = Sizes(window=48, problems=60, selection_problems=5, test_problems=5)
HERE = Provenance("a+b", "1+2", "MIT; GPL", "by line")
PARTS = Parts(
    train=[Item((1, 2, 3), 0, "a\nb"), Item((), 1, None)],
    selection=[Item(((0,), (7, 8)), "right\udc80", "", 2.5)],
    test=[Item(((0, 1), ()), None, "ü", 1.0)],
    provenance=HERE,
    classes=["x", "y"],
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "cache"))


def never() -> Parts:
    raise AssertionError("it was there")


def keep(make: Any, address: str = "one") -> Parts:
    return kept_parts("some", [address], ["cuvee.evaluate.tracks.parts"], make)


def test_items_come_back_as_they_were_and_are_made_once(tmp_path: Path) -> None:
    keep(lambda: PARTS)
    found = keep(never)
    assert found == PARTS
    every = [*found.train, *found.selection, *found.test]
    was = [*PARTS.train, *PARTS.selection, *PARTS.test]
    assert [(i.digest, repr(i)) for i in every] == [(i.digest, repr(i)) for i in was]
    assert [path.parent.name for path in (tmp_path / "cache").rglob("*.safetensors")] == [
        "data"
    ]  # shut to methods
    with pytest.raises(AssertionError, match="it was there"):
        keep(never, "another")


def test_other_code_is_another_address(monkeypatch: pytest.MonkeyPatch) -> None:
    keep(lambda: PARTS)
    monkeypatch.setattr(prepared, "_code", lambda modules: "changed")
    with pytest.raises(AssertionError, match="it was there"):
        keep(never)


def test_the_code_that_is_covered_is_that_of_the_modules() -> None:
    own = ("cuvee.evaluate.tracks.text.rows",)
    assert prepared._code(own) != prepared._code(())
    source = Path(str(prepared.__file__)).parent
    found = blake3((source / "packages.toml").read_bytes())
    for path in (source.parent / "task.py", *(source / f"{n}.py" for n in ("archives", "packages", "parts"))):
        found.update(path.read_bytes())
    assert prepared._code(()) == found.hexdigest(length=16)


def test_kept_tasks_are_the_tasks() -> None:
    """Digests of tasks, and with them those of experts, are what they are without a cache."""

    def nothing(words: str) -> Any:
        raise AssertionError("tokenised again")

    for name in ("records", "three_digits", "instructions"):
        plain, first = make(name, BYTES, SIZES), make(name, BYTES, SIZES, "ground")
        again = make(name, Tokens(nothing, BYTES.decode, 0), SIZES, "ground")
        assert plain.digest == first.digest == again.digest
        assert (again.train, again.selection, again.provenance) == (
            plain.train,
            plain.selection,
            plain.provenance,
        )
        with phases.scoring():
            assert list(again.test) == list(plain.test)
        assert (again.metric, again.unseen, again.shift_of) == (plain.metric, plain.unseen, plain.shift_of)


def spelled(value: Any) -> bytes:
    """An input's bytes, part by part: what digests of items have always been of."""
    if isinstance(value, tuple):
        return b"t" + b"".join(len(spelled(p)).to_bytes(8, "little") + spelled(p) for p in value)
    return b"r" + repr(value).encode()


@pytest.mark.parametrize(
    "value", [(1, 2, 300), (True, 1, False, 0), (1.0, 1), ((0,), (2**70, -1)), (None, ()), ()]
)
def test_digests_of_tuples_are_what_they_were(value: tuple[Any, ...]) -> None:
    for _ in range(2):  # what is remembered of a number must not be taken for another that is equal to it
        assert Item(value, 0).digest == blake3(spelled(value)).hexdigest(length=16)


def test_a_finished_folder_builds_no_live_model(tmp_path: Path) -> None:
    class Finished(LinearTrack):
        def examinee(self) -> Any:
            raise AssertionError("a live model was built")

    grid = Grid("linear", (Contender("average"),), budget=2)
    run(grid, lambda name, seed: LinearTrack(), Store(tmp_path))
    told: list[Done] = []
    assert run(grid, lambda name, seed: Finished(), Store(tmp_path), told.append) == 0
    assert {done.state for done in told} == {"kept"}
