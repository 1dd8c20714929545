"""Shuts a process off from folders, the network and its parent's memory, where Linux lets an ordinary user do so.

Owns the calls and their order. Knows nothing of who is shut off from what; where the system refuses, that is said.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

_MOUNTS, _MESSAGES, _USERS, _NETWORK = 0x00020000, 0x08000000, 0x10000000, 0x40000000  # CLONE_NEW…
_READ_ONLY, _BIND, _RECURSIVE, _PRIVATE = 1, 0x1000, 0x4000, 1 << 18  # MS_…


@functools.cache
def available() -> bool:
    """Whether `seclude` works here; tried once, in a process that ends with the answer."""
    if not hasattr(os, "fork"):
        return False
    child = os.fork()
    if child == 0:
        done = False
        try:
            done = seclude([])
        finally:
            os._exit(0 if done else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def seclude(hidden: Sequence[Path]) -> bool:
    """From now on this process, and all it starts, finds these folders and files empty and has no network; whether it
    worked.

    It may no longer look into processes outside either, as it has a user namespace of its own. The second one keeps it
    from undoing the first: mounts that come from outside are locked. This process must have one thread.
    """
    unshare, mount = _call("unshare"), _call("mount")
    if unshare is None or mount is None:
        return False
    try:
        _enter(unshare, _USERS | _MOUNTS | _NETWORK | _MESSAGES)
        _done(mount(b"none", b"/", None, _RECURSIVE | _PRIVATE, None))
        for place in hidden:
            if place.is_dir():
                _done(mount(b"none", os.fsencode(place), b"tmpfs", _READ_ONLY, b"size=4k"))
            elif place.is_file():
                _done(mount(b"/dev/null", os.fsencode(place), None, _BIND, None))
        _enter(unshare, _USERS | _MOUNTS)
    except OSError:
        return False
    return True


def _enter(unshare: Callable[..., int], flags: int) -> None:
    """New namespaces in which this process is who it was."""
    user, group = os.geteuid(), os.getegid()
    _done(unshare(flags))
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        handle = os.open(f"/proc/self/{name}", os.O_WRONLY)
        try:
            os.write(handle, text.encode())
        finally:
            os.close(handle)


def _done(answer: int) -> None:
    import ctypes

    if answer != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _call(name: str) -> Callable[..., int] | None:
    """A call of the system as C knows it; None where there is none."""
    import ctypes

    try:
        found = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (OSError, AttributeError, TypeError):
        return None
    if name == "mount":
        found.argtypes = [ctypes.c_char_p] * 3 + [ctypes.c_ulong, ctypes.c_char_p]
    call: Callable[..., int] = found
    return call
