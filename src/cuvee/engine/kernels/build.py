"""Where a library of kernels comes from: beside this file, in cuvee's cache, or from the system's C compiler.

Owns the compiler's flags and the key of what was built. A library is code: one that others may write to is not used.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import threading
from pathlib import Path

from cuvee.core import cache, disk
from cuvee.errors import CuveeError

HERE = Path(__file__).parent
SOURCE = HERE / "cuvee_kernels.c"
HEADER = "cuvee_tiles.h"  # beside the source
# Value-safe flags only: no contraction, no reordering; traps and errno are not looked at.
FLAGS = ("-O3", "-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno", "-fPIC", "-shared")
# Where vectors of 512 bits exist, the tiles gain more from them than the clock loses.
WIDE = ("-mprefer-vector-width=512",)
NATIVE = ("-march=native", *WIDE)
COMPILERS = ("cc", "gcc", "clang")
SECONDS = 120
# What each level of x86-64 needs, best first.
LEVELS = {
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx2", "f16c", "fma", "bmi2"},
    "x86-64-v3": {"avx2", "f16c", "fma", "bmi2"},
}


def prebuilt() -> Path | None:
    """The library that came with the package for the best level this processor has."""
    machine = platform.machine()
    names = [level for level, needed in LEVELS.items() if machine == "x86_64" and needed <= processor()]
    for name in (*names, f"{machine}-{platform.system().lower()}"):
        path = HERE / f"cuvee_kernels-{name}.so"
        if path.is_file():
            return path
    return None


def built() -> Path | None:
    """The library in the cache, built now when it is not there; None without a compiler or a usable cache."""
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    folder = cache.folder() / "kernels"
    path = folder / f"{_key()}.so"
    if not path.is_file():
        if compiler is None:
            return None
        try:
            disk.make_folders(folder)
            _compile(compiler, path)
        except (CuveeError, OSError, subprocess.SubprocessError):
            return None
    return path if _ours(path) and _ours(folder) else None


@functools.cache
def processor() -> frozenset[str]:
    """The processor's features, as Linux names them; empty where that is not known."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return frozenset()
    line = next((x for x in text.splitlines() if x.startswith(("flags", "Features"))), "")
    return frozenset(line.partition(":")[2].split())


def _key() -> str:
    """Changes with the source, the flags, the machine and the processor's features."""
    told = (platform.system(), platform.machine(), *FLAGS, *NATIVE, *sorted(processor()))
    return hashlib.blake2b(
        SOURCE.read_bytes() + SOURCE.with_name(HEADER).read_bytes() + "\0".join(told).encode(), digest_size=12
    ).hexdigest()


def _compile(compiler: str, path: Path) -> None:
    """Build for this processor, and for any of its kind where the compiler refuses; atomic."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        for extra in (NATIVE, NATIVE[:1], ()):
            done = subprocess.run(
                [compiler, *FLAGS, *extra, str(SOURCE), "-o", str(temporary)],
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


def _ours(path: Path) -> bool:
    """Whether only this user (or root) can have written it."""
    found = path.stat()
    mine = not hasattr(os, "getuid") or found.st_uid in (os.getuid(), 0)
    return mine and not found.st_mode & stat.S_IWOTH
