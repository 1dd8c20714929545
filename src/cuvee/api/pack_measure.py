"""What each tensor of an expert becomes when it is packed: its form, its digests, and the bytes of its chunks.

Owns the choice of form and the passes over expert and base. Knows no output.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from cuvee.core.digests import TensorHasher
from cuvee.core.dtypes import BY_CODE
from cuvee.core.lazy import numpy
from cuvee.core.names import printable
from cuvee.core.tensors import TensorMeta
from cuvee.errors import RunError, Where
from cuvee.formats.packed import Packed, chunk_hash, encode_chunks
from cuvee.formats.packed_codec import CHUNK, CONTEXTS, KINDS, TOKENS, coding, frequencies
from cuvee.formats.packed_native import codec
from cuvee.sources.bits import bits_of, ends_digest
from cuvee.sources.source import Source

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

OWN = 1 << 18  # elements from which on a tensor has frequencies of its own
HELD = 256 << 20  # bytes of bodies kept from measuring to writing; the rest is coded twice


@dataclass(slots=True)
class Measured:
    """What a look at a tensor found: its form, digests, counts of tokens, and later the sizes of its chunks."""

    packed: Packed
    key: str
    changed: int = 0
    shares: Array | None = None
    sizes: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    bodies: list[bytes] | None = None

    @property
    def head(self) -> bytes:
        return encode_chunks(self.shares, self.sizes, self.hashes)

    @property
    def meta(self) -> TensorMeta:
        """What the packed file holds."""
        if self.packed.form == "plain":
            return replace(self.packed.meta, name=self.key)
        return TensorMeta(self.key, BY_CODE["U8"], (len(self.head) + sum(self.sizes),))


def alike(tuned: Source, ground: Source, name: str) -> bool:
    return ground.tensors.get(name) == tuned.tensors[name]


def measure(tuned: Source, ground: Source) -> tuple[dict[str, Measured], dict[str, Array]]:
    """The form and the coded sizes of every tensor, and the common frequencies of each type."""
    found: dict[str, Measured] = {}
    counts: dict[str, Any] = {}
    for number, name in enumerate(tuned.tensors):
        found[name] = _look(tuned, ground, name, number, counts)
    common = {code: frequencies(table) for code, table in counts.items()}
    room = HELD
    for name, measured in found.items():
        if measured.packed.form == "coded":
            bodies = []
            for body in _bodies(tuned, ground, name, measured, common):
                measured.sizes.append(len(body))
                room -= len(body)
                bodies.append(body)
                if room < 0:
                    bodies = [b""]
            measured.bodies = bodies if room >= 0 else None
    return found, common


def _look(tuned: Source, ground: Source, name: str, number: int, counts: dict[str, Any]) -> Measured:
    """One pass over a tensor and its base: is it the same, what does it hash to, how often does each token stand."""
    meta, hasher = tuned.tensors[name], TensorHasher()
    common = alike(tuned, ground, name)
    kind = KINDS.get(meta.dtype.name) if common else None
    table = numpy.zeros((CONTEXTS, TOKENS), numpy.int64)
    hashes: list[bytes] = []
    changed = 0
    for start in range(0, meta.numel, CHUNK):
        stop = min(start + CHUNK, meta.numel)
        ours = bits_of(tuned, name, start, stop)
        hasher.update(ours.data)
        theirs = bits_of(ground, name, start, stop) if common else None
        moved = meta.numel if theirs is None else int(numpy.count_nonzero(ours != theirs))
        changed += moved
        if kind is not None and theirs is not None:
            hashes.append(chunk_hash(ours))
            if moved:
                table += codec().counted(theirs, ours, kind)
    form = "same" if common and not changed else "plain" if kind is None else "coded"
    ends = ends_digest(tuned, name) if form == "same" else "0" * 16
    packed = Packed(meta, form, hasher.hexdigest(), ends)  # type: ignore[arg-type]
    measured = Measured(packed, f"{form}.{number}", min(changed, meta.numel), hashes=hashes)
    if form == "coded" and meta.numel >= OWN:
        measured.shares = frequencies(table)
    elif form == "coded":
        code = meta.dtype.code
        counts[code] = counts.get(code, 0) + table
    return measured


def _bodies(
    tuned: Source, ground: Source, name: str, measured: Measured, common: dict[str, Array]
) -> Iterator[bytes]:
    """The bodies of a coded tensor's chunks."""
    meta = measured.packed.meta
    shares = common[meta.dtype.code] if measured.shares is None else measured.shares
    table, kind = coding(shares), KINDS[meta.dtype.name]
    for number, start in enumerate(range(0, meta.numel, CHUNK)):
        stop = min(start + CHUNK, meta.numel)
        ours, theirs = bits_of(tuned, name, start, stop), bits_of(ground, name, start, stop)
        if chunk_hash(ours) != measured.hashes[number]:
            raise RunError(
                "CV-E072", f"`{printable(name)}` changed while it was packed", where=Where(tensor=name)
            )
        if numpy.array_equal(ours, theirs):
            yield b""
        else:
            body = codec().encode(theirs, ours, kind, table, ours.nbytes - 1)
            yield ours.tobytes() if body is None else body


def again(
    tuned: Source, ground: Source, name: str, one: Measured, common: dict[str, Array]
) -> Iterator[bytes]:
    yield one.head
    yield from _bodies(tuned, ground, name, one, common)


def plain(tuned: Source, name: str) -> Iterator[bytes]:
    for start in range(0, tuned.tensors[name].numel, CHUNK):
        yield bits_of(tuned, name, start, min(start + CHUNK, tuned.tensors[name].numel)).tobytes()
