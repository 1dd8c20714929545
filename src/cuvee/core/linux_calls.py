"""Calls of Linux that Python does not offer: asking for early writing back, renaming with conditions.

Owns their signatures; where the system does not have one, that is said, and callers go on without. Only `core.disk`
calls these.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable
from pathlib import Path

NO_SUCH_CALL = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
_HERE = -100  # AT_FDCWD


@functools.cache
def sync_file_range_call() -> Callable[..., int] | None:
    """`sync_file_range(handle, first, count, flags)`; None where there is none."""
    import ctypes

    try:
        call = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError, TypeError):
        return None
    call.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    found: Callable[..., int] = call
    return found


def begin_writing(number: int, offset: int, count: int) -> None:
    """Have the device begin with written bytes of a file, so that a later sync is short.

    This promises nothing, and failing is no failure: errors of the device are reported by the sync.
    """
    if (call := sync_file_range_call()) is not None:
        call(number, offset, count, 2)  # SYNC_FILE_RANGE_WRITE


@functools.cache
def renameat2_call() -> Callable[..., int] | None:
    """`renameat2` as C knows it; None where there is none."""
    import ctypes

    try:
        call: Callable[..., int] = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return None
    return call


def renameat2(old: Path, new: Path, flag: int) -> bool:
    """Linux's rename with a flag; False when this system or file system does not have it."""
    import ctypes

    call = renameat2_call()
    if call is None:
        return False
    if call(_HERE, os.fsencode(old), _HERE, os.fsencode(new), ctypes.c_uint(flag)) == 0:
        return True
    number = ctypes.get_errno()
    if number in NO_SUCH_CALL:
        return False
    raise OSError(number, os.strerror(number))


def forget_peak() -> None:
    """Let the kernel measure this process's peak of memory from now on; nothing where it does not offer that."""
    try:
        request = os.open("/proc/self/clear_refs", os.O_WRONLY)
    except OSError:
        return
    try:
        os.write(request, b"5")
    except OSError:
        pass  # a kernel that knows no such request
    finally:
        os.close(request)
