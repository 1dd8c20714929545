"""Methods that cheat: each reaches for test items in its own way, and none ends with a better score for it."""

from __future__ import annotations

import copy
import ctypes
import gc
import inspect
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from linear_track import WEIGHT, Linear, Track

from cuvee.core import linux_namespaces
from cuvee.core.cache import folder as cache_folder
from cuvee.errors import EvaluationError, LeakError
from cuvee.evaluate import phases, referee
from cuvee.evaluate.addition import Newcomer, add, newcomer_of
from cuvee.evaluate.bench import run
from cuvee.evaluate.cells import Grid, Store
from cuvee.evaluate.contender import Contender
from cuvee.evaluate.referee import Referee
from cuvee.evaluate.selection import Selection
from cuvee.evaluate.task import Item, Sealed
from cuvee.methods import registry

Peek = Callable[[Selection], Any]


def fitted(items: Any) -> Mapping[str, torch.Tensor]:
    """The weights that are best on these items: what a method that reads test items would return."""
    inputs = torch.stack([torch.from_numpy(item.input) for item in items]).double()
    wanted = torch.tensor([2.0 * item.target - 1 for item in items], dtype=torch.float64)
    return {WEIGHT: torch.linalg.lstsq(inputs, wanted[:, None]).solution[:, 0].float()}


def by_the_closure(room: Selection) -> Any:
    opened = room.tasks[0].test._opened
    return next(cell.cell_contents for cell in opened.__closure__ if not isinstance(cell.cell_contents, str))[
        0
    ]


def by_inspecting(room: Selection) -> Any:
    return inspect.getclosurevars(room.tasks[0].test._opened).nonlocals["held"][0]


def by_patching_the_phase(room: Selection) -> Any:
    phases._phase, phases._scorer = "scoring", threading.get_ident()
    return list(room.tasks[0].test)


def by_patching_the_lock(room: Selection) -> Any:
    phases.demand_scoring = lambda task: None  # type: ignore[assignment]
    return list(room.tasks[0].test)


def by_patching_the_referee(room: Selection) -> Any:
    def sold(self: Any, choice: Any, name: str, tasks: Any = None) -> Any:
        seen.extend(self.track.tasks["a"].test)

    seen: list[Item] = []
    referee.Referee.score = sold  # type: ignore[method-assign]
    referee.phases.demand_scoring = lambda task: None  # type: ignore[assignment]
    Referee(room.track).score(room.base, "x")
    return seen


def by_a_thread(room: Selection) -> Any:
    found: list[Any] = []

    def look() -> None:
        found.append(by_patching_the_phase(room))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return found[0]


def by_all_objects(room: Selection) -> Any:
    return [o for o in gc.get_objects() if isinstance(o, Item)]


def by_what_refers(room: Selection) -> Any:
    return gc.get_referents(room.tasks[0].test._opened)


def by_pickling(room: Selection) -> Any:
    return list(pickle.loads(pickle.dumps(room.tasks[0])).test)


def by_copying(room: Selection) -> Any:
    return by_the_closure(Selection(copy.deepcopy(room.track), room.names, room._examinee, 0))


def by_the_frames_above(room: Selection) -> Any:
    frame = inspect.currentframe()
    while frame is not None:
        for value in frame.f_locals.values():
            if isinstance(value, (list, tuple)) and len(value) == 200 and isinstance(value[0], Item):
                return value
            if isinstance(value, Sealed):
                return list(value)
        frame = frame.f_back
    raise LookupError("no frame holds test items")


def by_the_cached_data(room: Selection) -> Any:
    return (cache_folder() / "evaluate" / "packages" / "data.whl").read_bytes()


def by_a_descriptor(room: Selection) -> Any:
    place = cache_folder() / "evaluate" / "elsewhere" / ".." / "packages" / "data.whl"
    return os.fdopen(os.open(place, os.O_RDONLY)).read()


def by_a_folders_descriptor(room: Selection) -> Any:
    """A path that says nothing by itself: it is relative to an open folder."""
    above = os.open(cache_folder(), os.O_RDONLY)
    return os.fdopen(os.open("evaluate/packages/data.whl", os.O_RDONLY, dir_fd=above), "rb").read()


def by_what_was_open(room: Selection) -> Any:
    found = [f for f in Path("/proc/self/fd").iterdir() if f.exists() and f.resolve().name == "data.whl"]
    return os.pread(int(found[0].name), 100, 0)


def by_another_program(room: Selection) -> Any:
    place = cache_folder() / "evaluate" / "packages" / "data.whl"
    return subprocess.run(["cat", str(place)], capture_output=True, check=True).stdout


def by_a_python_of_its_own(room: Selection) -> Any:
    """Another interpreter, in which no guard was set up, makes the track's items anew."""
    code = "from cuvee.core.cache import folder; print((folder() / 'evaluate/packages/data.whl').read_text())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    return done.stdout


def by_its_own_memory(room: Selection) -> Any:
    with Path("/proc/self/mem").open("rb") as memory:
        memory.seek(id(room))
        return memory.read(8)


def by_the_referees_memory(room: Selection) -> Any:
    with Path(f"/proc/{os.getppid()}/mem").open("rb") as memory:
        memory.seek(id(room))
        return memory.read(8)


def by_an_address(room: Selection) -> Any:
    return ctypes.string_at(id(room), 8)


def by_linking_the_data(room: Selection) -> Any:
    copy_of = cache_folder() / "copy"
    os.link(cache_folder() / "evaluate" / "packages" / "data.whl", copy_of)
    return copy_of.read_bytes()


WAYS: list[Peek] = [
    lambda room: list(room.tasks[0].test),
    by_the_closure,
    by_inspecting,
    by_patching_the_phase,
    by_patching_the_lock,
    by_patching_the_referee,
    by_a_thread,
    by_all_objects,
    by_what_refers,
    by_pickling,
    by_copying,
    by_the_frames_above,
    by_the_cached_data,
    by_a_descriptor,
    by_a_folders_descriptor,
    by_what_was_open,
    by_another_program,
    by_a_python_of_its_own,
    by_its_own_memory,
    by_the_referees_memory,
    by_an_address,
    by_linking_the_data,
]


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache that holds an archive of test data."""
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "cache"))
    place = cache_folder() / "evaluate" / "packages" / "data.whl"
    place.parent.mkdir(parents=True)
    (place.parent.parent / "elsewhere").mkdir()
    place.write_bytes(b"test items")
    with place.open("rb"):  # as a track that keeps its archive open
        yield place


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__.strip("<>"))
def test_no_way_to_the_test_items_leads_anywhere(way: Peek, cached: Path) -> None:
    def cheat(room: Selection) -> tuple[Any, dict[str, Any]]:
        return fitted(way(room)), {"cheated": True}

    track = Track()
    score, demand = Referee.score, phases.demand_scoring
    with pytest.raises(EvaluationError) as caught:
        Referee(track).choose(cheat)
    assert caught.value.diagnostics[0].code in ("CV-B001", "CV-B002", "CV-B370", "CV-B372")
    assert (Referee.score, phases.demand_scoring, phases.current()) == (score, demand, "closed")
    honest = Referee(track).score(fitted(track.tasks["a"].selection), "honest")
    assert honest.tasks["a"].mean > 0.8, "the referee's own test items are as they were"


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__.strip("<>"))
def test_a_cheat_that_swallows_what_stops_it_is_told_all_the_same(way: Peek, cached: Path) -> None:
    def cheat(room: Selection, caught: type[BaseException] = BaseException) -> tuple[Any, dict[str, Any]]:
        try:
            return fitted(way(room)), {"by": way.__name__}
        except caught:
            return room.base, {"by": "nothing"}

    with pytest.raises(EvaluationError) as told:
        Referee(Track()).choose(lambda room: cheat(room, ZeroDivisionError))
    if isinstance(told.value, LeakError):
        with pytest.raises(LeakError) as again:
            Referee(Track()).choose(cheat)
        assert again.value.diagnostics == told.value.diagnostics
        return
    card = Referee(Track()).judge(cheat, "cheat")  # there was nothing to find, and nothing was refused
    assert card.settings == {"by": "nothing"}
    assert card.mean() == Referee(Track()).score(Track().base, "base").mean()


@pytest.mark.parametrize("isolated", [True, False])
def test_one_who_peeks_behind_the_referees_back_fails_and_the_next_one_does_not(isolated: bool) -> None:
    def peeks(room: Selection) -> tuple[Any, dict[str, Any]]:
        with suppress(BaseException):
            list(room.tasks[0].test)
        room.evaluate(room.base)
        room.evaluate(room.base)  # lets BudgetSpent pass
        return room.base, {}

    judge = Referee(Track(), budget=1, isolated=isolated)
    with pytest.raises(LeakError, match="CV-B001"):
        judge.choose(peeks)
    assert judge.choose(lambda room: (room.base, {"looked": len(room.tasks[0].test)})).settings == {
        "looked": 200
    }


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (None, "returned nothing"),
        ({}, "returned dict"),
        ((1, 2, 3), "3 values of int"),
        (({}, 1), "2 values"),
    ],
)
def test_what_is_not_weights_and_settings_is_told(found: Any, said: str) -> None:
    with pytest.raises(EvaluationError, match=said) as caught:
        Referee(Track()).choose(lambda room: found)
    assert caught.value.diagnostics[0].code == "CV-B012"


def test_what_a_method_changes_ends_with_its_process() -> None:
    def vandal(room: Selection) -> tuple[Any, dict[str, Any]]:
        phases.demand_scoring = lambda task: None  # type: ignore[assignment]
        Linear.answer = lambda *a: torch.ones(200).numpy()  # type: ignore[method-assign]
        room.track.tasks["a"].test.digest = "0"
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        return room.base, {}

    track = Track()
    digest, threads = track.tasks["a"].test.digest, threading.active_count()
    base = Referee(track).score(track.base, "base").mean()
    assert Referee(track).judge(vandal, "vandal").mean() == base < 1.0
    assert track.tasks["a"].test.digest == digest and threading.active_count() == threads


@pytest.mark.parametrize("how", ["link", "relative", "bytes"])
def test_the_data_of_tracks_stay_shut_wherever_the_cache_is(
    how: str, cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUVEE_CACHE", {"link": str(tmp_path / "link"), "relative": "cache"}.get(how, "cache"))
    given: Any = os.fsencode(cached) if how == "bytes" else cached

    def reads(room: Selection) -> tuple[Any, dict[str, Any]]:
        return room.base, {"read": len(os.read(os.open(given, os.O_RDONLY), 100))}

    with pytest.raises(LeakError) as caught:
        Referee(Track()).choose(reads)
    assert caught.value.diagnostics[0].code == "CV-B372"


@pytest.mark.parametrize("namespaces", [True, False])
@pytest.mark.parametrize("way", [by_another_program, by_a_python_of_its_own, by_a_folders_descriptor])
def test_other_programs_are_shut_off_or_refused(
    way: Peek, namespaces: bool, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With namespaces programs run and find nothing; without them none is started."""
    if namespaces and not linux_namespaces.available():
        pytest.skip("this system grants no namespaces")
    monkeypatch.setattr(linux_namespaces, "available", lambda: namespaces)
    with pytest.raises(EvaluationError) as caught:
        Referee(Track()).choose(lambda room: (room.base, {"read": len(way(room))}))
    refused = way is by_a_folders_descriptor or not namespaces
    assert caught.value.diagnostics[0].code == ("CV-B372" if refused else "CV-B370")

    def honest(room: Selection) -> Any:
        return room.base, {
            "said": subprocess.run(["echo", "x"], capture_output=True, check=True).stdout.decode()
        }

    if namespaces:
        assert Referee(Track()).choose(honest).settings == {"said": "x\n"}


def test_naming_a_place_is_no_way_there(cached: Path) -> None:
    def names(room: Selection) -> Any:
        os.environ["SOME_FOLDER"] = str(cached.parent)
        return room.base, {"listed": len(list(cached.parents[3].iterdir()))}

    assert Referee(Track()).choose(names).settings["listed"] > 0


def test_what_is_hidden_cannot_be_uncovered(cached: Path) -> None:
    if not linux_namespaces.available():
        pytest.skip("this system grants no namespaces")
    place = os.fsencode(cached.parent)

    def uncovers(room: Selection) -> Any:
        libc = ctypes.CDLL(None, use_errno=True)
        answers = [libc.umount2(place, 0), libc.umount2(place, 2), libc.unshare(0x10000000 | 0x20000)]
        answers.append(libc.umount2(place, 2))
        left = libc.open(place + b"/data.whl", os.O_RDONLY)
        return room.base, {"umounted": 0 in (answers[0], answers[1], answers[3]), "opened": left}

    assert Referee(Track()).choose(uncovers).settings == {"umounted": False, "opened": -1}


def test_nothing_of_the_items_is_left_in_the_memory_of_arrays() -> None:
    track = Track()
    arrays = []
    for item in phases_open(track):
        object.__setattr__(item, "input", item.input.copy())
        arrays.append(item.input)

    def reads(room: Selection) -> Any:
        return room.base, {"left": float(sum(abs(a).sum() for a in arrays))}

    assert Referee(track).choose(reads).settings == {"left": 0.0}
    assert sum(float(abs(a).sum()) for a in arrays) > 100, "the referee's own are as they were"
    assert all(float(abs(i.input).sum()) > 0 for i in track.tasks["a"].selection)


def phases_open(track: Track) -> list[Item]:
    with phases.scoring():
        return list(track.tasks["a"].test)


def test_finished_cells_can_neither_be_read_nor_forged(tmp_path: Path) -> None:
    """Test scores of others tell which setting to take; a cell made beforehand would be kept as finished."""
    store = Store(tmp_path / "bench")
    run(Grid("linear", (Contender("average"),), budget=0), lambda name, seed: Track(), store)
    known = sorted(store.cells().iterdir())

    def look(room: Selection) -> Any:
        return room.base, {"read": len(known[0].read_text())}

    def forge(room: Selection) -> Any:
        (store.cells() / "forged.json").write_text("{}")
        return room.base, {}

    def rename(room: Selection) -> Any:
        (tmp_path / "forged.json").write_text("{}")
        (tmp_path / "forged.json").rename(store.folder / "cells" / "forged.json")
        return room.base, {}

    def remove(room: Selection) -> Any:
        known[0].unlink()
        return room.base, {}

    for cheat in (look, forge, rename, remove):
        told: list[Any] = []
        assert add(Newcomer(cheat.__name__, cheat), lambda name, seed: Track(), store, told.append) == 1
        assert "CV-B372" in told[0].problem
        assert sorted(store.cells().iterdir()) == known


def test_a_module_is_imported_where_its_function_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a module patches when it is imported is patched in a process that ends."""
    (tmp_path / "patching_module.py").write_text(
        "from cuvee.evaluate import phases, referee\n"
        "phases.demand_scoring = lambda task: None\n"
        "referee.Referee.score = lambda *a, **k: 1 / 0\n"
        "def patching(room):\n    return room.base, {}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found, score = newcomer_of("patching_module:patching"), Referee.score
    assert "patching_module" not in sys.modules
    card = Referee(Track()).judge(found.method, "patching")
    assert card.mean() < 1 and Referee.score is score and "patching_module" not in sys.modules


def test_models_in_training_are_shut_too(cached: Path) -> None:
    (cached.parents[1] / "training").mkdir()
    (cached.parents[1] / "training" / "x.safetensors").write_bytes(b"x")
    with pytest.raises(EvaluationError) as caught:
        Referee(Track()).choose(
            lambda room: (room.base, {"read": (cached.parents[1] / "training" / "x.safetensors").read_text()})
        )
    assert caught.value.diagnostics[0].code == "CV-B372"


@pytest.mark.parametrize(("name", "value"), [("flops", "x"), ("seconds", float("nan")), ("examples", -5)])
def test_counters_that_tables_cannot_add_up_are_refused(name: str, value: Any) -> None:
    def spoiled(room: Selection) -> Any:
        setattr(room.ledger, name, value)
        return room.base, {}

    def logged(room: Selection) -> Any:
        room.log.append(({}, value))
        return room.base, {}

    for cheat in (spoiled,) if name == "examples" else (spoiled, logged):
        with pytest.raises(EvaluationError) as caught:
            Referee(Track()).choose(cheat)
        assert caught.value.diagnostics[0].code in ("CV-B007", "CV-B370"), caught.value


def by_patching_the_guard(room: Selection) -> Any:
    from cuvee.evaluate import guard

    guard._check = lambda *given: None
    return by_the_cached_data(room)


def by_patching_the_path(room: Selection) -> Any:
    os.path.realpath = lambda *given, **more: "/dev/null"  # type: ignore[assignment]
    return by_the_cached_data(room)


@pytest.mark.parametrize("way", [by_patching_the_guard, by_patching_the_path])
def test_without_namespaces_the_guard_keeps_its_functions(
    way: Peek, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linux_namespaces, "available", lambda: False)
    with pytest.raises(EvaluationError) as caught:
        Referee(Track()).choose(lambda room: (room.base, {"read": len(way(room))}))
    assert caught.value.diagnostics[0].code == "CV-B372"


@pytest.mark.parametrize("way", [by_the_closure, by_inspecting, by_the_cached_data])
def test_without_a_process_of_its_own_the_same_ways_do_lead_there(way: Peek, cached: Path) -> None:
    """A control: were these ways broken by themselves, nothing would be shown above."""

    def cheat(room: Selection) -> tuple[Any, dict[str, Any]]:
        return room.base, {"read": len(way(room))}

    assert Referee(Track(), isolated=False).choose(cheat).settings["read"] in (200, len(b"test items"))


def test_the_methods_of_cuvee_choose_in_this_process_and_plug_ins_do_not(tmp_path: Path) -> None:
    from cuvee.evaluate.apart import ours
    from cuvee.methods.contract import Method, Step, stage

    assert all(ours(name) for name in registry.names())

    @stage("half", role="combine")
    def half(deltas: list[torch.Tensor]) -> torch.Tensor:
        """Half of the first.

        Result: as the inputs.
        """
        found = [o for o in gc.get_objects() if isinstance(o, Item)]
        return deltas[0] / (2 + len(found))

    plug_in = Method(
        "halved", (Step("half"),), base="required", inputs=(1, None), summary="half", doc="Half.\n"
    )
    undo = [registry.register(half), registry.register(plug_in)]
    try:
        assert not ours("halved")
        told: list[Any] = []
        grid = Grid("linear", (Contender("halved"), Contender("average")), budget=1)
        assert run(grid, lambda name, seed: Track(), Store(tmp_path), told.append) == 1
        failed = [done.problem for done in told if done.state == "failed"]
        assert "gc.get_objects" in failed[0] and "CV-B372" in failed[0]
    finally:
        for one in undo:
            one()
