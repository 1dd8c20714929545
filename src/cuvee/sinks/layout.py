"""Which file holds which tensor, at which byte: fixed before anything is written.

Owns names of shards, their headers and the index. Pure: it must not touch the disk, and not import torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple

from cuvee.core.digests import bytes_digest
from cuvee.core.dtypes import BY_CODE
from cuvee.core.tensors import TensorMeta
from cuvee.errors import PlanError
from cuvee.formats.safetensors import encode_header

METADATA: Mapping[str, str] = MappingProxyType({"format": "pt"})


class Place(NamedTuple):
    """Where a tensor lies: file name, first byte in that file, number of bytes."""

    file: str
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One weight file: everything but its tensors' bytes. `tensors` are in the order they lie in the file."""

    name: str
    header: bytes
    tensors: tuple[str, ...]
    size: int  # whole file, header included


@dataclass(frozen=True, slots=True)
class Layout:
    """All weight files of an output. `index` is the content of the shard index; None for a single file."""

    tensors: Mapping[str, TensorMeta]
    files: tuple[PlannedFile, ...]
    places: Mapping[str, Place]
    stem: str
    max_shard_bytes: int | None
    metadata: Mapping[str, str]
    index: bytes | None
    parts: Mapping[str, str] = field(default_factory=dict)  # folders of an output in parts, with their stems
    indexes: Mapping[str, bytes] = field(default_factory=dict)  # of its parts, by file name

    def place(self, name: str) -> Place:
        """Where the tensor lies; KeyError when the layout has no such tensor."""
        return self.places[name]

    @property
    def index_name(self) -> str:
        return f"{self.stem}.safetensors.index.json"

    @property
    def total_bytes(self) -> int:
        """Bytes of all weight files and the index."""
        indexes = sum(len(content) for content in self.index_files.values())
        return sum(file.size for file in self.files) + indexes

    @property
    def index_files(self) -> dict[str, bytes]:
        """Every index by file name: that of the output, or those of its parts."""
        own = {} if self.index is None else {self.index_name: self.index}
        return {**own, **self.indexes}

    @property
    def folders(self) -> list[str]:
        """Folders within the output that hold weights."""
        return sorted({file.name.rpartition("/")[0] for file in self.files} - {""})

    @property
    def digest(self) -> str:
        """Changes with any name, place, dtype, shape or header byte."""
        joined = b"".join(f"{file.name}\0{file.size}\0".encode() + file.header for file in self.files)
        return bytes_digest(joined)

    def to_json(self) -> dict[str, Any]:
        """JSON data from which `from_json` makes the same layout."""
        return {
            "stem": self.stem,
            "max_shard_bytes": self.max_shard_bytes,
            "metadata": dict(self.metadata),
            **({"parts": dict(self.parts)} if self.parts else {}),
            "tensors": [[meta.name, meta.dtype.code, list(meta.shape)] for meta in self.tensors.values()],
            "digest": self.digest,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Layout:
        """The layout that `to_json` described; PlanError when this version would lay it out otherwise."""
        try:
            metas = [TensorMeta(name, BY_CODE[code], tuple(shape)) for name, code, shape in data["tensors"]]
            limit, metadata = data["max_shard_bytes"], data["metadata"]
            if "parts" in data:
                layout = plan_parts(metas, data["parts"], max_shard_bytes=limit, metadata=metadata)
            else:
                layout = plan_layout(metas, max_shard_bytes=limit, metadata=metadata, stem=data["stem"])
            same = layout.digest == data["digest"]
        except (KeyError, TypeError, ValueError):
            same = False
        if not same:
            raise PlanError(
                "CV-E012",
                "the saved plan's layout is not what this version of cuvee makes of its tensors",
                hint="make the plan anew with `cuvee plan`",
            )
        return layout


def plan_layout(
    tensors: Sequence[TensorMeta],
    *,
    max_shard_bytes: int | None,
    metadata: Mapping[str, str] = METADATA,
    stem: str = "model",
) -> Layout:
    """Lay the tensors out in the given order, a new file whenever the next one would pass `max_shard_bytes`.

    The limit counts tensor bytes, not headers, and no tensor is split: one that is larger than the limit
    gets a file of its own. None puts everything into one file. ValueError when two tensors share a name.
    """
    by_name = _by_name(tensors)
    files, places, index = _files(tensors, max_shard_bytes, metadata, stem)
    return Layout(by_name, tuple(files), places, stem, max_shard_bytes, dict(metadata), index)


def plan_parts(
    tensors: Sequence[TensorMeta],
    parts: Mapping[str, str],
    *,
    max_shard_bytes: int | None,
    metadata: Mapping[str, str] = METADATA,
) -> Layout:
    """Lay tensors `<part>.<name>` out as `<part>/<stem>.safetensors`, under `<name>`; `parts` gives each stem.

    Every part is laid out as `plan_layout` does it. ValueError when a tensor is of no part.
    """
    by_name = _by_name(tensors)
    groups: dict[str, list[TensorMeta]] = {part: [] for part in parts}
    for meta in tensors:
        part, _, name = meta.name.partition(".")
        if part not in groups:
            raise ValueError(f"{meta.name} is of no part of the output")
        groups[part].append(replace(meta, name=name))
    files: list[PlannedFile] = []
    places: dict[str, Place] = {}
    indexes: dict[str, bytes] = {}
    for part, group in groups.items():
        inner, placed, index = _files(group, max_shard_bytes, metadata, parts[part])
        files += [
            replace(f, name=f"{part}/{f.name}", tensors=tuple(f"{part}.{n}" for n in f.tensors))
            for f in inner
        ]
        places |= {f"{part}.{n}": at._replace(file=f"{part}/{at.file}") for n, at in placed.items()}
        if index is not None:
            indexes[f"{part}/{parts[part]}.safetensors.index.json"] = index
    return Layout(
        by_name, tuple(files), places, "", max_shard_bytes, dict(metadata), None, dict(parts), indexes
    )


def _by_name(tensors: Sequence[TensorMeta]) -> dict[str, TensorMeta]:
    by_name = {meta.name: meta for meta in tensors}
    if len(by_name) != len(tensors):
        raise ValueError("two tensors of one output share a name")
    return by_name


def _files(
    tensors: Sequence[TensorMeta], limit: int | None, metadata: Mapping[str, str], stem: str
) -> tuple[list[PlannedFile], dict[str, Place], bytes | None]:
    """The files of one folder, where each tensor lies in them, and their index if there are several."""
    groups = _shards(tensors, limit)
    files: list[PlannedFile] = []
    places: dict[str, Place] = {}
    for name, group in zip(_names(stem, len(groups)), groups, strict=True):
        header, offsets = encode_header(group, metadata)
        ordered = sorted(group, key=lambda meta: (offsets[meta.name], meta.nbytes))
        size = len(header) + sum(meta.nbytes for meta in group)
        files.append(PlannedFile(name, header, tuple(meta.name for meta in ordered), size))
        places |= {meta.name: Place(name, offsets[meta.name], meta.nbytes) for meta in group}
    return files, places, _index(tensors, places) if len(files) > 1 else None


def _shards(tensors: Iterable[TensorMeta], limit: int | None) -> list[list[TensorMeta]]:
    groups: list[list[TensorMeta]] = [[]]
    filled = 0
    for meta in tensors:
        if limit is not None and groups[-1] and filled + meta.nbytes > limit:
            groups.append([])
            filled = 0
        groups[-1].append(meta)
        filled += meta.nbytes
    return groups


def _names(stem: str, count: int) -> list[str]:
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _index(tensors: Sequence[TensorMeta], places: Mapping[str, Place]) -> bytes:
    content = {
        "metadata": {
            "total_parameters": sum(meta.numel for meta in tensors),
            "total_size": sum(meta.nbytes for meta in tensors),
        },
        "weight_map": {name: places[name].file for name in sorted(places)},
    }
    return (json.dumps(content, indent=2, ensure_ascii=True) + "\n").encode("ascii")
