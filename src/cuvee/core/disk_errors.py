"""Failed system calls as sentences with a path, numbers and a remedy.

Owns the table of causes. Must not touch the file system.
"""

from __future__ import annotations

import errno
from pathlib import Path

from cuvee.core.names import printable
from cuvee.errors import OutOfSpace, RunError, Where

OUT_OF_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_RESUME = "free some space and run the same command again: finished tensors are kept"
_CAUSES: dict[int, tuple[str, str, str | None]] = {
    errno.ENOSPC: ("CV-E001", "the disk is full", _RESUME),
    errno.EDQUOT: ("CV-E001", "the disk quota is reached", _RESUME),
    errno.EFBIG: (
        "CV-E001",
        "the file is larger than the file system or the process limit allows",
        "write smaller shards, or raise the limit (`ulimit -f`)",
    ),
    errno.EIO: ("CV-E002", "the device reports an input/output error", "check the disk before trying again"),
    errno.EROFS: ("CV-E003", "the file system is read-only", "choose an output elsewhere"),
    errno.EACCES: ("CV-E004", "permission denied", "choose an output in a folder you may write to"),
    errno.EPERM: ("CV-E004", "operation not permitted", "choose an output in a folder you may write to"),
}


def run_error(error: OSError, path: Path, needed: int | None = None, free: int | None = None) -> RunError:
    """The typed error for a failed system call: where, why, and for a full disk bytes needed and free."""
    shown = f"`{printable(str(path), 1000)}`"
    number = error.errno or 0
    code, cause, hint = _CAUSES.get(number, ("CV-E005", (error.strerror or str(error)).lower(), None))
    amounts = []
    if number in OUT_OF_SPACE:
        amounts = [] if needed is None else [f"{quantity(needed)} needed"]
        amounts += [] if free is None else [f"{quantity(free)} free"]
    message = f"{shown}: {cause}"
    if amounts:
        message += f" ({', '.join(amounts)})"
    kind = OutOfSpace if number in OUT_OF_SPACE else RunError
    found = kind(code, message, where=Where(file=printable(str(path), 1000)), hint=hint)
    found.__cause__ = error
    return found


def quantity(nbytes: int) -> str:
    """Bytes for people, never rounded to nothing: `812 bytes`, `13.2 GB`."""
    if nbytes < 10_000:
        return f"{nbytes} bytes"
    for unit, scale in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6)):
        if nbytes >= scale:
            return f"{nbytes / scale:.1f} {unit}"
    return f"{nbytes / 1000:.1f} kB"
