"""The tensors of one checkpoint that lies in one or more weight files.

Owns the table from names (after prefix stripping) to files, and their identity. Must not know folders,
configs or what the tensors mean.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from cuvee.core.limits import Limits
from cuvee.core.names import printable
from cuvee.core.sampling import Span
from cuvee.core.tensors import Extent, Stored, TensorMeta
from cuvee.errors import CorruptFile, Where
from cuvee.formats.file import TensorFile, open_file
from cuvee.formats.gguf_types import packed_bytes
from cuvee.sources.file_pool import FilePool
from cuvee.sources.prefixes import strip_prefixes
from cuvee.sources.remote_file import RemoteFile
from cuvee.sources.remote_ranges import RangedFile
from cuvee.sources.source import bounded, meta_of

if TYPE_CHECKING:
    from torch import Tensor


class StoredTensors:
    """Tensors by name, from files handed over open; all but a few are closed until needed."""

    def __init__(self, files: Sequence[TensorFile], label: str, limits: Limits, *, root: Path) -> None:
        self.label = label
        self.root = root
        self._pool = FilePool(partial(self._opened, limits))
        self._remote = {f.path: f for f in files if isinstance(f, (RemoteFile, RangedFile))}
        self._sizes: dict[Path, int] = {}
        self._homes: dict[str, Path] = {}
        self._digests: dict[Path, str] = {}
        self._spans: dict[Path, tuple[Span, ...]] = {}
        self._packed: dict[str, Stored] = {}
        self._extents: dict[str, Extent | None] = {}  # of tensors that are on this machine
        stored: dict[str, TensorMeta] = {}
        try:
            for file in files:
                self._take(file, stored)
            self._names, self.notes = strip_prefixes(stored, label)
        except BaseException:
            for file in files:
                file.close()
            raise
        for file in files:
            self._pool.adopt(file)
        self.tensors: Mapping[str, TensorMeta] = {
            name: stored[old] if name == old else replace(stored[old], name=name)
            for name, old in self._names.items()
        }

    def _opened(self, limits: Limits, path: Path) -> TensorFile:
        return self._remote.get(path) or open_file(path, limits)

    def unfetched(self) -> list[RemoteFile]:
        """Files of which only the header is here."""
        return [f for f in self._remote.values() if isinstance(f, RemoteFile) and not f.here]

    def _take(self, file: TensorFile, stored: dict[str, TensorMeta]) -> None:
        for name, meta in file.tensors.items():
            if name in stored:
                raise CorruptFile(
                    "CV-S046",
                    f"`{printable(name)}` is in two files: `{self._homes[name].name}` and `{file.path.name}`",
                    where=Where(source=self.label, tensor=printable(name)),
                    hint="remove the files that do not belong to this checkpoint",
                )
            stored[name] = meta
            self._homes[name] = file.path
            if name in file.encodings:
                self._packed[name] = Stored(
                    file.encodings[name], packed_bytes(file.encodings[name], meta.numel)
                )
        self._digests[file.path] = _header_digest(file)
        self._sizes[file.path] = _size(file)
        if isinstance(file, RangedFile):
            return  # there is no such file on this machine
        extents = {name: file.extent(name) for name in file.tensors}
        self._spans[file.path] = tuple((e.offset, e.nbytes) for e in extents.values() if e is not None)
        if not isinstance(file, RemoteFile):
            self._extents |= extents

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Elements [start, stop) of a tensor, 1-D."""
        start, stop = bounded(meta_of(self.tensors, name, self.label), start, stop)
        stored = self._names[name]
        with self._pool.using(self._homes[stored]) as file:
            return file.read(stored, start, stop)

    def extent(self, name: str) -> Extent | None:
        """Where the bytes of a tensor lie, if they lie plainly."""
        meta_of(self.tensors, name, self.label)
        stored = self._names[name]
        if stored in self._extents:
            return self._extents[stored]
        with self._pool.using(self._homes[stored]) as file:
            if isinstance(file, RangedFile):
                return None
            if isinstance(file, RemoteFile):
                file.fetch()  # whoever asks is about to read there
            return file.extent(stored)

    def stored(self, name: str) -> Stored:
        """How a tensor lies in its file."""
        meta = meta_of(self.tensors, name, self.label)
        return self._packed.get(self._names[name]) or Stored(meta.dtype.name, meta.nbytes)

    def weight_files(self) -> Mapping[Path, tuple[Span, ...]]:
        """Every file, and where tensors lie in it plainly."""
        return self._spans

    def identity(self) -> list[dict[str, Any]]:
        """Name, size and header digest of every file, in order of names."""
        return sorted(
            (
                {
                    "name": path.relative_to(self.root).as_posix(),
                    "size": self._sizes[path],
                    "digest": digest,
                }
                for path, digest in self._digests.items()
            ),
            key=lambda entry: str(entry["name"]),
        )

    def close(self) -> None:
        """Close all files."""
        self._pool.close()


def _size(file: TensorFile) -> int:
    return file.size if isinstance(file, (RemoteFile, RangedFile)) else file.path.stat().st_size


def _header_digest(file: TensorFile) -> str:
    """BLAKE3 of what the file says it holds, and where: the same for the same header in any format."""
    table = []
    for name, meta in file.tensors.items():
        extent = file.extent(name)
        encoding = file.encodings.get(name)
        table.append([name, meta.dtype.code, list(meta.shape), extent.offset if extent else None, encoding])
    text = json.dumps(table, ensure_ascii=True, separators=(",", ":"))
    return "header-blake3:" + blake3(text.encode()).hexdigest()
