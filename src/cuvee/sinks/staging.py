"""The commit protocol: stage beside the output, journal what is finished, make it visible in one rename.

Owns a session's life on disk. What a crash at any moment can leave behind is either nothing (or the previous
output) or the complete new one, and a staging folder from which the next run goes on. Must not know what is
merged.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cuvee.core.digests import as_bytes
from cuvee.core.disk import Disk, Handle, remove_tree
from cuvee.core.names import printable
from cuvee.errors import RunError, UnsafeFile, Where
from cuvee.formats.member_path import name_flaw
from cuvee.sinks import journal as journals
from cuvee.sinks import lock as locks
from cuvee.sinks.layout import Layout
from cuvee.sinks.progress import Progress
from cuvee.sinks.sink import MakeManifest
from cuvee.sinks.target import MANIFEST, Target, publish

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Buffer

_KEPT_OPEN = 256  # weight files; beyond that, each write opens and syncs its own
_SYNCED = 64  # files made durable together


@dataclass(frozen=True, slots=True)
class Claim:
    """A locked target and what its session starts from; `visible` when only the last steps are left to do."""

    disk: Disk
    target: Target
    layout: Layout
    lock: locks.Lock
    kept: Mapping[str, str]
    overwrite: bool
    paranoid: bool
    visible: bool = False


class StagedSession:
    """Tensors on their way into a staging folder. Made by `FolderSink.begin` and `SingleFileSink.begin`."""

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self._disk = claim.disk
        self._progress = Progress(claim.layout, dict(claim.kept))
        self._done = set(claim.kept)
        self._guard = threading.Lock()
        self._journal_guard = threading.Lock()
        self._handles: dict[str, Handle] = {}
        self._journal: Handle | None = None
        self._over = False
        if not claim.visible:
            self._journal = self._disk.open_file(claim.target.journal, "append")

    @property
    def done(self) -> set[str]:
        return set(self._done)

    @property
    def digests(self) -> dict[str, str]:
        return self._progress.digests

    def write(self, name: str, offset: int, data: Buffer) -> None:
        if self._claim.visible:
            raise ValueError("the output is complete already; only `commit` is left")
        view = as_bytes(data)
        self._progress.take(name, offset, view)
        place = self._claim.layout.place(name)
        if view:
            with self._file(place.file) as handle:
                self._disk.pwrite(handle, view, place.offset + offset)

    @property
    def folder(self) -> Path:
        """Where the weight files are staged, for those who write into them at the layout's places themselves."""
        return self._claim.target.model

    def put(self, name: str, offset: int, data: Buffer) -> None:
        """Write bytes of a tensor that was made and hashed elsewhere, in any order; `adopt` finishes it."""
        place = self._claim.layout.place(name)
        with self._file(place.file) as handle:
            self._disk.pwrite(handle, data, place.offset + offset)

    def adopt(self, name: str, digest: str) -> None:
        """A tensor is staged that was made elsewhere, with this digest."""
        self._progress.adopt(name, digest)
        self._journalled(name, digest)

    def finish(self, name: str) -> None:
        self._journalled(name, self._progress.finish(name))

    def _journalled(self, name: str, digest: str) -> None:
        with self._journal_guard:
            if self._journal is None:
                raise ValueError("the session is over")
            self._disk.append(self._journal, journals.entry(name, digest))

    def commit(self, side_files: Mapping[str, bytes], manifest: MakeManifest) -> None:
        self._progress.require_all()
        target = self._claim.target
        if self._claim.visible:
            self._disk.sync_folder(target.out.parent)
        else:
            others = self._side_files(side_files)
            self._complete(others, manifest)
            self._close_files()
            publish(self._disk, target, overwrite=self._claim.overwrite)
        self._over = True
        self._close_files()
        clear(self._disk, target)
        locks.release(self._disk, self._claim.lock)

    def abort(self) -> None:
        if not self._over:
            self._over = True
            self._close_files()
            locks.release(self._disk, self._claim.lock)

    def __enter__(self) -> StagedSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abort()

    def _side_files(self, given: Mapping[str, bytes]) -> dict[str, bytes]:
        """Everything to write besides weights and manifest, names checked."""
        layout = self._claim.layout
        if given and self._claim.target.shape == "file":
            raise ValueError("an output that is a single file has no side files")
        own = {file.name for file in layout.files} | {layout.index_name, MANIFEST, *layout.index_files}
        for name in given:
            flaw = "is the name of a file that cuvee writes itself" if name in own else name_flaw(name)
            if flaw:
                raise UnsafeFile(
                    "CV-E013",
                    f"the side file name `{printable(name)}` {flaw}",
                    where=Where(file=printable(name)),
                )
        return {**layout.index_files, **dict(sorted(given.items()))}

    def _complete(self, others: dict[str, bytes], manifest: MakeManifest) -> None:
        """Bring the staged output to its final content, every byte and every name of it durable."""
        model = self._claim.target.model
        folders = {model, *(model / name for name in self._claim.layout.folders)}
        for name in others:
            path = model.joinpath(*name.split("/"))
            missing = [p for p in path.parents if p != model and p.is_relative_to(model)]
            for folder in reversed(missing):
                self._disk.make_folder(folder)
            folders.update(missing)
        contents = {**others, MANIFEST: manifest(self._progress.records(others))}
        self._sync(contents, folders)
        if self._claim.paranoid:
            self._read_back(contents)

    def _sync(self, others: Mapping[str, bytes], folders: Iterable[Path]) -> None:
        """Write what stands beside the weights, the last of it last, and make every file and folder durable."""
        with self._journal_guard:
            if self._journal is not None:
                self._disk.append(self._journal, journals.SYNCING)
        names = [*(file.name for file in self._claim.layout.files), *others]
        for first in range(0, len(names), _SYNCED):
            batch = names[first : first + _SYNCED]
            is_last = first + _SYNCED >= len(names)
            with contextlib.ExitStack() as opened:
                files = (self._whole(n, others[n]) if n in others else self._file(n) for n in batch)
                handles = [opened.enter_context(file) for file in files]
                # Their order matters to nothing; a fixed one lets tests name each step.
                self._disk.sync_all(handles, sorted(folders, reverse=True) if is_last else ())

    def _read_back(self, others: Mapping[str, bytes]) -> None:
        """RunError when a tensor, a header or another file on the device is not what was written."""
        digests = self._progress.digests
        model, layout = self._claim.target.model, self._claim.layout
        found = journals.still_true(self._disk, model, layout, digests, device=True)
        for name in digests:
            if name not in found:
                file = layout.place(name).file
                raise _read_other(
                    file, f"tensor `{printable(name)}` reads back from `{file}`", printable(name)
                )
        for name, content in {**{file.name: file.header for file in layout.files}, **others}.items():
            handle = self._disk.open_file(model.joinpath(*name.split("/")))
            try:
                self._disk.forget(handle)
                if self._disk.pread(handle, len(content), 0) != content:
                    raise _read_other(name, f"`{printable(name)}` reads back")
            finally:
                self._disk.close(handle)

    @contextlib.contextmanager
    def _whole(self, name: str, content: bytes) -> Iterator[Handle]:
        """A file of the staged output with this content, open."""
        handle = self._disk.create(self._claim.target.model.joinpath(*name.split("/")), len(content))
        try:
            self._disk.pwrite(handle, content, 0)
            yield handle
        finally:
            self._disk.close(handle)

    @contextlib.contextmanager
    def _file(self, name: str) -> Iterator[Handle]:
        path = self._claim.target.model / name
        with self._guard:
            handle = self._handles.get(name)
            if handle is None and len(self._handles) < _KEPT_OPEN:
                handle = self._handles[name] = self._disk.open_file(path, "write")
        if handle is not None:
            yield handle
            return
        handle = self._disk.open_file(path, "write")
        try:
            yield handle
            self._disk.sync(handle)  # a file opened later may not be told of an error of the device before
        finally:
            self._disk.close(handle)

    def _close_files(self) -> None:
        with self._guard, self._journal_guard:
            handles = list(self._handles.values())
            if self._journal is not None:
                handles.append(self._journal)
            self._handles, self._journal = {}, None
        for handle in handles:
            with contextlib.suppress(RunError):
                self._disk.close(handle)


def _read_other(file: str, what: str, tensor: str | None = None) -> RunError:
    return RunError(
        "CV-E011",
        f"{what} other than it was written",
        where=Where(file=printable(file), tensor=tensor),
        hint="check the disk and its memory; run the same command again to write it anew",
    )


def clear(disk: Disk, target: Target) -> None:
    """Remove the staging folder, its lock last; what cannot be removed is left for the next run to remove."""
    with contextlib.suppress(RunError):
        # While the journal is there, the next run can tell that the output is complete.
        for name in disk.listing(target.staging):
            if name not in (locks.NAME, target.journal.name):
                remove_tree(target.staging / name, disk)
        remove_tree(target.journal, disk)
        disk.unlink(target.staging / locks.NAME)
        disk.remove_folder(target.staging)  # fails, rightly, when another run has just moved in
