"""The real disk: durable replacement, typed errors, and each operation against what the system shows."""

from __future__ import annotations

import ast
import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from cuvee.core import disk as disk_module
from cuvee.core import linux_calls
from cuvee.core.disk import REAL, RealDisk, copy_file, make_folders, read_bytes, remove_tree, write_file
from cuvee.core.disk_errors import quantity, run_error
from cuvee.errors import OutOfSpace, RunError
from cuvee.testing.faulty_disk import FaultyDisk, PowerCut


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_file_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    write_file(path, b"one")
    write_file(path, memoryview(b"twelve"))
    assert path.read_bytes() == b"twelve"
    assert names(tmp_path) == ["lock.json"]
    write_file(path, b"")
    assert path.read_bytes() == b""


def test_modes_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "file", b"x")
        make_folders(tmp_path / "a/b")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "a/b").stat().st_mode) == 0o750


def test_write_file_survives_a_crash_at_any_operation() -> None:
    path = Path("/disk/recipe.lock")
    for number in range(1, 10):
        for seed in range(20):
            for model in ("ordered", "subset"):
                disk = FaultyDisk(crash_after=number)
                disk.put(path, b"the old recipe")
                try:
                    write_file(path, b"the new one", disk)
                except PowerCut:
                    assert read_bytes(path, disk.crash(seed=seed, names=model)) in (
                        b"the old recipe",
                        b"the new one",
                    )
                else:
                    assert read_bytes(path, disk.crash(seed=seed, names=model)) == b"the new one"


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one() -> None:
    path = Path("/disk/recipe.lock")
    for number in range(1, 6):
        disk = FaultyDisk(fail_at=number)
        disk.put(path, b"old")
        with pytest.raises(OutOfSpace):
            write_file(path, b"new", disk)
        renamed = number == 5  # only making the new name certain failed
        assert disk.tree(Path("/disk")) == {"recipe.lock": b"new" if renamed else b"old"}


def test_copy_file(tmp_path: Path) -> None:
    data = os.urandom((2 << 20) + 5)
    (tmp_path / "from").write_bytes(data)
    copy_file(tmp_path / "from", tmp_path / "to")
    assert (tmp_path / "to").read_bytes() == data
    with pytest.raises(RunError, match="no such file"):
        copy_file(tmp_path / "absent", tmp_path / "to")
    assert (tmp_path / "to").read_bytes() == data


@pytest.mark.parametrize(
    ("number", "code", "kind", "words"),
    [
        (errno.ENOSPC, "CV-E001", OutOfSpace, "the disk is full (13.2 GB needed, 812 bytes free)"),
        (errno.EDQUOT, "CV-E001", OutOfSpace, "the disk quota is reached (13.2 GB needed, 812 bytes free)"),
        (errno.EFBIG, "CV-E001", OutOfSpace, "process limit allows (13.2 GB needed, 812 bytes free)"),
        (errno.EIO, "CV-E002", RunError, "input/output error"),
        (errno.EROFS, "CV-E003", RunError, "the file system is read-only"),
        (errno.EACCES, "CV-E004", RunError, "permission denied"),
        (errno.ENAMETOOLONG, "CV-E005", RunError, "file name too long"),
    ],
)
def test_system_errors_become_sentences(number: int, code: str, kind: type, words: str) -> None:
    error = run_error(OSError(number, os.strerror(number)), Path("/x/\x1b[1mout"), 13_240_000_000, 812)
    (found,) = error.diagnostics
    assert type(error) is kind
    assert (found.code, error.exit_code) == (code, 1)
    assert found.message.startswith("`/x/\\x1b[1mout`: ")
    assert found.message.endswith(words)
    assert found.where is not None
    assert found.where.file == "/x/\\x1b[1mout"


def test_quantities() -> None:
    shown = [quantity(n) for n in (0, 9_999, 10_000, 1_500_000, 2 * 10**9, 7 * 10**12)]
    assert shown == ["0 bytes", "9999 bytes", "10.0 kB", "1.5 MB", "2.0 GB", "7.0 TB"]


def test_create_reserves_zeros_and_empties_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 50)
    handle = REAL.create(path, 100_000)
    REAL.pwrite(handle, b"abc", 99_990)
    assert REAL.pread(handle, 100, 99_989) == b"\0abc" + bytes(7)
    REAL.close(handle)
    assert REAL.size(path) == 100_000
    assert REAL.allocated(path) >= 100_000
    assert path.read_bytes()[:50] == bytes(50)


def test_create_works_where_space_cannot_be_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "not here")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    REAL.close(REAL.create(tmp_path / "file", 5000))
    assert REAL.size(tmp_path / "file") == 5000


def test_partial_writes_and_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite, pread, write = os.pwrite, os.pread, os.write
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:3], at))
    monkeypatch.setattr(os, "pread", lambda fd, count, at: pread(fd, min(count, 2), at))
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:1]))
    handle = REAL.create(tmp_path / "file", 0)
    REAL.pwrite(handle, b"0123456789", 4)
    assert REAL.pread(handle, 99, 0) == b"\0\0\0\0" + b"0123456789"
    REAL.close(handle)
    handle = REAL.open_file(tmp_path / "file", "append")
    REAL.append(handle, b"abc")
    REAL.close(handle)
    assert (tmp_path / "file").read_bytes().endswith(b"789abc")


def test_rename_and_exchange(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    (one / "x").touch()
    two.mkdir()
    (two / "y").touch()
    with pytest.raises(RunError):
        REAL.rename(one, two)  # not empty
    assert REAL.exchange(one, two)
    assert (one / "y").exists()
    assert (two / "x").exists()
    (tmp_path / "file").touch()
    (tmp_path / "other").write_bytes(b"keep")
    with pytest.raises(RunError) as caught:
        REAL.rename(tmp_path / "file", tmp_path / "other", replace=False)
    assert isinstance(caught.value.__cause__, FileExistsError)
    assert (tmp_path / "other").read_bytes() == b"keep"
    REAL.rename(tmp_path / "file", tmp_path / "third", replace=False)
    assert names(tmp_path) == ["one", "other", "third", "two"]


def test_without_renameat2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linux_calls, "renameat2_call", lambda: None)
    (tmp_path / "a").touch()
    (tmp_path / "b").write_bytes(b"keep")
    assert not REAL.exchange(tmp_path / "a", tmp_path / "b")
    with pytest.raises(RunError):
        REAL.rename(tmp_path / "a", tmp_path / "b", replace=False)
    assert (tmp_path / "b").read_bytes() == b"keep"
    REAL.rename(tmp_path / "a", tmp_path / "c", replace=False)
    assert (tmp_path / "c").exists()


def test_locks_are_per_open_file(tmp_path: Path) -> None:
    first = REAL.open_file(tmp_path / "lock", "append")
    second = REAL.open_file(tmp_path / "lock", "append")
    assert REAL.lock(first) is True
    assert REAL.lock(second) is False
    assert REAL.is_open_at(first, tmp_path / "lock")
    REAL.close(first)
    assert REAL.lock(second) is True
    (tmp_path / "lock").unlink()
    assert not REAL.is_open_at(second, tmp_path / "lock")
    (tmp_path / "lock").touch()
    assert not REAL.is_open_at(second, tmp_path / "lock")
    REAL.close(second)


def test_remove_tree_does_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "keep").mkdir()
    (tmp_path / "keep/file").touch()
    (tmp_path / "gone/deep/er").mkdir(parents=True)
    (tmp_path / "gone/link").symlink_to(tmp_path / "keep")
    (tmp_path / "gone/deep/file").touch()
    remove_tree(tmp_path / "gone")
    remove_tree(tmp_path / "gone")
    assert names(tmp_path) == ["keep"]
    assert names(tmp_path / "keep") == ["file"]


def test_writes_of_many_threads_do_not_mix(tmp_path: Path) -> None:
    handle = REAL.create(tmp_path / "file", 64 * 5000)

    def fill(number: int) -> None:
        for block in range(number, 5000, 4):
            REAL.pwrite(handle, bytes([block % 251]) * 64, block * 64)

    threads = [threading.Thread(target=fill, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    REAL.close(handle)
    assert (tmp_path / "file").read_bytes() == b"".join(bytes([b % 251]) * 64 for b in range(5000))


def test_many_files_and_folders_are_synced_and_an_error_of_one_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handles = [REAL.create(tmp_path / str(number), 10) for number in range(40)]
    (tmp_path / "folder").mkdir()
    seen, fsync, broken = [], os.fsync, handles[7].number

    def counted(number: int) -> None:
        seen.append(str(Path(f"/proc/self/fd/{number}").readlink()))
        if number == broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(number)

    monkeypatch.setattr(os, "fsync", counted)
    with pytest.raises(RunError) as caught:
        REAL.sync_all(handles, [tmp_path / "folder", tmp_path])
    assert caught.value.diagnostics[0].where.file == str(tmp_path / "7")
    assert sorted(seen) == sorted([*(str(h.path) for h in handles), str(tmp_path), str(tmp_path / "folder")])
    broken = -1
    REAL.sync_all(handles[:1])
    REAL.sync_all([])
    assert len(seen) == 43
    for handle in handles:
        REAL.close(handle)


def test_both_disks_offer_the_whole_protocol() -> None:
    protocol = {name for name in vars(disk_module.Disk) if not name.startswith("_")}
    assert protocol <= set(dir(RealDisk))
    assert protocol <= set(dir(FaultyDisk))


_WRITERS = {
    "mkdir",
    "makedirs",
    "unlink",
    "rmdir",
    "removedirs",
    "rmtree",
    "fsync",
    "truncate",
    "ftruncate",
    "write_text",
    "write_bytes",
    "symlink_to",
    "hardlink_to",
    "touch",
    "pwrite",
    "copyfile",
    "copytree",
    "NamedTemporaryFile",
    "TemporaryDirectory",
    "mkstemp",
    "mkdtemp",
}


def writes(tree: ast.AST) -> list[str]:
    """Calls that change the file system: by their names, and `open` with a mode that writes."""
    found = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        owner, _, name = ast.unparse(call.func).rpartition(".")
        values = [value.value for value in (*call.args, *call.keywords) if isinstance(value, ast.keyword)]
        modes = [
            v.value for v in (*call.args, *values) if isinstance(v, ast.Constant) and isinstance(v.value, str)
        ]
        opens = name == "open" and any(set(m) <= set("rwaxbt+") and set(m) & set("wax+") for m in modes)
        through_disk = owner.lower().endswith(("disk", "real"))
        moves = owner in ("os", "shutil") and name in ("rename", "replace", "remove", "move", "copy", "copy2")
        if opens or moves or (name in _WRITERS and not through_disk):
            found.append(ast.unparse(call.func))
    return found


def test_no_other_module_changes_the_file_system() -> None:
    root = Path(disk_module.__file__).parents[1]
    guilty = {
        path.relative_to(root).as_posix(): found
        for path in root.rglob("*.py")
        if "testing" not in path.parts and (found := writes(ast.parse(path.read_text())))
    }
    assert set(guilty) == {"core/disk.py"}, guilty
