"""C sources compiled for this machine into cuvee's cache, by the system's compiler, once.

Owns the compiler's flags, how long it may take, and the key of what was built. A library is code: one that others may
write to, the user's group included, is not used but built anew; in a cache that users share each has a folder of their
own. Must not know what a source computes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import resource
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cuvee.core import cache, disk, settings, stopping
from cuvee.errors import CuveeError

if TYPE_CHECKING:
    import subprocess

# Value-safe flags only: no contraction, no reordering; traps and errno are not looked at.
FLAGS = ("-O3", "-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno", "-fPIC", "-shared")
# Where vectors of 512 bits exist, kernels gain more from them than the clock loses.
WIDE = ("-mprefer-vector-width=512",)
NATIVE = ("-march=native", *WIDE)
COMPILERS = ("cc", "gcc", "clang")
PROCESSOR = 300  # seconds of processor time of one process of a compiler, where the system can keep that
SECONDS = 1800  # seconds in all: a busy machine may give it little of each
_LOOK = 0.1  # seconds between two looks at whether a compiler must be stopped
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


def built(
    source: Path, includes: Sequence[Path] = (), failed: Callable[[str], None] = lambda reason: None
) -> Path | None:
    """The library of a source, built now when it is not there; None without a compiler or a usable cache.

    What others could have written to counts as not there. Why there is a compiler and no library is told to `failed`.
    """
    folder = home()
    path = folder / f"{_key(source, includes)}.so"
    if not _trusted(path):
        import shutil  # what runs compilers is imported where one has to run
        import subprocess

        compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
        if compiler is None:
            return None
        try:
            private_folder(folder)
            _compile(compiler, source, path)
        except (CuveeError, OSError, subprocess.SubprocessError) as error:
            failed(f"`{compiler}` made no library in {folder}: {error}")
            return None
        if not _trusted(path):
            failed(f"others may write to {folder}")
            return None
    return path


def home() -> Path:
    """The folder of the cache that compiled code is kept in: one of this user's own where `kernels` is another's."""
    folder = cache.folder() / "kernels"
    with contextlib.suppress(OSError):
        if hasattr(os, "getuid") and folder.stat().st_uid not in (os.getuid(), 0):
            return folder.with_name(f"kernels-{os.getuid()}")
    return folder


def private_folder(folder: Path) -> None:
    """Make a folder of the cache that only this user writes to; RunError where it is another's."""
    disk.make_folders(folder)
    if not ours(folder):
        disk.keep_from_others(folder)


def _trusted(library: Path) -> bool:
    """Whether the library is there, and nobody else can have put or changed it."""
    try:
        return library.is_file() and ours(library) and ours(library.parent)
    except OSError:
        return False


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
            command = [compiler, *FLAGS, *extra, str(source), "-o", str(temporary)]
            if _ran(command):
                disk.keep_from_others(temporary)  # a umask of 002 lets the group write
                disk.REAL.rename(temporary, path)
                return
        raise subprocess.SubprocessError("it failed with all flags that are tried")
    finally:
        if temporary.exists():
            disk.REAL.unlink(temporary)


def _ran(command: Sequence[str]) -> bool:
    """Whether a compiler succeeds; SubprocessError when it takes too long, is killed, or this process must end."""
    import subprocess

    quiet, signals = subprocess.DEVNULL, [signal.SIGTERM, signal.SIGKILL]  # the first removes its files
    with subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, process_group=0) as child:
        _limited(child.pid)
        end, late = time.monotonic() + SECONDS, False
        try:
            while (code := _waited(child)) is None:
                late = late or time.monotonic() > end
                if late or stopping.asked():
                    _end(child.pid, signals.pop(0) if len(signals) > 1 else signals[0])
        except BaseException:  # Ctrl-C reaches this process alone
            for how in signals:
                _end(child.pid, how)
                _waited(child)
            raise
    if late:
        raise subprocess.SubprocessError(f"it took more than {SECONDS} seconds")
    if code < 0:  # with other flags it would only begin again
        raise subprocess.SubprocessError(f"it was ended by signal {-code}")
    return code == 0


def _waited(child: subprocess.Popen[bytes]) -> int | None:
    """How a compiler ended, if it does within a moment."""
    import subprocess

    with contextlib.suppress(subprocess.TimeoutExpired):
        return child.wait(_LOOK)
    return None


def _limited(pid: int) -> None:
    """Bound the processor time of a process and of those that it starts from now on, where the system can do that."""
    if hasattr(resource, "prlimit"):
        with contextlib.suppress(OSError, ValueError):  # gone already, or a lower limit holds
            resource.prlimit(pid, resource.RLIMIT_CPU, (PROCESSOR, PROCESSOR + 5))


def _end(group: int, how: signal.Signals) -> None:
    """Send a signal to a compiler and to the programs that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, how)


def ours(path: Path) -> bool:
    """Whether only this user (or root), not even the user's group, can write to it; OSError where it is not there."""
    found = path.stat()
    mine = not hasattr(os, "getuid") or found.st_uid in (os.getuid(), 0)
    return mine and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
