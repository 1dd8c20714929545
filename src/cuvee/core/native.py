"""C sources compiled for this machine into cuvee's cache, by the system's compiler, once.

Owns the compiler's flags and the key of what was built. A library is code: one that others may write to is not used.
Must not know what a source computes.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import stat
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from cuvee.core import cache, disk, settings
from cuvee.errors import CuveeError

# Value-safe flags only: no contraction, no reordering; traps and errno are not looked at.
FLAGS = ("-O3", "-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno", "-fPIC", "-shared")
# Where vectors of 512 bits exist, kernels gain more from them than the clock loses.
WIDE = ("-mprefer-vector-width=512",)
NATIVE = ("-march=native", *WIDE)
COMPILERS = ("cc", "gcc", "clang")
SECONDS = 120
_OFF = {"off", "0", "no", "false"}
_LOCK = threading.Lock()
Library = TypeVar("Library")


def off() -> bool:
    """Whether `CUVEE_KERNELS` switches compiled code off."""
    return (settings.get("CUVEE_KERNELS") or "").lower() in _OFF


def agreed(
    source: Path, opened: Callable[[Path], Library], agrees: Callable[[Library], bool]
) -> Library | None:
    """The library of a source as `opened` takes it, tried once in a process.

    None where compiled code is off or cannot be had, or where `agrees` finds it to differ from its reference.
    """
    if off():
        return None
    with _LOCK:
        found: Library | None = _once(source, opened, agrees)
        return found


@functools.cache
def _once(
    source: Path, opened: Callable[[Path], Library], agrees: Callable[[Library], bool]
) -> Library | None:
    if sys.byteorder != "little":
        return None
    try:
        path = built(source)
        loaded = opened(path) if path else None
    except (OSError, AttributeError):
        return None
    return loaded if loaded is not None and agrees(loaded) else None


def built(source: Path, includes: Sequence[Path] = ()) -> Path | None:
    """The library of a source, built now when it is not there; None without a compiler or a usable cache."""
    folder = cache.folder() / "kernels"
    path = folder / f"{_key(source, includes)}.so"
    if not path.is_file():
        import shutil  # what runs compilers is imported where one has to run
        import subprocess

        compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
        if compiler is None:
            return None
        try:
            disk.make_folders(folder)
            _compile(compiler, source, path)
        except (CuveeError, OSError, subprocess.SubprocessError):
            return None
    return path if ours(path) and ours(folder) else None


@functools.cache
def processor() -> frozenset[str]:
    """The processor's features, as Linux names them; empty where that is not known."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return frozenset()
    line = next((x for x in text.splitlines() if x.startswith(("flags", "Features"))), "")
    return frozenset(line.partition(":")[2].split())


def _key(source: Path, includes: Sequence[Path]) -> str:
    """Changes with the source, the flags, the machine and the processor's features."""
    told = (platform.system(), platform.machine(), *FLAGS, *NATIVE, *sorted(processor()))
    texts = b"".join(path.read_bytes() for path in (source, *includes))
    return hashlib.blake2b(texts + "\0".join(told).encode(), digest_size=12).hexdigest()


def _compile(compiler: str, source: Path, path: Path) -> None:
    """Build for this processor, and for any of its kind where the compiler refuses; atomic."""
    import subprocess

    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        for extra in (NATIVE, NATIVE[:1], ()):
            done = subprocess.run(
                [compiler, *FLAGS, *extra, str(source), "-o", str(temporary)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=SECONDS,
                check=False,
            )
            if done.returncode == 0:
                disk.REAL.rename(temporary, path)
                return
        raise subprocess.SubprocessError(f"{compiler} failed")
    finally:
        if temporary.exists():
            disk.REAL.unlink(temporary)


def ours(path: Path) -> bool:
    """Whether only this user (or root) can have written it; OSError where it is not there."""
    found = path.stat()
    mine = not hasattr(os, "getuid") or found.st_uid in (os.getuid(), 0)
    return mine and not found.st_mode & stat.S_IWOTH
