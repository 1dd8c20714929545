"""What was found of a library before: that exactly these bytes reproduced the golden vectors on this processor.

Owns the record, an entry of the cache whose name is a digest of everything that the test depends on. A library that
is not the very same, or a record that others may write to, counts as untested. Must not know what is tested.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

from blake3 import blake3

from cuvee.core import disk, native
from cuvee.core.native import processor
from cuvee.errors import CuveeError

HERE = Path(__file__).parent
# What the test consists of, and what stands between it and the library.
_TESTS = ("vectors.json", "selftest.py", "operations.py", "library.py")


def record_of(library: Path) -> Path | None:
    """Where it stands that this library passed; None where something cannot be read, or arithmetic is not as usual."""
    if not _rounds_as_usual():
        return None
    try:
        parts = [library.read_bytes(), *((HERE / name).read_bytes() for name in _TESTS)]
    except OSError:
        return None
    told = (platform.system(), platform.machine(), sys.version, *sorted(processor()))
    found = blake3("\0".join(told).encode())
    for part in parts:
        found.update(len(part).to_bytes(8, "little") + part)
    return native.home() / f"{found.hexdigest(length=16)}.passed"


def passed(record: Path) -> bool:
    """Whether the record is there, in a folder that nobody else may write to."""
    try:
        return native.ours(record) and native.ours(record.parent)
    except OSError:
        return False


def remember(record: Path, library: Path) -> None:
    """Note that a library passed; a cache that cannot be written only means that it is tested again."""
    try:
        native.private_folder(record.parent)
        disk.write_file(record, f"{library.name} reproduced the golden vectors\n".encode())
        disk.keep_from_others(record)
    except (CuveeError, OSError):
        return


def _rounds_as_usual() -> bool:
    """Whether this thread rounds to nearest and keeps denormals, which some libraries switch off for the process."""
    least, last = sys.float_info.min, sys.float_info.epsilon
    return least / 2 * 2 == least and 1 + last / 2 == 1 and 1 + last * 0.75 == 1 + last
