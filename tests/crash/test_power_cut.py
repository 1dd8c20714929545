"""Promises 1 to 3 under every power cut: a crash after each operation, in forty fates, two models of names.

The same sweep must find fault with a protocol that leaves out one of its steps; otherwise it proves nothing.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from small_commit import FILE, LAYOUT, OLD, OUT, PLAN, before, fresh, run, run_until_done, visible, whole

from cuvee.sinks import begin as beginning
from cuvee.sinks.folder import FolderSink
from cuvee.testing.faulty_disk import FaultyDisk, PowerCut

CASES = [("folder", False), ("folder", True), ("file", False), ("file", True)]
SEEDS = {"folder": 40, "file": 12}  # both shapes go through the same code


def operations(shape: str, old: bool, exchange: bool = True) -> int:
    disk = fresh(shape, old)
    disk.can_exchange = exchange
    run(disk, shape=shape, overwrite=old)
    return disk.operations


def sweep(
    shape: str, old: bool, seeds: int, *, exchange: bool = True, names: tuple[str, ...]
) -> Counter[str]:
    """Crash everywhere, resume with up to two more crashes, and count what no user may ever see."""
    faults: Counter[str] = Counter()
    allowed = [before(shape, old), whole(shape, old)]
    if old and not exchange:
        allowed.append({})  # between two renames nothing is there; the old model comes back with the next run
    last = operations(shape, old, exchange)
    for number in range(1, last + 1):
        disk = fresh(shape, old, crash_after=number)
        disk.can_exchange = exchange
        with pytest.raises(PowerCut):
            run(disk, shape=shape, overwrite=old)
        for seed in range(seeds):
            for model in names:
                faults += trial(disk.crash(seed=seed, names=model), shape, old, allowed, seed, model)
                faults["crashes"] += 1
    return faults


def trial(
    disk: FaultyDisk, shape: str, old: bool, allowed: list[object], seed: int, names: str
) -> Counter[str]:
    chance = random.Random(seed)
    faults: Counter[str] = Counter()
    for _ in range(chance.randint(0, 2)):
        faults["half"] += visible(disk, shape) not in allowed
        disk.crash_after = disk.operations + chance.randint(1, 40)
        try:
            run_until_done(disk, shape=shape, overwrite=old)
        except PowerCut:
            faults["half"] += visible_when_dead(disk, shape, seed, names) not in allowed
        disk = disk.crash(seed=seed, names=names)
    faults["half"] += visible(disk, shape) not in allowed
    run_until_done(disk, shape=shape, overwrite=old)
    faults["wrong"] += visible(disk, shape) != allowed[1]
    after = disk.crash(seed=seed + 1, names=names)
    faults["lost"] += visible(after, shape) != allowed[1]
    return +faults


def visible_when_dead(disk: FaultyDisk, shape: str, seed: int, names: str) -> object:
    return visible(disk.crash(seed=seed, names=names), shape)


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "old"), CASES)
def test_no_power_cut_shows_or_leaves_anything_but_the_old_or_the_new_output(shape: str, old: bool) -> None:
    faults = sweep(shape, old, SEEDS[shape], names=("ordered", "subset"))
    assert faults.pop("crashes") == operations(shape, old) * SEEDS[shape] * 2
    assert not faults


def test_the_same_holds_where_names_cannot_be_exchanged() -> None:
    faults = sweep("folder", True, 12, exchange=False, names=("ordered", "subset"))
    assert faults.pop("crashes") > 500
    assert not faults


def test_the_old_output_comes_back_when_the_new_one_did_not_get_its_name() -> None:
    disk = fresh("folder", True)
    disk.can_exchange = False
    run(disk, overwrite=True)
    moved = next(
        i for i, line in enumerate(disk.log, 1) if line.startswith("rename") and line.endswith("/old")
    )
    disk = fresh("folder", True, crash_after=moved)
    disk.can_exchange = False
    with pytest.raises(PowerCut):
        run(disk, overwrite=True)
    gone = [after for seed in range(20) if visible(after := disk.crash(seed=seed)) == {}]
    assert gone
    for after in gone:
        for resume in (True, False):
            disk = after.crash()
            FolderSink(OUT, disk).begin(LAYOUT, PLAN, resume=resume, overwrite=True).abort()
            assert visible(disk) == visible(disk.crash(seed=1)) == OLD


def test_nothing_is_left_but_the_output() -> None:
    for shape, old in CASES:
        disk = fresh(shape, old)
        run(disk, shape=shape, overwrite=old)
        assert set(disk.listing(OUT.parent)) == (
            {"bystander", OUT.name}
            if shape == "folder"
            else {"bystander", FILE.name, f"{FILE.name}.cuvee-manifest.json"}
        )
        assert disk.tree(OUT.parent)["bystander"] == b"not ours"


def no_file_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FaultyDisk, "sync", lambda self, handle: None)


def no_folder_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = FaultyDisk.sync_folder

    def only_the_parent(self: FaultyDisk, folder: Path) -> None:
        if folder == OUT.parent:
            genuine(self, folder)

    monkeypatch.setattr(FaultyDisk, "sync_folder", only_the_parent)


def no_parent_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = FaultyDisk.sync_folder

    def all_but_the_parent(self: FaultyDisk, folder: Path) -> None:
        if folder != OUT.parent:
            genuine(self, folder)

    monkeypatch.setattr(FaultyDisk, "sync_folder", all_but_the_parent)


def journal_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beginning.journals, "still_true", lambda disk, folder, layout, claims: dict(claims))


SABOTAGE = {
    no_file_sync: {"half", "wrong", "lost"},
    no_folder_sync: {"half", "lost"},
    no_parent_sync: {"lost"},
    journal_is_believed: {"wrong"},
}


@pytest.mark.parametrize("sabotage", SABOTAGE, ids=lambda f: f.__name__)
def test_the_sweep_notices_a_step_that_is_missing(sabotage, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = SABOTAGE[sabotage]
    sabotage(monkeypatch)
    faults = sweep_broken("folder", False)
    assert expected <= set(faults), f"{sabotage.__name__} went unnoticed: {faults}"


def sweep_broken(shape: str, old: bool) -> Counter[str]:
    return +sweep(shape, old, 6, names=("subset",))
