"""A safetensors file on the hub of which only the header is here: enough to plan with, fetched whole when it is read.

Owns the moment of fetching. Must not know how files are fetched, nor the hub.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cuvee.core.limits import Limits
from cuvee.core.names import printable
from cuvee.core.tensors import Extent, TensorMeta
from cuvee.errors import CorruptFile, Where
from cuvee.formats.safetensors import SafetensorsFile, open_safetensors, read_header

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where a file will be once it is fetched, its size, how its first bytes are read, and how all of it is fetched."""

    path: Path
    size: int
    read: Callable[[int, int], bytes]
    fetch: Callable[[], None]


class RemoteFile:
    """See `TensorFile`; `fetch` brings the whole file here, and so does the first read."""

    format = "safetensors"

    def __init__(self, place: Whereabouts, limits: Limits) -> None:
        header, self._start = read_header(place.read, place.size, place.path, limits)
        self.path = place.path
        self.size = place.size
        self.tensors: Mapping[str, TensorMeta] = header.tensors
        self.metadata: Mapping[str, str] = header.metadata
        self.encodings: Mapping[str, str] = {}
        self._begins = header.begins
        self._place, self._limits = place, limits
        self._file: SafetensorsFile | None = None
        self._lock = threading.Lock()

    @property
    def here(self) -> bool:
        """Whether the whole file is on this machine."""
        return self.path.is_file()

    def fetch(self) -> None:
        """Bring the whole file here; CorruptFile when it does not begin with the header that was planned with."""
        with self._lock:
            if self._file is not None:
                return
            if not self.here:
                self._place.fetch()
            found = open_safetensors(self.path, self._limits)
            if found.tensors != self.tensors or found.extents() != self.extents():
                found.close()
                raise CorruptFile(
                    "CV-S111",
                    f"`{printable(self.path.name)}` is not the file whose header was read before",
                    where=Where(file=str(self.path)),
                    hint="plan again; the cache may hold a damaged file",
                )
            self._file = found

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Elements [start, stop) of a tensor, 1-D, in its stored dtype."""
        self.fetch()
        assert self._file is not None
        return self._file.read(name, start, stop)

    def extent(self, name: str) -> Extent:
        """Where the tensor's bytes will lie once the file is here."""
        return Extent(self.path, self._start + self._begins[name], self.tensors[name].nbytes)

    def extents(self) -> list[Extent]:
        """Of every tensor, in order."""
        return [self.extent(name) for name in self.tensors]

    def close(self) -> None:
        """Close the file, if it was fetched; it may be read again."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None
