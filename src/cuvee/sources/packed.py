"""Packed experts: a base, and what leads from it to the expert, bit for bit, one chunk at a time.

Owns finding the base, and that it is the one that the expert was packed against: every chunk that is decoded is hashed.
The forms are in `formats.packed`. Must not write.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.core.lazy import numpy, torch
from cuvee.core.limits import Limits
from cuvee.core.names import printable
from cuvee.core.sampling import Span
from cuvee.core.tensors import Decoded, Extent, Stored, TensorMeta
from cuvee.errors import CuveeError, SourceError, Where
from cuvee.formats.packed import (
    TABLE,
    Chunks,
    Packed,
    Table,
    chunk_hash,
    parse_chunks,
    parse_shares,
    parse_table,
)
from cuvee.formats.packed_codec import CHUNK, KINDS, decoding
from cuvee.formats.packed_native import PADDING, codec
from cuvee.formats.refusals import corrupt
from cuvee.sources.bits import bits_of, ends_digest
from cuvee.sources.folder import FolderSource
from cuvee.sources.reference import Reference, parse_reference
from cuvee.sources.source import Source, bounded, meta_of, unfetched, weight_files

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    from cuvee.sources.remote_file import RemoteFile

    Array = npt.NDArray[Any]

_KEPT = 16  # decoded chunks
_TABLES = 64  # decoding tables, of 256 KiB each


class PackedSource:
    """The expert, as if it lay there whole; reading decodes."""

    def __init__(self, stored: FolderSource, table: Table, base: Source) -> None:
        self.label = stored.label
        self.config = stored.config
        self.notes = stored.notes + base.notes
        self.tensors: Mapping[str, TensorMeta] = {name: p.meta for name, p in table.tensors.items()}
        self._stored = stored
        self._table = table
        self._base = base
        self._keys = {name: f"{p.form}.{number}" for number, (name, p) in enumerate(table.tensors.items())}
        self._path = next(iter(stored.weight_files()))
        self._lock = threading.Lock()
        self._chunks: dict[str, Chunks] = {}
        self._tables: OrderedDict[str, Array] = OrderedDict()
        self._decoded: OrderedDict[tuple[str, int], Array] = OrderedDict()
        self._proved: set[str] = set()

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Elements [start, stop), to the bit those of the expert that was packed."""
        meta = meta_of(self.tensors, name, self.label)
        start, stop = bounded(meta, start, stop)
        form = self._table.tensors[name].form
        if form == "plain":
            return self._stored.read(self._keys[name], start, stop)
        if form == "same":
            self._prove(name)
            return self._base.read(name, start, stop)
        found = numpy.empty(stop - start, f"<u{meta.dtype.size}")
        if stop > start:
            self._into(name, found.data, start)
        return torch.from_numpy(found).view(meta.dtype.torch)

    def key(self, name: str) -> str:
        """What the tensor is called in the packed file."""
        return self._keys[name]

    def bits(self, name: str, start: int, stop: int) -> Array:
        """Elements [start, stop) of a coded tensor as unsigned integers; fresh memory."""
        size = self.tensors[name].dtype.size
        out = numpy.empty(stop - start, f"<u{size}")
        for first, values in self._decode(name, start // CHUNK, -(-stop // CHUNK) if stop > start else 0):
            begin, end = max(start, first), min(stop, first + len(values))
            out[begin - start : end - start] = values[begin - first : end - first]
        return out

    def decoded(self, name: str) -> Decoded | None:
        """How a coded tensor is decoded into given memory; None for others, which lie in a file."""
        packed = self._table.tensors.get(name)
        if packed is None or packed.form != "coded":
            return None
        return Decoded(packed.meta.nbytes, lambda view, first: self._into(name, view, first))

    def _into(self, name: str, view: memoryview, start: int) -> None:
        """Decode the elements from `start` on; whole chunks straight to where they go."""
        meta = self.tensors[name]
        out = numpy.frombuffer(view, f"<u{meta.dtype.size}")
        stop = start + len(out)
        first, last = -(-start // CHUNK), stop // CHUNK if stop < meta.numel else -(-stop // CHUNK)
        if first >= last:
            out[:] = self.bits(name, start, stop)
            return
        begin, end = first * CHUNK, min(last * CHUNK, stop)
        out[: begin - start] = self.bits(name, start, begin)
        out[end - start :] = self.bits(name, end, stop)
        self._chunks_into(name, first, last, out[begin - start : end - start])

    def _chunks_into(self, name: str, first: int, last: int, out: Array) -> None:
        """Chunks [first, last), their bodies and the base's elements each read at once."""
        chunks, kind = self._index(name), KINDS[self.tensors[name].dtype.name]
        begin, (at, nbytes) = chunks.span(first)[0], chunks.span(last - 1)
        held = numpy.zeros(at + nbytes - begin + PADDING, numpy.uint8)
        held[: len(held) - PADDING] = bits_of(self._stored, self._keys[name], begin, at + nbytes)
        bases = bits_of(self._base, name, first * CHUNK, first * CHUNK + len(out))
        coded = []
        for number in range(first, last):
            at, nbytes = chunks.span(number)
            part = slice((number - first) * CHUNK, (number - first + 1) * CHUNK)
            row, base, body = out[part], bases[part], held[at - begin :]
            if nbytes == row.nbytes:
                row[:] = body[:nbytes].view(row.dtype)
            elif nbytes:
                coded.append((body, nbytes, base, row))
            else:
                row[:] = base
        try:
            if coded:
                codec().decode_into(coded, kind, self._slots(name, chunks))
        except ValueError:
            raise self._other(name) from None
        for number in range(first, last):
            row = out[(number - first) * CHUNK : (number - first + 1) * CHUNK]
            if chunk_hash(row) != chunks.hash(number):
                raise self._other(name)

    def _decode(self, name: str, first: int, last: int) -> list[tuple[int, Array]]:
        """Chunks [first, last): the first element of each, and its elements."""
        if first >= last:
            return []
        packed, chunks = self._table.tensors[name], self._index(name)
        with self._lock:
            kept = {c: self._decoded[name, c] for c in range(first, last) if (name, c) in self._decoded}
        groups: dict[int, list[tuple[int, bytes]]] = {}
        for number in (c for c in range(first, last) if c not in kept):
            offset, nbytes = chunks.span(number)
            body = self._bytes(name, offset, nbytes)
            groups.setdefault(min(CHUNK, packed.meta.numel - number * CHUNK), []).append((number, body))
        for count, parts in groups.items():
            kept |= self._group(name, chunks, count, parts)
        with self._lock:
            for number in list(kept)[-_KEPT:]:
                self._decoded[name, number] = kept[number]
                self._decoded.move_to_end((name, number))
            while len(self._decoded) > _KEPT:
                self._decoded.popitem(last=False)
        return [(number * CHUNK, kept[number]) for number in sorted(kept)]

    def _group(
        self, name: str, chunks: Chunks, count: int, parts: list[tuple[int, bytes]]
    ) -> dict[int, Array]:
        """Chunks of one length, decoded and compared with their hashes."""
        size = self.tensors[name].dtype.size
        found: dict[int, Array] = {}
        coded: list[tuple[int, bytes, Array]] = []
        for number, body in parts:
            if len(body) == count * size:
                found[number] = numpy.frombuffer(body, f"<u{size}")
                continue
            base = bits_of(self._base, name, number * CHUNK, number * CHUNK + count)
            if body:
                coded.append((number, body, base))
            else:
                found[number] = base
        if coded:
            bases = numpy.stack([base for _, _, base in coded])
            kind = KINDS[self.tensors[name].dtype.name]
            try:
                rows = codec().decode([b for _, b, _ in coded], bases, kind, self._slots(name, chunks))
            except ValueError:
                raise self._other(name) from None
            found |= {number: row for (number, _, _), row in zip(coded, rows, strict=True)}
        for number, values in found.items():
            if chunk_hash(values) != chunks.hash(number):
                raise self._other(name)
        return found

    def _index(self, name: str) -> Chunks:
        with self._lock:
            chunks = self._chunks.get(name)
        if chunks is None:
            nbytes = self._stored.tensors[self._keys[name]].nbytes
            packed = self._table.tensors[name]
            chunks = parse_chunks(lambda at, count: self._bytes(name, at, count), nbytes, packed, self._path)
            with self._lock:
                self._chunks[name] = chunks
        return chunks

    def _slots(self, name: str, chunks: Chunks) -> Array:
        """The decoding table of a tensor: of its own frequencies, or of those of its type."""
        code = self.tensors[name].dtype.code
        key = f"shares.{code}" if chunks.shares is None else name
        with self._lock:
            table = self._tables.get(key)
            if table is not None:
                self._tables.move_to_end(key)
                return table
        table = decoding(self._common(key, name) if chunks.shares is None else chunks.shares)
        with self._lock:
            self._tables[key] = table
            while len(self._tables) > _TABLES:
                self._tables.popitem(last=False)
        return table

    def _common(self, key: str, name: str) -> Array:
        """The frequencies that tensors of a type share."""
        held = self._stored.tensors.get(key)
        if held is None:
            message = f"the common frequencies `{key}` are missing"
            raise corrupt("CV-S203", self._path, message, tensor=name)
        return parse_shares(bits_of(self._stored, key, 0, held.nbytes).tobytes(), self._path, key)

    def _bytes(self, name: str, offset: int, count: int) -> bytes:
        return bits_of(self._stored, self._keys[name], offset, offset + count).tobytes()

    def _prove(self, name: str) -> None:
        """Look at the ends of the base's tensor, once, before they pass for the expert's."""
        if name not in self._proved:
            if ends_digest(self._base, name) != self._table.tensors[name].ends:
                raise self._other(name)
            self._proved.add(name)

    def _other(self, name: str) -> SourceError:
        return SourceError(
            "CV-S201",
            f"`{printable(name)}` does not decode: the base is not the one it was packed against, or the file is "
            "damaged",
            where=Where(source=self.label, tensor=printable(name), file=printable(str(self._path), 1000)),
            hint="restore the base as it was, or pack the expert again",
        )

    def extent(self, name: str) -> Extent | None:
        """The base's bytes where the tensor is the same, the stored ones where it is plain; None where it is coded."""
        meta_of(self.tensors, name, self.label)
        form = self._table.tensors[name].form
        if form == "same":
            self._prove(name)
            return self._base.extent(name)
        return self._stored.extent(self._keys[name]) if form == "plain" else None

    def stored(self, name: str) -> Stored:
        """The bytes a tensor takes in the packed file."""
        form = self._table.tensors[name].form
        nbytes = 0 if form == "same" else self._stored.tensors[self._keys[name]].nbytes
        return Stored(f"packed ({form})", nbytes)

    def file(self, name: str) -> bytes | None:
        """A side file of the expert."""
        return None if name == TABLE else self._stored.file(name)

    def files(self) -> list[str]:
        """Names of side files."""
        return [name for name in self._stored.files() if name != TABLE]

    def weight_files(self) -> Mapping[Path, tuple[Span, ...]]:
        """The packed file and the base's."""
        return {**weight_files(self._base), **self._stored.weight_files()}

    def unfetched(self) -> list[RemoteFile]:
        """Files of which only the header is here."""
        return [*unfetched(self._base), *unfetched(self._stored)]

    def identity(self) -> dict[str, Any]:
        """That of the packed folder, and its base."""
        return {**self._stored.identity(), "kind": "packed", "base": self._base.identity()}

    def close(self) -> None:
        """Close both."""
        self._stored.close()
        self._base.close()


def base_of(stored: FolderSource, folder: Path, limits: Limits) -> tuple[Table, Reference] | None:
    """The table of a packed expert and the reference of its base; None when the folder is something else."""
    data = stored.file(TABLE)
    if data is None:
        return None
    path = folder / TABLE
    table = parse_table(data, path, limits)
    reference = parse_reference(table.base, folder)
    if reference.adapters or (reference.kind == "path" and Path(reference.name).is_absolute()):
        raise corrupt("CV-S202", path, "the base of a packed expert must be a relative path or on the hub")
    return table, reference


def unpacked(stored: FolderSource, table: Table, base: Source, folder: Path) -> PackedSource:
    """The expert on its base; SourceError when the base lacks what it needs."""
    if TABLE in base.files():
        raise corrupt("CV-S202", folder / TABLE, "the base of a packed expert is packed itself")
    source = PackedSource(stored, table, base)
    for name, packed in table.tensors.items():
        _check(source, stored, packed, base.tensors.get(name), folder)
    return source


def _check(
    source: PackedSource, stored: FolderSource, packed: Packed, there: TensorMeta | None, folder: Path
) -> None:
    """The base has the tensor where it is needed, and the file holds it in its form."""
    name, meta = packed.meta.name, packed.meta
    if packed.form != "plain" and there != meta:
        found = "has none of that name" if there is None else f"has {there.dtype} {list(there.shape)}"
        raise SourceError(
            "CV-S201",
            f"`{printable(name)}` was packed against {meta.dtype} {list(meta.shape)}, and the base {found}",
            where=Where(source=source.label, tensor=printable(name)),
            hint="restore the base as it was, or pack the expert again",
        )
    held = stored.tensors.get(source.key(name))
    if held is None:
        right = packed.form == "same"
    elif packed.form == "plain":
        right = (held.dtype, held.shape) == (meta.dtype, meta.shape)
    else:
        right = packed.form == "coded" and held.dtype.code == "U8" and meta.dtype.name in KINDS
    if not right:
        message = "the packed file does not hold what its table lists"
        raise corrupt("CV-S203", folder / TABLE, message, tensor=name)


def missing_base(error: CuveeError, label: str, base: str) -> SourceError:
    """The base cannot be opened; say whose it is."""
    return SourceError(
        "CV-S200",
        f"`{printable(label)}` is packed against `{printable(base)}`: {error.diagnostics[0].message}",
        where=Where(source=label),
        hint="put the base where it was when the expert was packed (the path is relative to the packed folder)",
    )
