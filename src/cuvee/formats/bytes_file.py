"""One regular file opened for positional reads: bytes, buffers and tensors at an offset, from any thread.

Never maps a file into memory (a file that shrinks would kill the process). Knows nothing about formats.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cuvee.core.dtypes import DType
from cuvee.core.lazy import torch
from cuvee.core.tensors import TensorMeta
from cuvee.formats.refusals import corrupt, unusable

if TYPE_CHECKING:
    from torch import Tensor

# Windows has neither of the two; a named pipe must not block the opening on POSIX.
_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)


class Bytes(Protocol):
    """Bytes that can be read anywhere, as `ByteFile` reads those of a file."""

    @property
    def path(self) -> Path: ...

    def tensor_at(self, offset: int, numel: int, dtype: DType, name: str) -> Tensor: ...

    def close(self) -> None: ...


class ByteFile:
    """An open file descriptor with its size at opening; reads are positional and thread-safe."""

    __slots__ = ("_descriptor", "path", "size")

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1
        try:
            self._descriptor = os.open(path, _FLAGS)
            status = os.fstat(self._descriptor)
        except (OSError, ValueError) as error:
            self.close()
            reason = getattr(error, "strerror", None) or "the name cannot be a path"
            raise unusable("CV-S050", path, f"the file cannot be opened: {reason.lower()}") from None
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise unusable("CV-S050", path, "this is not a regular file")
        self.size = status.st_size

    def bytes_at(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset`; CorruptFile when the file ends before."""
        buffer = bytearray(count)
        self.fill(memoryview(buffer), offset)
        return bytes(buffer)

    def fill(self, view: memoryview, offset: int, tensor: str | None = None) -> None:
        """Fill a writable byte buffer from `offset`."""
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self._descriptor, [view[done:]], offset + done)
            except OSError as error:
                reason = (error.strerror or "unknown error").lower()
                raise unusable("CV-S050", self.path, f"reading failed: {reason}", tensor=tensor) from error
            if count == 0:
                raise corrupt(
                    "CV-S052",
                    self.path,
                    f"the file ends at byte {offset + done:,}, expected {offset + len(view):,} bytes",
                    tensor=tensor,
                    hint="the file was cut short or changed while it was read; fetch it again",
                )
            done += count

    def tensor_at(self, offset: int, numel: int, dtype: DType, name: str) -> Tensor:
        """A fresh 1-D tensor of `numel` elements stored row by row, little-endian, from `offset`."""
        return filled(self.fill, offset, numel, dtype, name)

    def read_exactly(self) -> None:
        """Tell the system not to read ahead of what is asked for; advice, where there is any."""
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):
                os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)

    def close(self) -> None:
        """Give the descriptor back; closing twice is fine."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()


def filled(
    fill: Callable[[memoryview, int, str], None], offset: int, numel: int, dtype: DType, name: str
) -> Tensor:
    """A fresh 1-D tensor whose bytes `fill(buffer, offset, name)` reads."""
    out = torch.empty(numel, dtype=dtype.torch)
    if numel:
        raw = out.view(torch.uint8)
        fill(raw.numpy().data, offset, name)
        if dtype.family == "bool":
            raw.ne_(0)  # any byte but 0 and 1 in a torch bool is undefined behaviour
    return out


def element_range(meta: TensorMeta, start: int, stop: int | None) -> tuple[int, int]:
    """The asked-for elements as explicit bounds; ValueError (the caller's bug) when they are not inside."""
    end = meta.numel if stop is None else stop
    if not 0 <= start <= end <= meta.numel:
        raise ValueError(f"elements {start}:{stop} of a tensor with {meta.numel}")
    return start, end
