"""An expert written as what leads from its base to it: measured first, then laid out, then written, one commit.

Owns the way to the file. What each tensor becomes is decided in `api.pack_measure`, the coder is
`formats.packed_codec`, durability is the business of `sinks`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cuvee
from cuvee.api.inputs import refuse_foreign, refuse_other, stamps_of
from cuvee.api.pack_measure import Measured, again, alike, measure, plain
from cuvee.bundle.json_files import dump_json
from cuvee.bundle.manifest_form import Origin, build
from cuvee.core.digests import bytes_digest, canonical_json
from cuvee.core.disk import REAL, Disk
from cuvee.core.dtypes import BY_CODE
from cuvee.core.names import printable
from cuvee.core.tensors import TensorMeta
from cuvee.errors import OutputBusy, SourceError, UsageError, Where
from cuvee.formats.packed import STEM, TABLE, Table, encode_shares
from cuvee.sinks.folder import FolderSink
from cuvee.sinks.layout import Layout, plan_layout
from cuvee.sinks.sink import Session
from cuvee.sources.open import open_source
from cuvee.sources.reference import parse_reference
from cuvee.sources.source import Source, unfetched, weight_files

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

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
        measured, common = measure(tuned, ground)
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
    if not any(alike(tuned, ground, name) for name in tuned.tensors):
        raise SourceError(
            "CV-S204",
            f"no tensor of `{printable(tuned.label)}` has name, type and shape of one of `{printable(ground.label)}`",
            where=Where(source=tuned.label),
            hint="name the base that the expert was trained from, in the same type (`cuvee convert --dtype`)",
        )


def _layout(measured: dict[str, Measured], common: dict[str, Array]) -> Layout:
    metas = [m.meta for m in measured.values() if m.packed.form != "same"]
    shared = [
        TensorMeta(f"shares.{code}", BY_CODE["U8"], (len(encode_shares(shares)),))
        for code, shares in common.items()
    ]
    return plan_layout([*shared, *metas], max_shard_bytes=None, metadata=_METADATA, stem=STEM)


def _write(
    tuned: Source, ground: Source, measured: dict[str, Measured], common: dict[str, Array], session: Session
) -> None:
    for code, shares in common.items():
        if f"shares.{code}" not in session.done:
            session.write(f"shares.{code}", 0, encode_shares(shares))
            session.finish(f"shares.{code}")
    for name, one in measured.items():
        if one.packed.form == "same" or one.key in session.done:
            continue
        if one.packed.form == "plain":
            pieces = plain(tuned, name)
        else:
            pieces = iter(
                [one.head, *one.bodies] if one.bodies is not None else again(tuned, ground, name, one, common)
            )
        offset = 0
        for piece in pieces:
            session.write(one.key, offset, piece)
            offset += len(piece)
        if not offset:
            session.write(one.key, 0, b"")
        session.finish(one.key)


def _size(name: str, one: Measured) -> PackedSize:
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
