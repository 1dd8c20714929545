"""An expert written as what leads from its base to it: measured first, then laid out, then written, one commit.

Owns the choice of each tensor's form and the way to the file. The coder is `formats.packed_codec`, durability is the
business of `sinks`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cuvee
from cuvee.api.inputs import refuse_foreign, refuse_other, stamps_of
from cuvee.bundle.json_files import dump_json
from cuvee.bundle.manifest_form import Origin, build
from cuvee.core.digests import TensorHasher, bytes_digest, canonical_json
from cuvee.core.disk import REAL, Disk
from cuvee.core.dtypes import BY_CODE
from cuvee.core.lazy import numpy
from cuvee.core.names import printable
from cuvee.core.tensors import TensorMeta
from cuvee.errors import OutputBusy, RunError, SourceError, UsageError, Where
from cuvee.formats.packed import STEM, TABLE, Packed, Table, chunk_hash, encode_chunks, encode_shares
from cuvee.formats.packed_codec import CHUNK, CONTEXTS, KINDS, TOKENS, coding, frequencies
from cuvee.formats.packed_native import codec
from cuvee.sinks.folder import FolderSink
from cuvee.sinks.layout import Layout, plan_layout
from cuvee.sinks.sink import Session
from cuvee.sources.bits import bits_of, ends_digest
from cuvee.sources.open import open_source
from cuvee.sources.reference import parse_reference
from cuvee.sources.source import Source, unfetched, weight_files

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

OWN = 1 << 18  # elements from which on a tensor has frequencies of its own
HELD = 256 << 20  # bytes of bodies kept from measuring to writing; the rest is coded twice
_METADATA = {"format": "cuvee-packed"}


@dataclass(frozen=True, slots=True)
class PackedSize:
    """One tensor's elements, bytes as stored and as packed, changed elements, and its form."""

    name: str
    form: str
    numel: int
    stored: int
    packed: int
    changed: int


@dataclass(frozen=True, slots=True)
class PackReport:
    """What packing came to; `nbytes` is the whole weight file."""

    path: Path
    nbytes: int
    tensors: tuple[PackedSize, ...]

    @property
    def stored(self) -> int:
        """Bytes of the expert's tensors."""
        return sum(tensor.stored for tensor in self.tensors)

    @property
    def bits(self) -> float:
        """Bits of the packed file for each element."""
        return 8 * self.nbytes / max(1, sum(tensor.numel for tensor in self.tensors))

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        forms = {form: [t for t in self.tensors if t.form == form] for form in ("same", "plain", "coded")}
        return {
            "output": str(self.path),
            "bytes": self.nbytes,
            "stored_bytes": self.stored,
            "bits_per_element": self.bits,
            "elements": sum(t.numel for t in self.tensors),
            "changed": sum(t.changed for t in self.tensors),
            "forms": {form: len(found) for form, found in forms.items()},
            "tensors": [{key: getattr(t, key) for key in PackedSize.__slots__} for t in self.tensors],
        }


@dataclass(slots=True)
class _Measured:
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


def pack(
    expert: str,
    base: str,
    out: Path,
    *,
    anchor: Path | None = None,
    overwrite: bool = False,
    offline: bool = False,
    resume: bool = True,
    disk: Disk = REAL,
) -> PackReport:
    """Write `expert` into the folder `out` as what leads from `base` to it, bit for bit, all or nothing.

    The folder can be used wherever a checkpoint can, as long as the base is where it was. Floats of 16 and 32 bits are
    coded as differences; whatever the base lacks, or has in another type or shape, is stored as it is. Peak memory does
    not grow with the model: 256 MiB of coded chunks are kept between measuring and writing.

    Raises:
        UsageError: CV-U200 the base is given with adapters.
        SourceError: either cannot be read, or CV-S204 nothing in the expert is like the base.
        OutputBusy, OutOfSpace: see `merge`.
    """
    anchor = anchor or Path()
    written = _base_reference(base, anchor, out)
    tuned, ground = open_source(expert, anchor=anchor, offline=offline), None
    try:
        ground = open_source(base, anchor=anchor, offline=offline)
        _refuse(tuned, ground, out)
        for file in (*unfetched(tuned), *unfetched(ground)):
            file.fetch()
        before = stamps_of({**weight_files(tuned), **weight_files(ground)})
        measured, common = _measure(tuned, ground)
        table = Table(written, {name: m.packed for name, m in measured.items()})
        layout = _layout(measured, common)
        identity = {"pack": tuned.identity(), "base": ground.identity(), "layout": layout.digest}
        digest = bytes_digest(canonical_json(identity))
        key = bytes_digest(canonical_json([digest, dict(before)]))
        with FolderSink(out, disk).begin(layout, key, resume=resume, overwrite=overwrite) as session:
            _write(tuned, ground, measured, common, session)
            refuse_other(before)
            origin = _origin(tuned, ground, digest)
            side = {**_side_files(tuned), TABLE: table.encode()}
            session.commit(side, lambda records: build(origin, layout, session.digests, records))
    finally:
        tuned.close()
        if ground is not None:
            ground.close()
    sizes = tuple(_size(name, m) for name, m in measured.items())
    return PackReport(out, layout.total_bytes, sizes)


def _base_reference(base: str, anchor: Path, out: Path) -> str:
    """The base as the table names it: on the hub, or a path relative to the packed folder."""
    reference = parse_reference(base, anchor)
    if reference.adapters:
        raise UsageError(
            "CV-U200",
            f"`{printable(base)}` is a base with adapters, and a packed expert needs one that lies there as it is",
            hint="merge the adapters into it first: `cuvee convert BASE+ADAPTER -o FOLDER`",
        )
    if reference.kind == "hub":
        return replace(reference, assumed=False).display
    return Path(os.path.relpath((anchor / reference.name).resolve(), out.resolve())).as_posix()


def _refuse(tuned: Source, ground: Source, out: Path) -> None:
    """OutputBusy when the output would replace an input; SourceError when the two have nothing in common."""
    target = out.resolve()
    for path in {**weight_files(tuned), **weight_files(ground)}:
        if target in (path.resolve(), *path.resolve().parents):
            raise OutputBusy(
                "CV-E031",
                f"`{printable(str(out))}` holds what is packed, or its base",
                hint="choose another output; inputs are never written to",
            )
    refuse_foreign(out)
    if not any(_alike(tuned, ground, name) for name in tuned.tensors):
        raise SourceError(
            "CV-S204",
            f"no tensor of `{printable(tuned.label)}` has name, type and shape of one of `{printable(ground.label)}`",
            where=Where(source=tuned.label),
            hint="name the base that the expert was trained from, in the same type (`cuvee convert --dtype`)",
        )


def _alike(tuned: Source, ground: Source, name: str) -> bool:
    return ground.tensors.get(name) == tuned.tensors[name]


def _measure(tuned: Source, ground: Source) -> tuple[dict[str, _Measured], dict[str, Array]]:
    """The form and the coded sizes of every tensor, and the common frequencies of each type."""
    found: dict[str, _Measured] = {}
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


def _look(tuned: Source, ground: Source, name: str, number: int, counts: dict[str, Any]) -> _Measured:
    """One pass over a tensor and its base: is it the same, what does it hash to, how often does each token stand."""
    meta, hasher = tuned.tensors[name], TensorHasher()
    alike = _alike(tuned, ground, name)
    kind = KINDS.get(meta.dtype.name) if alike else None
    table = numpy.zeros((CONTEXTS, TOKENS), numpy.int64)
    hashes: list[bytes] = []
    changed = 0
    for start in range(0, meta.numel, CHUNK):
        stop = min(start + CHUNK, meta.numel)
        ours = bits_of(tuned, name, start, stop)
        hasher.update(ours.data)
        theirs = bits_of(ground, name, start, stop) if alike else None
        moved = meta.numel if theirs is None else int(numpy.count_nonzero(ours != theirs))
        changed += moved
        if kind is not None and theirs is not None:
            hashes.append(chunk_hash(ours))
            if moved:
                table += codec().counted(theirs, ours, kind)
    form = "same" if alike and not changed else "plain" if kind is None else "coded"
    ends = ends_digest(tuned, name) if form == "same" else "0" * 16
    packed = Packed(meta, form, hasher.hexdigest(), ends)  # type: ignore[arg-type]
    measured = _Measured(packed, f"{form}.{number}", min(changed, meta.numel), hashes=hashes)
    if form == "coded" and meta.numel >= OWN:
        measured.shares = frequencies(table)
    elif form == "coded":
        code = meta.dtype.code
        counts[code] = counts.get(code, 0) + table
    return measured


def _bodies(
    tuned: Source, ground: Source, name: str, measured: _Measured, common: dict[str, Array]
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


def _layout(measured: dict[str, _Measured], common: dict[str, Array]) -> Layout:
    metas = [m.meta for m in measured.values() if m.packed.form != "same"]
    shared = [
        TensorMeta(f"shares.{code}", BY_CODE["U8"], (len(encode_shares(shares)),))
        for code, shares in common.items()
    ]
    return plan_layout([*shared, *metas], max_shard_bytes=None, metadata=_METADATA, stem=STEM)


def _write(
    tuned: Source, ground: Source, measured: dict[str, _Measured], common: dict[str, Array], session: Session
) -> None:
    for code, shares in common.items():
        if f"shares.{code}" not in session.done:
            session.write(f"shares.{code}", 0, encode_shares(shares))
            session.finish(f"shares.{code}")
    for name, one in measured.items():
        if one.packed.form == "same" or one.key in session.done:
            continue
        if one.packed.form == "plain":
            pieces = _plain(tuned, name)
        else:
            pieces = iter(
                [one.head, *one.bodies]
                if one.bodies is not None
                else _again(tuned, ground, name, one, common)
            )
        offset = 0
        for piece in pieces:
            session.write(one.key, offset, piece)
            offset += len(piece)
        if not offset:
            session.write(one.key, 0, b"")
        session.finish(one.key)


def _again(
    tuned: Source, ground: Source, name: str, one: _Measured, common: dict[str, Array]
) -> Iterator[bytes]:
    yield one.head
    yield from _bodies(tuned, ground, name, one, common)


def _plain(tuned: Source, name: str) -> Iterator[bytes]:
    for start in range(0, tuned.tensors[name].numel, CHUNK):
        yield bits_of(tuned, name, start, min(start + CHUNK, tuned.tensors[name].numel)).tobytes()


def _size(name: str, one: _Measured) -> PackedSize:
    meta = one.packed.meta
    nbytes = 0 if one.packed.form == "same" else one.meta.nbytes
    return PackedSize(name, one.packed.form, meta.numel, meta.nbytes, nbytes, one.changed)


def _side_files(tuned: Source) -> dict[str, bytes]:
    """Config, tokenizer and what else lies beside the expert, as far as it is not about its own files."""
    found = {name: tuned.file(name) or b"" for name in tuned.files() if not name.startswith("cuvee")}
    if tuned.config is not None:
        found["config.json"] = dump_json(dict(tuned.config))
    return found


def _origin(tuned: Source, ground: Source, digest: str) -> Origin:
    lock = {"version": 1, "sources": {"expert": tuned.identity(), "base": ground.identity()}}
    return Origin("", digest, lock, {"pack": cuvee.__version__}, {"compute": []}, cuvee.__version__)


__all__ = ["PackReport", "PackedSize", "pack"]
