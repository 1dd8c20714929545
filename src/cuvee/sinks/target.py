"""Where an output becomes visible, where it is staged before, and the step from one to the other.

Owns the paths of both and the renames. Must not know what tensors are.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cuvee.core.disk import Disk
from cuvee.core.names import printable
from cuvee.errors import OutputBusy, RunError, Where

MANIFEST = "cuvee-manifest.json"


@dataclass(frozen=True, slots=True)
class Target:
    """An output path (absolute, links followed): a folder of files, or one weight file with its manifest
    beside it.

    The staging folder lies beside it, hence on the same file system:

        .<out>.cuvee-part/
            lock            who is writing
            journal.jsonl   which tensors are finished
            model/          the output itself; nothing else ever enters it
            old/            the previous output, while names cannot be exchanged in one step
    """

    out: Path
    shape: Literal["folder", "file"]

    @property
    def staging(self) -> Path:
        return self.out.with_name(f".{self.out.name}.cuvee-part")

    @property
    def model(self) -> Path:
        return self.staging / "model"

    @property
    def journal(self) -> Path:
        return self.staging / "journal.jsonl"

    @property
    def old(self) -> Path:
        return self.staging / "old"

    @property
    def product(self) -> Path:
        """What is renamed to `out`."""
        return self.model if self.shape == "folder" else self.model / self.out.name

    @property
    def home(self) -> Path:
        """The folder in which the weight files lie once they are visible."""
        return self.out if self.shape == "folder" else self.out.parent

    @property
    def manifest(self) -> Path:
        """Where the manifest lies once it is visible."""
        return self.out / MANIFEST if self.shape == "folder" else beside(self.out)


def beside(file: Path) -> Path:
    """The manifest of an output that is a single file."""
    return file.with_name(f"{file.name}.{MANIFEST}")


def check_place(disk: Disk, target: Target) -> None:
    """RunError when nothing could ever be renamed to the output path."""
    out, parent = target.out, target.out.parent
    nearest = parent
    while disk.kind(nearest) is None and nearest != nearest.parent:
        nearest = nearest.parent
    kind = disk.kind(out) if out.name else "folder"
    flaw = None
    if not out.name:
        flaw = "is the root of the file system"
    elif disk.kind(nearest) != "folder":
        flaw = f"cannot be made: `{printable(str(nearest), 1000)}` is not a folder"
    elif kind is not None and kind != target.shape:
        flaw = f"exists and is not a {target.shape}"
    elif kind == "folder" and not disk.same_device(out, parent):
        flaw = "is a mount point, which cannot be replaced in one step"
    if flaw:
        raise RunError(
            "CV-E009",
            f"the output `{printable(str(out), 1000)}` {flaw}",
            where=Where(file=printable(str(out), 1000)),
            hint="choose a path inside it" if kind == "folder" else "choose another path",
        )


def is_taken(disk: Disk, target: Target) -> bool:
    """Whether something of value is at the output path: anything but an empty folder."""
    kind = disk.kind(target.out)
    return kind is not None and not (kind == "folder" and not disk.listing(target.out))


def publish(disk: Disk, target: Target, *, overwrite: bool) -> None:
    """Make the staged output visible in one step, and durable.

    The previous output stays whole until the new one has its name; afterwards it lies in the staging folder.
    """
    if target.shape == "file":
        # The manifest goes first: a run that dies in between leaves a staged file, which the next run finds.
        disk.rename(target.model / MANIFEST, target.manifest)
    try:
        _rename(disk, target, overwrite=overwrite)
    except RunError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise exists(target) from error
        raise
    disk.sync_folder(target.out.parent)


def _rename(disk: Disk, target: Target, *, overwrite: bool) -> None:
    if target.shape == "file":
        disk.rename(target.product, target.out, replace=overwrite)
    elif not (overwrite and is_taken(disk, target)):
        disk.rename(target.product, target.out)  # the system refuses if the folder is not empty by now
    elif not disk.exchange(target.product, target.out):
        disk.sync_folder(target.out.parent)  # else the old output could be moved into a folder that gets lost
        disk.rename(target.out, target.old)
        disk.rename(target.product, target.out)


def restore(disk: Disk, target: Target) -> bool:
    """Undo the first of two renames if a crash prevented the second; whether there was one to undo."""
    if disk.kind(target.old) is None or disk.kind(target.out) is not None:
        return False
    disk.rename(target.old, target.out)
    disk.sync_folder(target.out.parent)
    return True


def exists(target: Target) -> OutputBusy:
    """The refusal to replace an output that nobody asked to replace."""
    out = printable(str(target.out), 1000)
    return OutputBusy(
        "CV-E006",
        f"the output `{out}` exists already",
        where=Where(file=out),
        hint="choose another path, or replace it with `--overwrite`",
    )
