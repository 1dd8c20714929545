"""What a method's own process may not do: look where test items or finished scores lie, or search memory for them.

Owns the rules, as an audit hook of Python and as folders and a network that are not there. Knows nothing of methods.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cuvee.core import linux_namespaces
from cuvee.core.cache import folder as cache_folder
from cuvee.errors import LeakError
from cuvee.evaluate import phases

# folders of the cache that hold test items, or models being trained
_KEPT_DATA = ("packages", "data", "training")
_SEARCHES = {
    *(f"gc.{name}" for name in ("get_objects", "get_referrers", "get_referents")),
    *(f"ctypes.{name}" for name in ("string_at", "wstring_at", "PyObj_FromPtr")),
}
_PROGRAMS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn"}
_WHOLE = {"open", "os.rename"}  # lead into a folder by one that is above it
_BY_DESCRIPTOR = {"open", "os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.mkdir"}
_DESCRIPTORS = "/proc/self/fd"
_MEMORY = re.compile(r"/proc/\d+(/task/\d+)?/(mem|map_files)(/|$)")


def shut(hidden: Sequence[Path] = ()) -> None:
    """Shut this process off from the tracks' data in the cache and from the `hidden` folders and files, for good.

    Where the system grants namespaces, other programs find these empty too and have no network; else starting
    one is refused, as no rule would follow it. What is refused raises LeakError CV-B372, which ends the method's choice
    even where it is swallowed.
    """
    folders = [*(cache_folder() / "evaluate" / name for name in _KEPT_DATA), *hidden]
    places = [str(folder.resolve()) for folder in folders]
    _close(places)
    alone = linux_namespaces.available() and linux_namespaces.seclude([Path(place) for place in places])
    if not alone:
        _forbid_starting()
    _watch(places, _SEARCHES if alone else _SEARCHES | _PROGRAMS)


def _forbid_starting() -> None:
    """Shut the way to start a program that no audit event tells of, under both names that the library has for it."""
    import _posixsubprocess
    import subprocess

    def refused(*_: object) -> int:
        raise _refusal("a method started a program, which leads to test items")

    vars(_posixsubprocess)["fork_exec"] = refused
    vars(subprocess)["_fork_exec"] = refused


def _watch(places: Sequence[str], refused: set[str]) -> None:
    """An audit hook, which Python can never take away again.

    It holds on to the functions that it calls: those of a module can be replaced by a method.
    """
    own, check, refusal, real, decode, path_like = (
        threading.local(),
        _check,
        _refusal,
        os.path.realpath,
        os.fsdecode,
        os.PathLike,
    )
    join, beginnings = os.path.join, _beginnings
    shut_off, never = tuple(places), frozenset(refused)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in never:
            raise refusal(f"a method called `{event}`, which leads to test items")
        asks = event == "open" or (event.startswith("os.") and not event.endswith("env"))  # not os.putenv
        if not asks or getattr(own, "busy", False):
            return
        own.busy = True
        try:
            for given in arguments:
                if isinstance(given, (str, bytes, path_like)):
                    path = decode(given)
                    for start in beginnings(event, path):
                        check(event, real(join(start, path)), shut_off)
        finally:
            own.busy = False

    sys.addaudithook(hook)


# `listed` is held on to, as what `_watch` calls.
def _beginnings(event: str, path: str, listed: Callable[[str], list[str]] = os.listdir) -> list[str]:
    """The folders that a path may begin at: the working one, and every one that is open, as no event names it."""
    if path.startswith("/") or event not in _BY_DESCRIPTOR:
        return [""]
    found = [""]
    with suppress(OSError):
        found += [f"{_DESCRIPTORS}/{number}" for number in listed(_DESCRIPTORS)]
    return found


def _check(event: str, found: str, places: Sequence[str]) -> None:
    """LeakError for a place inside a shut folder, for a folder that leads there by descriptor, and for memory."""
    inside = any(f"{found}/".startswith(f"{place}/") for place in places)
    above = event in _WHOLE and any(f"{place}/".startswith(f"{found.rstrip('/')}/") for place in places)
    if inside or above or _MEMORY.match(found):
        raise _refusal(
            f"a method asked for `{Path(found).name or found}`, which leads to test items or scores"
        )


def _refusal(
    said: str, made: type[LeakError] = LeakError, noted: Callable[[LeakError], LeakError] = phases.refused
) -> LeakError:
    return noted(made("CV-B372", said))


def _close(places: Sequence[str]) -> None:
    """Close what the referee's process had open in these folders."""
    with suppress(OSError):  # a system without /proc
        for opened in list(Path("/proc/self/fd").iterdir()):
            with suppress(OSError):
                if any(f"{opened.readlink()}/".startswith(f"{place}/") for place in places):
                    os.close(int(opened.name))
