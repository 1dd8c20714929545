"""Models at an address: `https://…/model`, `s3://bucket/model`, or one safetensors file there.

Owns which files of such a folder make up the model. Configs and tokenizers are fetched into cuvee's cache; weights are
read in ranges, where they lie, and pinned to the version that was planned with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cuvee.core import cache
from cuvee.core.askers import Askers
from cuvee.core.digests import bytes_digest, canonical_json
from cuvee.core.disk import make_folders, write_file
from cuvee.core.limits import MIB, Limits
from cuvee.core.names import printable
from cuvee.errors import Diagnostic, SourceError, Where
from cuvee.formats.file import TensorFile
from cuvee.formats.index_file import read_index
from cuvee.formats.packed import TABLE
from cuvee.formats.shard_names import INDEX_SUFFIX, SAFETENSORS_NAMES, holds_weights
from cuvee.sources.folder import FolderSource, Origin, open_folder, open_single
from cuvee.sources.hub import beside
from cuvee.sources.reference import WEIGHT_SUFFIXES, Reference
from cuvee.sources.remote_pace import Pace
from cuvee.sources.remote_ranges import RangedBytes, RangedFile
from cuvee.sources.remote_stores import (
    HttpStore,
    ObjectStore,
    Patience,
    Piece,
    Store,
    again,
    changed,
    patiently,
)
from cuvee.sources.source import note

_FIRST = MIB  # bytes of the first request for a file: side files and most headers fit
_POOL = Askers(8, "cuvee-remote")
# What is asked for where files cannot be listed.
_USUAL = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "quantization_config.json",
    TABLE,
    "LICENSE",
)


def open_remote(
    reference: Reference, label: str, limits: Limits, *, offline: bool, patience: Patience | None = None
) -> FolderSource:
    """The model at an address; only headers and side files are fetched.

    Raises SourceError when it cannot be reached, holds no safetensors, or its server does not serve parts of files.
    """
    if offline:
        raise SourceError(
            "CV-S215",
            f"`{printable(label)}` is an address, and connections are forbidden",
            where=Where(source=label),
            hint="leave `--offline` and `CUVEE_OFFLINE` out, or name a local folder",
        )
    url, _, name = reference.name.rstrip("/").rpartition("/")
    single = name.endswith(WEIGHT_SUFFIXES)
    patience = patience or Patience()
    store = _store(url if single else reference.name, patience.pace)
    folder = _Folder(store, label, limits, patience)
    return folder.single(name, reference.name) if single else folder.whole(reference.name)


def _store(url: str, pace: Pace) -> Store:
    return HttpStore(url, pace) if urlsplit(url).scheme in ("http", "https") else ObjectStore(url, pace)


@dataclass(frozen=True, slots=True)
class _Folder:
    """One folder of a store while it is opened."""

    store: Store
    label: str
    limits: Limits
    patience: Patience

    def single(self, name: str, url: str) -> FolderSource:
        """One weight file alone."""
        start = self.first(name)
        if start is None or not name.endswith(".safetensors"):
            raise self.nothing(f"`{printable(name)}` is not there" if start is None else "")
        home = _home(url, [(name, start)])
        origin = Origin("url", url, _revision([(name, start)]))
        file = self.opened(home, name, start)
        return open_single(
            file.path, self.label, self.limits, origin=origin, notes=self.notes([start]), away=file
        )

    def whole(self, url: str) -> FolderSource:
        """A model folder: side files are fetched, weights known by their headers."""
        names = again(self.store.names, self.store, "", self.patience)
        usual = [n + suffix for n in SAFETENSORS_NAMES for suffix in (INDEX_SUFFIX, "")]
        asked = [*_USUAL, *usual] if names is None else [n for n in names if beside(n) or _weights(n)]
        found = {n: p for n, p in zip(asked, _POOL.map(self.first, asked), strict=True) if p is not None}
        if TABLE in found:
            raise self.nothing("its tensors are packed, and packed experts are read from folders")
        side = {n: self.rest(n, piece) for n, piece in found.items() if not n.endswith(".safetensors")}
        index = next((n for n in usual if n.endswith(INDEX_SUFFIX) and n in side), None)
        home = _home(url, found.items())
        self.keep(home, side)
        shards = list(read_index(home / index, self.limits).files) if index is not None else []
        late = [name for name in shards if name not in found]
        more = zip(late, _POOL.map(self.first, late), strict=True)
        found |= {name: piece for name, piece in more if piece is not None}
        weights = {n: p for n, p in found.items() if n in shards or (not shards and _weights(n))}
        if not any(n.endswith(".safetensors") for n in weights):
            raise self.nothing("")
        files = _POOL.map(lambda item: self.opened(home, *item), weights.items())
        away: dict[str, TensorFile] = {
            n: file for n, file in zip(weights, files, strict=True) if n.endswith(".safetensors")
        }
        origin = Origin("url", url, _revision(found.items()))
        return open_folder(
            home, self.label, self.limits, origin=origin, notes=self.notes(found.values()), away=away
        )

    def first(self, name: str) -> Piece | None:
        """The first MiB of a file; None when there is none."""
        return patiently(self.store, name, 0, _FIRST, None, self.patience)

    def rest(self, name: str, start: Piece) -> bytes:
        """The whole of a side file, of which the first bytes are there."""
        if start.size > self.limits.json_bytes:
            raise SourceError(
                "CV-S216",
                f"`{printable(name)}` has {start.size:,} bytes, the limit is {self.limits.json_bytes:,}",
                where=Where(source=self.label, file=printable(name)),
            )
        return start.data + self.get(name, start, len(start.data), start.size - len(start.data))

    def get(self, name: str, start: Piece, offset: int, count: int) -> bytes:
        """Bytes of the version that was seen first, of which the beginning is there."""
        if offset + count <= len(start.data):
            return start.data[offset : offset + count]
        piece = patiently(self.store, name, offset, count, start.version, self.patience)
        if piece is None or piece.size != start.size:
            raise changed(self.store, name)
        return piece.data

    def opened(self, home: Path, name: str, start: Piece) -> RangedFile:
        """A weight file by its header."""
        raw = RangedBytes(home / name, start.size, lambda offset, count: self.get(name, start, offset, count))
        return RangedFile(raw, self.limits)

    def keep(self, home: Path, side: dict[str, bytes]) -> None:
        """Put side files where a folder's readers look for them."""
        make_folders(home)
        for name, content in side.items():
            path = home / name
            if not path.is_file() or path.read_bytes() != content:
                write_file(path, content)

    def notes(self, pieces: Iterable[Piece]) -> tuple[Diagnostic, ...]:
        """What to say where versions cannot be told apart."""
        if all(piece.version is not None for piece in pieces):
            return ()
        message = (
            "the server gives no ETag and no date, so a file that is replaced is noticed only by its size"
        )
        return (note("CV-S218", message, self.label, warning=True),)

    def nothing(self, reason: str) -> SourceError:
        """There is no model that can be read in ranges."""
        because = reason or "no safetensors there, the one format that is read in ranges"
        return SourceError(
            "CV-S217",
            f"`{printable(self.label)}` holds no model that can be read: {because}",
            where=Where(source=self.label),
            hint="check the address; a model in another format must be fetched first",
        )


def _weights(name: str) -> bool:
    return (name.endswith(".safetensors") and holds_weights(name)) or name.endswith(INDEX_SUFFIX)


def _home(url: str, files: Iterable[tuple[str, Piece]]) -> Path:
    """The cache's folder for these versions of the files."""
    return cache.folder() / "remote" / bytes_digest(canonical_json([url, _revision(files)]))[:32]


def _revision(files: Iterable[tuple[str, Piece]]) -> str:
    """A name for these versions of the files; another one when any of them is replaced."""
    table: Sequence[object] = sorted([name, piece.size, piece.version or ""] for name, piece in files)
    return "files-" + bytes_digest(canonical_json(table))[:40]
