"""One run at a time per output: a lock in the staging folder that dies with its process.

Owns the lock file, its record of the holder, and the recognition of stale ones. Must not know what is staged.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cuvee.core.disk import Disk, Handle, read_bytes
from cuvee.core.names import printable
from cuvee.errors import OutputBusy, RunError, Where

NAME = "lock"

# A run on another machine touches its journal with every tensor; silent for this long, it is taken for dead.
_SILENCE = 120.0
_TRIES = 20


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock that is held. `by_system`: the operating system guards it, not only the record in the file."""

    handle: Handle
    by_system: bool


def acquire(disk: Disk, folder: Path, out: Path) -> Lock:
    """Make the staging folder if need be and lock it; OutputBusy when a live run has it.

    The folder may be removed by its last holder at any moment, so the lock counts only if the path still
    leads to the file that was locked.
    """
    path = folder / NAME
    for _ in range(_TRIES):
        disk.make_folder(folder)
        try:
            handle = disk.open_file(path, "append")
        except RunError:
            if disk.kind(folder) is None:  # removed in between
                continue
            raise
        try:
            got = disk.lock(handle)
            if got is not False and not disk.is_open_at(handle, path):
                disk.close(handle)
                continue
            record = _last_record(disk, path)
            if got is False or _is_live(disk, folder, record, by_system=got is True):
                raise _busy(out, path, record)
            disk.append(handle, _record())
        except BaseException:
            with contextlib.suppress(RunError):
                disk.close(handle)
            raise
        return Lock(handle, by_system=got is True)
    raise _busy(out, path, {})


def release(disk: Disk, lock: Lock) -> None:
    """Let the lock go; the staging folder stays."""
    with contextlib.suppress(RunError):
        if not lock.by_system:
            disk.append(lock.handle, b"{}\n")  # no holder
    with contextlib.suppress(RunError):
        disk.close(lock.handle)


def _record() -> bytes:
    pid = os.getpid()
    record = {"pid": pid, "host": platform.node(), "started": _started(pid)}
    return json.dumps(record).encode() + b"\n"


def _last_record(disk: Disk, path: Path) -> dict[str, Any]:
    try:
        lines = read_bytes(path, disk).splitlines()
        record = json.loads(lines[-1]) if lines else {}
    except (RunError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _is_live(disk: Disk, folder: Path, record: dict[str, Any], *, by_system: bool) -> bool:
    pid, host = record.get("pid"), record.get("host")
    if not isinstance(pid, int) or not isinstance(host, str):
        return False
    if host == platform.node():
        # The system's lock is free, so the holder is dead; without one, its process must still be the same.
        return not by_system and _started(pid) is not None and _started(pid) == record.get("started")
    written = [folder / name for name in disk.listing(folder) if disk.kind(folder / name) == "file"]
    return min((disk.age(path) for path in written), default=_SILENCE) < _SILENCE


def _started(pid: int) -> int | None:
    """When a process began, in the kernel's ticks: tells a process from a later one with its number."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return int(fields[19])
    except FileNotFoundError:
        pass
    except (OSError, ValueError, IndexError):
        return None
    if Path("/proc/self/stat").exists():
        return None
    try:  # no /proc: the number alone has to do
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        return 0
    return 0


def _busy(out: Path, path: Path, record: dict[str, Any]) -> OutputBusy:
    pid, host = record.get("pid"), record.get("host")
    who = f" (process {pid} on `{printable(str(host))}`)" if isinstance(pid, int) else ""
    return OutputBusy(
        "CV-E007",
        f"another run{who} is writing `{printable(str(out), 1000)}`",
        where=Where(file=printable(str(out), 1000)),
        hint=f"wait for it; if you are sure that it is dead, delete `{printable(str(path), 1000)}`",
    )
