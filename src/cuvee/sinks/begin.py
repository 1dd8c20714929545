"""The start of the commit protocol: claim an output path, and find out what an earlier run left there.

Owns locking, refusing, checking space, preallocation and resuming. What happens next is in `staging`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from cuvee.core.disk import Disk, make_folders, remove_tree
from cuvee.core.disk_errors import quantity
from cuvee.core.names import printable
from cuvee.errors import OutOfSpace, RunError, Where
from cuvee.sinks import journal as journals
from cuvee.sinks import lock as locks
from cuvee.sinks.journal import Journal
from cuvee.sinks.layout import Layout
from cuvee.sinks.staging import Claim, StagedSession, clear
from cuvee.sinks.target import Target, check_place, exists, is_taken, restore

_PER_FILE = 4096  # a folder entry and a partly filled last block
_PER_TENSOR = 600  # a journal line at most


@dataclass(frozen=True, slots=True)
class Request:
    """What a sink was asked to begin."""

    target: Target
    layout: Layout
    plan: str
    resume: bool
    overwrite: bool
    paranoid: bool = False


def begin(disk: Disk, request: Request) -> StagedSession:
    """A session on the target, or a RunError (OutputBusy, OutOfSpace) with everything left as it was."""
    target = request.target
    check_place(disk, target)
    if is_taken(disk, target) and not request.overwrite and disk.kind(target.staging) is None:
        raise exists(target)
    make_folders(target.out.parent, disk)
    lock = locks.acquire(disk, target.staging, target.out)
    try:
        return _locked(disk, request, lock)
    except BaseException:
        locks.release(disk, lock)
        raise


def _locked(disk: Disk, request: Request, lock: locks.Lock) -> StagedSession:
    target = request.target
    if not restore(disk, target):
        remove_tree(target.old, disk)
    journal = _own_journal(disk, request) if request.resume else None
    if is_taken(disk, target) and not request.overwrite:
        visible = _already_visible(disk, request, journal)
        if visible is None:
            if disk.kind(target.journal) is None and disk.kind(target.product) is None:
                clear(disk, target)  # the rest of a run that died while it cleaned up
            raise exists(target)
        return StagedSession(_claim(disk, request, lock, visible, is_visible=True))
    if journal is None:
        try:
            return _prepare(disk, request, lock, Journal(request.plan, request.layout.digest, {}))
        except RunError:
            clear(disk, target)  # there is nothing in it to go on from, and it may fill the disk
            raise
    return _prepare(disk, request, lock, journal)


def _own_journal(disk: Disk, request: Request) -> Journal | None:
    """The journal of an interrupted run of the same plan; RunError when it was another plan."""
    journal = journals.read_journal(disk, request.target.journal)
    if journal is not None and (journal.plan, journal.layout) != (request.plan, request.layout.digest):
        staging = printable(str(request.target.staging), 1000)
        raise RunError(
            "CV-E008",
            f"`{staging}` holds an interrupted run of another plan",
            where=Where(file=staging),
            hint="finish that run, or throw its work away with `--no-resume`",
        )
    return journal


def _already_visible(disk: Disk, request: Request, journal: Journal | None) -> Mapping[str, str] | None:
    """All digests, if the output is the staged one, renamed by a run that died before it could say so."""
    target, layout = request.target, request.layout
    if journal is None or disk.kind(target.product) is not None or disk.kind(target.manifest) != "file":
        return None
    found = journals.still_true(disk, target.home, layout, journal.claims, device=request.paranoid)
    return found if len(found) == len(layout.tensors) else None


def _prepare(disk: Disk, request: Request, lock: locks.Lock, journal: Journal) -> StagedSession:
    target, layout = request.target, request.layout
    if not journal.claims:
        remove_tree(target.journal, disk)
        remove_tree(target.model, disk)
    _check_space(disk, request)
    disk.make_folder(target.model)
    sizes = {file.name: file.size for file in layout.files}
    for folder in layout.folders:
        if disk.kind(target.model / folder) == "file":
            remove_tree(target.model / folder, disk)
        disk.make_folder(target.model / folder)
    for name in _staged(disk, target, layout):
        path = target.model / name
        if name not in sizes or disk.kind(path) != "file" or disk.size(path) != sizes[name]:
            remove_tree(path, disk)
    for file in layout.files:
        path = target.model / file.name
        here = disk.kind(path) is not None
        handle = disk.open_file(path, "write") if here else disk.create(path, file.size)
        try:
            disk.pwrite(handle, file.header, 0)
        finally:
            disk.close(handle)
    kept = journals.still_true(disk, target.model, layout, journal.claims)
    if journal.syncing:
        kept = journals.write_again(disk, target.model, layout, kept)
    journals.write_journal(disk, target.journal, replace(journal, claims=kept, syncing=False))
    return StagedSession(_claim(disk, request, lock, kept))


def _staged(disk: Disk, target: Target, layout: Layout) -> list[str]:
    """What lies in the staged output and in the folders of its weights, those folders aside."""
    inside = [f"{folder}/{name}" for folder in layout.folders for name in disk.listing(target.model / folder)]
    return [*(name for name in disk.listing(target.model) if name not in layout.folders), *inside]


def _claim(
    disk: Disk, request: Request, lock: locks.Lock, kept: Mapping[str, str], *, is_visible: bool = False
) -> Claim:
    return Claim(
        disk, request.target, request.layout, lock, kept, request.overwrite, request.paranoid, is_visible
    )


def _check_space(disk: Disk, request: Request) -> None:
    """OutOfSpace, with numbers, when the output cannot fit beside what is staged already."""
    target, layout = request.target, request.layout
    needed = layout.total_bytes + _PER_FILE * len(layout.files) + _PER_TENSOR * len(layout.tensors)
    staged = [target.model / file.name for file in layout.files]
    needed -= sum(min(disk.allocated(p), disk.size(p)) for p in staged if disk.kind(p) == "file")
    free = disk.free(target.out.parent)
    if needed > free:
        out = printable(str(target.out), 1000)
        raise OutOfSpace(
            "CV-E001",
            f"`{out}` does not fit on its disk: {quantity(needed)} needed, {quantity(free)} free",
            where=Where(file=out),
            hint="free some space, or choose an output on another disk",
        )
