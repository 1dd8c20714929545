"""Promise 4: whichever operation fails, nothing half-done is seen, and the same command finishes the work."""

from __future__ import annotations

import contextlib
import errno
import random
from pathlib import Path

import pytest
from small_commit import FILE, OUT, before, fresh, run, run_until_done, visible, whole

from cuvee.errors import OutOfSpace, RunError
from cuvee.testing.faulty_disk import FaultyDisk

CASES = [("folder", False), ("folder", True), ("file", False), ("file", True)]
ERRORS = {
    errno.ENOSPC: "CV-E001",
    errno.EDQUOT: "CV-E001",
    errno.EIO: "CV-E002",
    errno.EROFS: "CV-E003",
    errno.EACCES: "CV-E004",
}


def count(shape: str, old: bool) -> int:
    disk = fresh(shape, old)
    run(disk, shape=shape, overwrite=old)
    return disk.operations


@pytest.mark.parametrize("persistent", [False, True], ids=["once", "for-good"])
@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize(("shape", "old"), CASES)
def test_every_operation_may_fail(shape: str, old: bool, number: int, persistent: bool) -> None:
    fine, previous = whole(shape, old), before(shape, old)
    for at in range(1, count(shape, old) + 1):
        disk = fresh(shape, old, fail_at=at, error=number, persistent=persistent)
        try:
            run(disk, shape=shape, overwrite=old)
        except RunError as error:
            assert [d.code for d in error.diagnostics] == [ERRORS[number]]
            assert isinstance(error, OutOfSpace) == (ERRORS[number] == "CV-E001")
            assert str(OUT.parent) in error.diagnostics[0].message
            shown = visible(disk, shape)
            # Only making the new name certain can fail once it is there.
            assert shown == previous or (shown == fine and disk.log[at - 1] == f"sync_folder {OUT.parent}")
        else:
            assert (
                visible(disk, shape) == fine
            )  # cleaning up failed, which is no reason to say that the run did
        disk.fail_at = None
        run_until_done(disk, shape=shape, overwrite=old)
        assert visible(disk, shape) == fine
        assert visible(disk.crash(seed=at), shape) == fine
        assert disk.tree(OUT.parent)["bystander"] == b"not ours"


def test_a_failed_sync_is_not_forgotten() -> None:
    """After EIO the system may call lost pages clean: a later sync succeeds without them."""
    fine = whole()
    disk = fresh()
    run(disk)
    syncs = [i for i, line in enumerate(disk.log, 1) if line.startswith("sync ") and "model-0000" in line]
    assert len(syncs) == 2
    for at in syncs:
        disk = fresh(fail_at=at, error=errno.EIO)
        with pytest.raises(RunError):
            run(disk)
        assert run(disk) == []  # nothing is computed again, but written again
        for seed in range(10):
            assert visible(disk.crash(seed=seed)) == fine


@pytest.mark.parametrize("seed", range(30))
def test_errors_then_power_cuts(seed: int) -> None:
    chance = random.Random(seed)
    fine, allowed = whole("folder", True), (before("folder", True), whole("folder", True))
    disk = fresh("folder", True)
    for _ in range(6):
        disk.fail_at = disk.operations + chance.randint(1, 60)
        disk.error = chance.choice(list(ERRORS))
        with contextlib.suppress(RunError):
            run_until_done(disk, overwrite=True)
        assert visible(disk) in allowed
        disk = disk.crash(seed=chance.randrange(1000), names=chance.choice(("ordered", "subset")))
        assert visible(disk) in allowed
    run_until_done(disk, overwrite=True)
    assert visible(disk) == fine


def test_a_disk_that_fills_up_says_how_much_is_missing() -> None:
    for capacity in range(0, 3000, 50):
        disk = fresh(capacity=capacity)
        try:
            run(disk)
        except OutOfSpace as error:
            assert "needed" in str(error)
            assert "free" in str(error)
            assert visible(disk) == {}
            disk.capacity = 1 << 30
            run(disk)
        assert visible(disk) == whole()


def test_a_finished_tensor_is_not_written_twice() -> None:
    """What the journal holds when the disk fills up is what the next run does not do again."""
    disk = fresh()
    run(disk)
    claims = [i for i, line in enumerate(disk.log, 1) if line.startswith("append") and "journal" in line]
    disk = fresh(fail_at=claims[3])
    with pytest.raises(OutOfSpace):
        run(disk)
    assert run(disk) == ["c"]


def test_the_model_of_the_disk_forgets_what_was_not_synced() -> None:
    """The model itself: durable bytes stay, others land, vanish or tear; names by prefix or by subset."""
    folder, seen = Path("/w"), {"ordered": set(), "subset": set()}
    for seed in range(300):
        for names, states in seen.items():
            disk = FaultyDisk()
            disk.put(folder / "kept", b"k")
            handle = disk.create(folder / "a", 4)
            disk.sync_folder(folder)
            disk.pwrite(handle, b"abcd", 0)
            disk.create(folder / "b", 0)
            disk.create(folder / "c", 0)
            after = disk.crash(seed=seed, names=names)
            tree = after.tree(folder)
            assert tree["kept"] == b"k"
            assert set(tree["a"]) <= set(b"abcd\0")
            states.add((tree["a"], *sorted(tree.keys() - {"a", "kept"})))
    contents = {state[0] for state in seen["subset"]}
    assert {b"", bytes(4), b"abcd", b"a\0\0\0"} <= contents
    assert {state[1:] for state in seen["ordered"]} == {(), ("b",), ("b", "c")}
    assert {state[1:] for state in seen["subset"]} == {(), ("b",), ("c",), ("b", "c")}


def test_single_files_keep_their_manifest() -> None:
    disk = fresh("file")
    run(disk, shape="file")
    assert f"{FILE.name}.cuvee-manifest.json" in disk.listing(FILE.parent)
