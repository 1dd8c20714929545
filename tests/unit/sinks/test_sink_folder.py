"""The folder and single-file sinks on the real file system: refusals, resuming, replacing, threads."""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cuvee.core.disk import REAL, remove_tree
from cuvee.core.dtypes import BY_NAME
from cuvee.core.tensors import TensorMeta
from cuvee.errors import CuveeError, OutOfSpace, OutputBusy, RunError, UnsafeFile
from cuvee.sinks import journal as journals
from cuvee.sinks import lock as locks
from cuvee.sinks.folder import FolderSink
from cuvee.sinks.layout import Layout, plan_layout
from cuvee.sinks.single import SingleFileSink
from cuvee.testing.faulty_disk import FaultyDisk

METAS = [TensorMeta(f"layer.{i}", BY_NAME["float32"], (7 + i, 300)) for i in range(6)]
LAYOUT = plan_layout(METAS, max_shard_bytes=20_000)


def value(meta: TensorMeta) -> torch.Tensor:
    return torch.rand(meta.shape, generator=torch.Generator().manual_seed(meta.numel))


def write(session, metas=METAS) -> None:
    for meta in metas:
        data = memoryview(value(meta).numpy().tobytes())
        for start in range(0, len(data), 5000):
            session.write(meta.name, start, data[start : start + 5000])
        session.finish(meta.name)


def manifest(files) -> bytes:
    return json.dumps({name: record.digest for name, record in files.items()}).encode()


def save(sink, layout: Layout = LAYOUT, *, plan: str = "p", side=None, **how) -> set[str]:
    with sink.begin(layout, plan, **{"resume": True, "overwrite": False, **how}) as session:
        done = session.done
        write(session, [m for m in METAS if m.name not in done])
        session.commit(side or {}, manifest)
    return done


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def code(error: CuveeError) -> str:
    return error.diagnostics[0].code


def check(out: Path) -> None:
    loaded = {}
    for file in LAYOUT.files:
        loaded |= load_file(out / file.name)
    assert sorted(loaded) == sorted(meta.name for meta in METAS)
    for meta in METAS:
        assert torch.equal(loaded[meta.name], value(meta))


def test_a_folder_is_written_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    out = tmp_path / "deep/er/model"
    save(FolderSink(out), side={"config.json": b"{}", "a/b/c.txt": b"deep"})
    check(out)
    assert (out / "a/b/c.txt").read_bytes() == b"deep"
    assert json.loads((out / "model.safetensors.index.json").read_bytes())["weight_map"].keys() == {
        meta.name for meta in METAS
    }
    assert names(out.parent) == ["model"]
    before = os.umask(0)
    os.umask(before)
    assert out.stat().st_mode & 0o777 == 0o777 & ~before
    assert (out / LAYOUT.files[0].name).stat().st_mode & 0o777 == 0o666 & ~before


def test_nothing_is_visible_before_the_commit(tmp_path: Path) -> None:
    out = tmp_path / "model"
    with FolderSink(out).begin(LAYOUT, "p", resume=True, overwrite=False) as session:
        write(session)
        assert names(tmp_path) == [".model.cuvee-part"]
    assert not out.exists()


def test_existing_outputs_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "model"
    out.mkdir()
    save(FolderSink(out))  # empty: counts as nothing
    check(out)
    state = names(out)
    with pytest.raises(OutputBusy) as caught:
        save(FolderSink(out))
    assert code(caught.value) == "CV-E006"
    assert names(out) == state
    assert names(tmp_path) == ["model"]


def test_overwrite_leaves_nothing_of_the_old_model(tmp_path: Path) -> None:
    out = tmp_path / "model"
    (out / "sub").mkdir(parents=True)
    (out / "sub/old.txt").write_text("old")
    (out / "model.safetensors").write_bytes(b"old")
    save(FolderSink(out), overwrite=True, side={"config.json": b"{}"})
    check(out)
    assert names(out) == sorted(
        [f.name for f in LAYOUT.files]
        + ["config.json", "cuvee-manifest.json", "model.safetensors.index.json"]
    )
    assert names(tmp_path) == ["model"]


def test_a_link_is_followed_to_the_folder_it_means(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    save(FolderSink(tmp_path / "link"))
    check(tmp_path / "real")
    assert (tmp_path / "link").is_symlink()


def test_resuming_keeps_what_still_hashes_to_its_claim(tmp_path: Path) -> None:
    out = tmp_path / "model"
    session = FolderSink(out).begin(LAYOUT, "p", resume=True, overwrite=False)
    write(session, METAS[:4])
    session.write(METAS[4].name, 0, b"half")
    session.abort()
    session.abort()
    part = tmp_path / ".model.cuvee-part"
    with (part / "journal.jsonl").open("ab") as journal:
        journal.write(b'\n{"name": "layer.5", "blake3": "00"}\nnonsense\n{"name": "la')
    place = LAYOUT.place(METAS[1].name)
    with (part / "model" / place.file).open("r+b") as file:
        file.seek(place.offset + 11)
        file.write(b"!")
    assert save(FolderSink(out)) == {METAS[0].name, METAS[2].name, METAS[3].name}
    check(out)


def test_resumed_and_uninterrupted_runs_give_the_same_bytes(tmp_path: Path) -> None:
    save(FolderSink(tmp_path / "straight"))
    for count in range(len(METAS)):
        session = FolderSink(tmp_path / "resumed").begin(LAYOUT, "p", resume=True, overwrite=False)
        write(session, METAS[count : count + 1])
        session.abort()
    save(FolderSink(tmp_path / "resumed"))
    for path in (tmp_path / "straight").iterdir():
        assert path.read_bytes() == (tmp_path / "resumed" / path.name).read_bytes()


def test_side_files_of_an_interrupted_commit_do_not_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model"
    with FolderSink(out).begin(LAYOUT, "p", resume=True, overwrite=False) as session:
        write(session)

        def fail(*_: object) -> None:
            raise RuntimeError

        with monkeypatch.context() as here, pytest.raises(RuntimeError):
            here.setattr(type(REAL), "sync_all", fail)
            session.commit({"old.json": b"{}", "sub/old.json": b"{}"}, manifest)
    assert (tmp_path / ".model.cuvee-part/model/sub/old.json").exists()
    assert len(save(FolderSink(out), side={"new.json": b"{}"})) == len(METAS)
    assert not {"old.json", "sub"} & set(names(out))
    check(out)


def test_another_plan_is_refused_and_can_be_discarded(tmp_path: Path) -> None:
    out = tmp_path / "model"
    session = FolderSink(out).begin(LAYOUT, "p", resume=True, overwrite=False)
    write(session, METAS[:2])
    session.abort()
    with pytest.raises(RunError) as caught:
        save(FolderSink(out), plan="q")
    assert code(caught.value) == "CV-E008"
    assert "--no-resume" in caught.value.diagnostics[0].hint
    assert save(FolderSink(out), plan="q", resume=False) == set()
    check(out)


def test_a_live_run_holds_the_output(tmp_path: Path) -> None:
    out = tmp_path / "model"
    with FolderSink(out).begin(LAYOUT, "p", resume=True, overwrite=False) as session:
        for resume in (True, False):
            with pytest.raises(OutputBusy) as caught:
                FolderSink(out).begin(LAYOUT, "p", resume=resume, overwrite=True)
            assert code(caught.value) == "CV-E007"
            assert f"process {os.getpid()} on `{socket.gethostname()}`" in str(caught.value)
        write(session)
        session.commit({}, manifest)
    check(out)


@pytest.mark.parametrize("by_system", [True, False])
def test_stale_and_foreign_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_system: bool) -> None:
    if not by_system:
        monkeypatch.setattr(type(REAL), "lock", lambda self, handle: None)
    out, part = tmp_path / "model", tmp_path / ".model.cuvee-part"
    lock = part / "lock"
    part.mkdir()

    def held_by(**record: object) -> str | None:
        mine = {"pid": os.getpid(), "host": socket.gethostname(), "started": locks._started(os.getpid())}
        lock.write_text(json.dumps({**mine, **record}) + "\n")
        try:
            FolderSink(out).begin(LAYOUT, "p", resume=True, overwrite=False).abort()
        except OutputBusy as error:
            return code(error)
        return None

    assert held_by(pid=2**22 - 1) is None  # dead
    assert held_by(started=1) is None  # another process has its number now
    assert held_by(pid="x") is None
    assert held_by() == (None if by_system else "CV-E007")  # alive, but without the system's lock
    assert held_by(host="elsewhere") == "CV-E007"
    for file in part.iterdir():
        if file.is_file():
            os.utime(file, (1, 1))
    lock.write_text(json.dumps({"pid": 1, "host": "elsewhere", "started": 1}) + "\n")
    os.utime(lock, (1, 1))
    save(FolderSink(out))  # silent for long
    check(out)


def test_a_lock_in_a_folder_that_was_just_removed_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last holder removes the staging folder between our opening of the lock file and our locking of it."""
    disk, part = FaultyDisk(), Path("/w/.model.cuvee-part")
    disk.put(Path("/w/other"), b"")
    genuine, calls = disk.open_file, []

    def open_late(path: Path, mode: str = "read"):
        handle = genuine(path, mode)
        calls.append(path)
        if len(calls) == 1:
            remove_tree(part, disk)
        return handle

    monkeypatch.setattr(disk, "open_file", open_late)
    lock = locks.acquire(disk, part, Path("/w/model"))
    assert disk.is_open_at(lock.handle, part / "lock")
    with pytest.raises(OutputBusy):
        locks.acquire(disk, part, Path("/w/model"))


def test_an_interrupted_clean_up_is_finished_by_the_same_command(tmp_path: Path) -> None:
    """A run that died after the rename: the next one finds the output complete and says so by succeeding."""
    out = tmp_path / "model"
    session = FolderSink(out).begin(LAYOUT, "p", resume=True, overwrite=False)
    write(session)
    journal = (tmp_path / ".model.cuvee-part/journal.jsonl").read_bytes()
    session.commit({}, manifest)
    (tmp_path / ".model.cuvee-part").mkdir()
    (tmp_path / ".model.cuvee-part/journal.jsonl").write_bytes(journal)
    with FolderSink(out).begin(LAYOUT, "p", resume=True, overwrite=False) as again:
        assert again.done == {meta.name for meta in METAS}
        with pytest.raises(ValueError, match="complete"):
            again.write(METAS[0].name, 0, b"")
        again.commit({}, manifest)
    check(out)
    assert names(tmp_path) == ["model"]


def test_the_rest_of_an_interrupted_clean_up_is_removed_even_by_a_refused_run(tmp_path: Path) -> None:
    out, part = tmp_path / "model", tmp_path / ".model.cuvee-part"
    save(FolderSink(out))
    part.mkdir()
    (part / "lock").touch()
    with pytest.raises(OutputBusy):
        save(FolderSink(out))
    assert names(tmp_path) == ["model"]
    (part / "model").mkdir(parents=True)  # but work that is not finished stays
    with pytest.raises(OutputBusy):
        save(FolderSink(out))
    assert (part / "model").exists()


def test_different_tensors_from_different_threads(tmp_path: Path) -> None:
    out = tmp_path / "model"
    with FolderSink(out, paranoid=True).begin(LAYOUT, "p", resume=True, overwrite=False) as session:
        threads = [threading.Thread(target=write, args=(session, METAS[n::3])) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert list(session.digests) == [meta.name for meta in METAS]
        session.commit({}, manifest)
    check(out)


def test_paranoid_reads_back(tmp_path: Path) -> None:
    out = tmp_path / "model"
    with FolderSink(out, paranoid=True).begin(LAYOUT, "p", resume=True, overwrite=False) as session:
        write(session)
        place = LAYOUT.place("layer.3")
        with (tmp_path / ".model.cuvee-part/model" / place.file).open("r+b") as file:
            file.seek(place.offset)
            file.write(b"\xff\xff")
        with pytest.raises(RunError) as caught:
            session.commit({}, manifest)
    assert (code(caught.value), caught.value.diagnostics[0].where.tensor) == ("CV-E011", "layer.3")
    assert not out.exists()


class Flipping(FaultyDisk):
    """A disk that loses a bit on its way to the device, which its cache does not know."""

    def sync_all(self, handles, folders=()) -> None:
        super().sync_all(handles, folders)
        place = LAYOUT.place("layer.3")
        for handle in handles:
            if handle.path.name == place.file:
                self._opened(handle).durable[place.offset] ^= 1


@pytest.mark.parametrize("paranoid", [True, False])
def test_paranoid_reads_from_the_device_not_from_the_cache(paranoid: bool) -> None:
    disk, out = Flipping(), Path("/disk/model")
    sink = FolderSink(out, disk, paranoid=paranoid)
    with sink.begin(LAYOUT, "p", resume=True, overwrite=False) as session:
        write(session)
        if not paranoid:
            session.commit({}, manifest)
            assert disk.kind(out) == "folder"
            return
        with pytest.raises(RunError) as caught:
            session.commit({}, manifest)
    assert caught.value.diagnostics[0].where.tensor == "layer.3"
    assert disk.kind(out) is None


@pytest.mark.parametrize("file", ["notes.txt", "cuvee-manifest.json", LAYOUT.files[0].name])
def test_paranoid_reads_headers_and_other_files_too(file: str) -> None:
    class Lossy(FaultyDisk):
        def forget(self, handle) -> None:
            if handle.path.name == file:
                self._opened(handle).current[3] = 255

    with FolderSink(Path("/disk/model"), Lossy(), paranoid=True).begin(
        LAYOUT, "p", resume=True, overwrite=False
    ) as session:
        write(session)
        with pytest.raises(RunError) as caught:
            session.commit({"notes.txt": b"some text"}, manifest)
    where = caught.value.diagnostics[0].where
    assert (code(caught.value), where.file, where.tensor) == ("CV-E011", file, None)


def test_a_tensor_that_cannot_be_read_is_written_anew() -> None:
    class Unreadable(FaultyDisk):
        def pread(self, handle, count: int, offset: int) -> bytes:
            if handle.path.name == LAYOUT.place("layer.3").file and count > 1 and self.is_broken:
                raise RunError("CV-E003", "an error of the device")
            return super().pread(handle, count, offset)

    disk = Unreadable()
    disk.is_broken = False
    sink = FolderSink(Path("/disk/model"), disk)
    with sink.begin(LAYOUT, "p", resume=True, overwrite=False) as session:
        write(session)
    disk.is_broken = True
    with sink.begin(LAYOUT, "p", resume=True, overwrite=False) as session:
        lost = {meta.name for meta in METAS} - session.done
    assert "layer.3" in lost and len(lost) < len(METAS)


def test_a_resumed_run_trusts_only_what_it_wrote_again() -> None:
    class Forgetful(FaultyDisk):
        """A disk whose cache drops a page that it lost, after it was looked at."""

        looks = 0

        def open_file(self, path, mode="read"):
            if mode == "write" and path.name == LAYOUT.place("layer.3").file:
                self.looks += 1
                if self.looks == 2:  # the first is for the header, the next to write again
                    self._file(path).current[LAYOUT.place("layer.3").offset] ^= 1
            return super().open_file(path, mode)

        def sync_all(self, handles, folders=()) -> None:
            raise RunError("CV-E003", "the device failed")

    disk = Forgetful()
    sink = FolderSink(Path("/disk/model"), disk)
    with sink.begin(LAYOUT, "p", resume=True, overwrite=False) as session:
        write(session)
        with pytest.raises(RunError):
            session.commit({}, manifest)
    disk.looks = 0
    with sink.begin(LAYOUT, "p", resume=True, overwrite=False) as session:
        assert session.done == {meta.name for meta in METAS} - {"layer.3"}


def test_a_claim_is_dropped_that_is_not_true_of_what_is_written_again() -> None:
    disk, place = FaultyDisk(), LAYOUT.place("layer.3")
    with FolderSink(Path("/disk/model"), disk).begin(LAYOUT, "p", resume=True, overwrite=False) as session:
        write(session)
        claims, folder = session.digests, session.folder
        assert journals.write_again(disk, folder, LAYOUT, claims) == claims
        disk._file(folder / place.file).current[place.offset] ^= (
            1  # as when the cache drops a page that it lost
        )
        assert journals.write_again(disk, folder, LAYOUT, claims).keys() == claims.keys() - {"layer.3"}


def test_blocks_must_come_in_order_and_completely(tmp_path: Path) -> None:
    with FolderSink(tmp_path / "model").begin(LAYOUT, "p", resume=True, overwrite=False) as session:
        size = METAS[0].nbytes
        with pytest.raises(ValueError, match="expected 0"):
            session.write("layer.0", 8, b"x")
        session.write("layer.0", 0, bytes(8))
        with pytest.raises(ValueError, match="expected 8"):
            session.write("layer.0", 4, b"x")
        with pytest.raises(ValueError, match="ends at"):
            session.write("layer.0", 8, bytes(size))
        with pytest.raises(ValueError, match="bytes came"):
            session.finish("layer.0")
        write(session, METAS[:1])  # beginning again is fine
        with pytest.raises(KeyError):
            session.write("unknown", 0, b"")
        with pytest.raises(RunError) as caught:
            session.commit({}, manifest)
        assert code(caught.value) == "CV-E010"
        assert "5 of 6 tensors" in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/x",
        "a//b",
        "a\\b",
        "C:x",
        "",
        "nul",
        "a/../b",
        "x\n",
        "cuvee-manifest.json",
        "model.safetensors.index.json",
        LAYOUT.files[0].name,
    ],
)
def test_side_files_stay_inside_and_off_our_own_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsafeFile) as caught:
        save(FolderSink(tmp_path / "model"), side={name: b"x"})
    assert code(caught.value) == "CV-E013"
    assert names(tmp_path) == [".model.cuvee-part"]


def test_places_that_cannot_be_an_output(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for out in (
        tmp_path / "file",
        tmp_path / "file/below",
        tmp_path / "file/far/below",
        Path("/"),
        Path("/proc"),
    ):
        with pytest.raises(RunError) as caught:
            save(FolderSink(out), overwrite=True)
        assert code(caught.value) == "CV-E009"
    with pytest.raises(RunError) as caught:
        single = plan_layout(METAS, max_shard_bytes=None, stem="folder")
        (tmp_path / "folder.safetensors").mkdir()
        save(SingleFileSink(tmp_path / "folder.safetensors"), single, overwrite=True)
    assert code(caught.value) == "CV-E009"
    assert names(tmp_path) == ["file", "folder.safetensors"]


def test_space_is_checked_first_and_with_numbers() -> None:
    disk = FaultyDisk(capacity=30_000)
    disk.put(Path("/w/other"), bytes(10_000))
    with pytest.raises(OutOfSpace) as caught:
        FolderSink(Path("/w/model"), disk).begin(LAYOUT, "p", resume=True, overwrite=False)
    assert "needed, 20.0 kB free" in str(caught.value)
    assert code(caught.value) == "CV-E001"
    assert list(disk.tree(Path("/w"))) == ["other"]


def test_a_resumed_run_needs_only_the_space_it_does_not_have_yet() -> None:
    disk = FaultyDisk(capacity=LAYOUT.total_bytes + 25_000)
    disk.put(Path("/w/other"), b"")
    session = FolderSink(Path("/w/model"), disk).begin(LAYOUT, "p", resume=True, overwrite=False)
    write(session, METAS[:3])
    session.abort()
    assert len(save(FolderSink(Path("/w/model"), disk))) == 3


def test_one_file(tmp_path: Path) -> None:
    out = tmp_path / "merged.safetensors"
    layout = plan_layout(METAS, max_shard_bytes=None, stem="merged")
    session = SingleFileSink(out).begin(layout, "p", resume=True, overwrite=False)
    write(session, METAS[:2])
    session.abort()
    assert names(tmp_path) == [".merged.safetensors.cuvee-part"]
    assert save(SingleFileSink(out), layout) == {"layer.0", "layer.1"}
    assert names(tmp_path) == ["merged.safetensors", "merged.safetensors.cuvee-manifest.json"]
    loaded = load_file(out)
    assert all(torch.equal(loaded[meta.name], value(meta)) for meta in METAS)
    with pytest.raises(OutputBusy):
        save(SingleFileSink(out), layout)
    save(SingleFileSink(out), layout, overwrite=True)
    with pytest.raises(ValueError, match="no side files"):
        save(SingleFileSink(out), layout, overwrite=True, side={"x": b""})
    with pytest.raises(ValueError, match="must be one file"):
        SingleFileSink(tmp_path / "other.safetensors").begin(layout, "p", resume=True, overwrite=False)


def test_an_output_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    layout = plan_layout(METAS, max_shard_bytes=None, stem="merged")
    for sink, planned, out in (
        (FolderSink(tmp_path / "model"), LAYOUT, tmp_path / "model"),
        (SingleFileSink(tmp_path / "merged.safetensors"), layout, tmp_path / "merged.safetensors"),
    ):
        with sink.begin(planned, "p", resume=True, overwrite=False) as session:
            write(session)
            if out.suffix:
                out.write_bytes(b"mine")
            else:
                out.mkdir()
                (out / "mine").write_bytes(b"mine")
            with pytest.raises(OutputBusy):
                session.commit({}, manifest)
    assert (tmp_path / "merged.safetensors").read_bytes() == b"mine"
    assert names(tmp_path / "model") == ["mine"]


@pytest.mark.parametrize("together", [1, 2, 3, 64])
def test_every_file_is_made_durable_before_the_output_is_seen(
    together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cuvee.sinks.staging._SYNCED", together)
    disk = FaultyDisk()
    disk.put(Path("/disk/bystander"), b"")
    save(FolderSink(Path("/disk/model"), disk), side={"a.json": b"{}", "sub/b.json": b"{}"})
    at = next(i for i, line in enumerate(disk.log) if line.startswith("rename ") and "model" in line)
    staged = "/disk/.model.cuvee-part/model"
    synced = [line for line in disk.log[:at] if line.startswith("sync")]
    for name in disk.tree(Path("/disk/model")):
        assert synced.count(f"sync {staged}/{name}") == 1
    assert synced[-2:] == [f"sync_folder {staged}/sub", f"sync_folder {staged}"]


def test_more_files_than_are_kept_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cuvee.sinks.staging._KEPT_OPEN", 2)
    save(FolderSink(tmp_path / "model"))
    check(tmp_path / "model")
