"""A weight file that is read where it lies, in ranges: few large requests, kept for a while, some of them ahead.

Pages are 1 MiB, so neighbouring small tensors share a request; a request has at most 8 MiB and never goes more than
a page beyond the tensor that was asked for. All files of the process share one bounded memory. Must not know stores.
"""

from __future__ import annotations

import itertools
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakSet

from cuvee.core.askers import Askers, answer
from cuvee.core.dtypes import DType
from cuvee.core.limits import MIB, Limits
from cuvee.core.tensors import Extent, TensorMeta
from cuvee.formats.bytes_file import element_range, filled
from cuvee.formats.refusals import corrupt
from cuvee.formats.safetensors import SafetensorsFile, read_header

if TYPE_CHECKING:
    from torch import Tensor

PAGE = MIB
_HELD = 128 * MIB  # of all files together
_MOST = 8  # pages of one request
_AT_ONCE = 16  # requests in flight
_NUMBERS = itertools.count()  # of files and of runs: an object's address may be another one's later

Fetch = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class _Run:
    """Pages [first, last) of a file, asked for at once."""

    number: int
    file: int
    first: int
    last: int
    future: Future[bytes]


class RangedBytes:
    """Positional reads of a file that `fetch(offset, count)` gives in pieces; as `ByteFile`, from any thread."""

    def __init__(self, path: Path, size: int, fetch: Fetch) -> None:
        self.path = path
        self.size = size
        self.number = next(_NUMBERS)
        self._fetch = fetch
        self._tensors: list[tuple[int, int]] | None = None
        _MEMORY.join(self)

    def expect(self, extents: Sequence[Extent]) -> None:
        """Say where tensors lie, so that what is read ahead ends where they do."""
        self._tensors = sorted((extent.offset, extent.offset + extent.nbytes) for extent in extents)

    def bytes_at(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset`; CorruptFile when the file ends before."""
        buffer = bytearray(count)
        self.fill(memoryview(buffer), offset)
        return bytes(buffer)

    def fill(self, view: memoryview, offset: int, tensor: str | None = None) -> None:
        """Fill a writable byte buffer from `offset`."""
        end = offset + len(view)
        if end > self.size:
            raise corrupt("CV-S052", self.path, f"the file ends at byte {self.size:,}", tensor=tensor)
        if self._tensors is None:  # headers are read once, and by few requests
            view[:] = self._fetch(offset, len(view))
            return
        step = max(PAGE, _HELD // 2)  # a large read must not fill the memory of all files
        for first in range(offset, end, step):
            last = min(end, first + step)
            for run in _MEMORY.runs(self, first, last):
                data, begin = answer(run.future), run.first * PAGE
                low, high = max(first, begin), min(last, begin + len(data))
                view[low - offset : high - offset] = memoryview(data)[low - begin : high - begin]

    def tensor_at(self, offset: int, numel: int, dtype: DType, name: str) -> Tensor:
        """A fresh 1-D tensor of `numel` elements from `offset`."""
        return filled(self.fill, offset, numel, dtype, name)

    def close(self) -> None:
        """Forget what was read."""
        _MEMORY.drop(self)

    def span(self, offset: int) -> tuple[int, int]:
        """The pages [first, last) of the tensor at this byte; those of all the file where it is not known."""
        tensors = self._tensors or []
        place = bisect_right(tensors, (offset, self.size + 1)) - 1
        low, high = tensors[place] if place >= 0 and offset < tensors[place][1] else (0, self.size)
        return low // PAGE, -(-high // PAGE)

    def load(self, first: int, last: int) -> bytes:
        """The pages [first, last), asked for now."""
        end = min(last * PAGE, self.size)
        return self._fetch(first * PAGE, end - first * PAGE)


class _Memory:
    """The pages of every ranged file of the process, least recently used first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: WeakSet[RangedBytes] = WeakSet()
        self._runs: OrderedDict[int, _Run] = OrderedDict()
        self._pages: dict[tuple[int, int], _Run] = {}
        self._held = 0
        self._pool = Askers(_AT_ONCE, "cuvee-ranges")

    def join(self, file: RangedBytes) -> None:
        """Count one more file, whose share of the memory limits the size of requests."""
        with self._lock:
            self._files.add(file)

    def runs(self, file: RangedBytes, offset: int, end: int) -> list[_Run]:
        """Runs of pages that cover the bytes, the next ones asked for as well."""
        asked: list[_Run] = []
        with self._lock:
            size = max(1, min(_MOST, _HELD // PAGE // (2 * max(1, len(self._files)))))
            low, high = file.span(offset)
            wanted = range(offset // PAGE, -(-end // PAGE))
            for group in range(wanted[0] // size, wanted[-1] // size + 2):
                beyond = group > wanted[-1] // size
                first, last = max(group * size, low), min((group + 1) * size, high)
                if not beyond:  # what was asked for may be in several tensors
                    first, last = min(first, max(group * size, wanted[0])), max(last, 0)
                    last = max(last, min((group + 1) * size, wanted[-1] + 1))
                asked += self._ask(file, first, last)
            found = {id(run): run for run in (self._page(file, page) for page in wanted)}
            self._shrink()
        # Without the lock: one that has failed already is forgotten here and now. By number: a run in its own callback
        # would never be freed.
        for run in asked:
            run.future.add_done_callback(partial(self._failed, run.number))
        return list(found.values())

    def drop(self, file: RangedBytes) -> None:
        """Forget the pages of a file."""
        with self._lock:
            for run in [run for run in self._runs.values() if run.file == file.number]:
                self._forget(run)

    def _page(self, file: RangedBytes, page: int) -> _Run:
        run = self._pages[file.number, page]
        self._runs.move_to_end(run.number)
        return run

    def _ask(self, file: RangedBytes, first: int, last: int) -> list[_Run]:
        """Ask for what is missing of the pages, in one request: a page in the middle that is there comes again."""
        missing = [page for page in range(first, last) if (file.number, page) not in self._pages]
        if not missing:
            return []
        begin, end = missing[0], missing[-1] + 1
        run = _Run(next(_NUMBERS), file.number, begin, end, self._pool.submit(file.load, begin, end))
        self._runs[run.number] = run
        self._held += (end - begin) * PAGE
        for page in range(begin, end):
            self._pages[file.number, page] = run
        return [run]

    def _failed(self, number: int, done: Future[bytes]) -> None:
        if done.exception() is not None:
            with self._lock:
                if number in self._runs:
                    self._forget(self._runs[number])

    def _forget(self, run: _Run) -> None:
        del self._runs[run.number]
        self._held -= (run.last - run.first) * PAGE
        for page in range(run.first, run.last):
            if self._pages.get((run.file, page)) is run:
                del self._pages[run.file, page]

    def _shrink(self) -> None:
        while self._held > _HELD and len(self._runs) > 1:
            self._forget(next(iter(self._runs.values())))


_MEMORY = _Memory()


class RangedFile:
    """A safetensors file read in ranges; see `TensorFile`. Its bytes never lie on this machine as a file."""

    format = "safetensors"

    def __init__(self, raw: RangedBytes, limits: Limits) -> None:
        header, start = read_header(raw.bytes_at, raw.size, raw.path, limits)
        self._file = SafetensorsFile(raw, header, start)
        self.path = raw.path
        self.size = raw.size
        self.tensors: Mapping[str, TensorMeta] = header.tensors
        self.metadata: Mapping[str, str] = header.metadata
        self.encodings: Mapping[str, str] = {}
        raw.expect(self._file.extents())

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Elements [start, stop) of a tensor, 1-D, in its stored dtype."""
        element_range(self.tensors[name], start, stop)
        return self._file.read(name, start, stop)

    def extent(self, name: str) -> Extent:
        """Where the tensor's bytes lie in the file on the server (headers of the same file look alike anywhere)."""
        return self._file.extent(name)

    def close(self) -> None:
        """Forget what was read; it may be read again."""
        self._file.close()
