"""Folders of diffusers pipelines: `model_index.json` and one folder for each component.

A tensor is called `<component>.<its name>`; `config` is the content of `model_index.json` with the components' own
configurations under `components`. Which file of a component is read: an index or the plain name before any other,
safetensors before `.bin`; a variant (`*.fp16.safetensors`) only where it is alone. Must not interpret tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.core.limits import Limits
from cuvee.core.names import printable
from cuvee.core.sampling import Span
from cuvee.core.tensors import Extent, Stored, TensorMeta
from cuvee.errors import Diagnostic, SourceError, Where
from cuvee.formats.member_path import safe_member
from cuvee.formats.shard_index import weight_files
from cuvee.sources.folder import FolderSource, Origin, read_config
from cuvee.sources.reference import WEIGHT_SUFFIXES
from cuvee.sources.side_files import SideFiles
from cuvee.sources.source import meta_of
from cuvee.sources.stored import StoredTensors

if TYPE_CHECKING:
    from torch import Tensor

    from cuvee.formats.file import TensorFile
    from cuvee.sources.remote_file import RemoteFile

INDEX = "model_index.json"
COMPONENTS = "components"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*", re.ASCII)
# What the attention of an autoencoder was called before diffusers 0.18; diffusers reads both.
_OLD_ATTENTION = re.compile(
    r"(?P<at>.*\.attentions\.\d+)\.(?P<name>query|key|value|proj_attn)\.(?P<leaf>weight|bias)"
)
_NEW_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def is_pipeline(path: Path) -> bool:
    """Whether a path is the folder of a diffusers pipeline."""
    return (path / INDEX).is_file()


def component_names(index: Mapping[str, Any]) -> list[str]:
    """Names of the components that an index lists with a class, in its order."""
    return [
        name
        for name, value in index.items()
        if _NAME.fullmatch(name) and isinstance(value, list) and len(value) == 2 and value[1] is not None
    ]


def open_pipeline(
    folder: Path,
    label: str,
    limits: Limits,
    *,
    origin: Origin | None = None,
    notes: tuple[Diagnostic, ...] = (),
    away: Mapping[str, TensorFile] | None = None,
) -> FolderSource:
    """The components of a pipeline that have weights, as one source; SourceError when one lacks its weights.

    `away` are weight files (`unet/…`) that belong to it and are not here yet.
    """
    index = read_config(folder, INDEX, limits) or {}
    parts: dict[str, StoredTensors] = {}
    configs: dict[str, Mapping[str, Any]] = {}
    found: list[Diagnostic] = list(notes)
    inside = _by_component(away or {})
    listed = [n for n in component_names(index) if n in inside or safe_member(folder, n).is_dir()]
    try:
        for name in listed:
            inner = folder / name
            config = read_config(inner, "config.json", limits)
            if config is None and name not in inside and not _has_weights(inner):
                continue  # a scheduler, a tokenizer, a feature extractor
            weights = weight_files(inner, limits, inside.get(name))
            parts[name] = StoredTensors(weights.files, f"{label}/{name}", limits, root=folder)
            configs[name] = config or {}
            found += weights.notes
    except SourceError as error:
        _close(parts)
        raise error.at(source=label) from None
    except BaseException:
        _close(parts)
        raise
    if not parts:
        raise SourceError(
            "CV-S150",
            f"the pipeline `{printable(label)}` has no component with weights",
            where=Where(source=label, file=str(folder / INDEX)),
            hint=f"`{INDEX}` lists the components; each has a folder of its own",
        )
    stored = PipelineTensors(parts, label)
    side = PipelineFiles(folder, listed, label, limits)
    config = {**index, COMPONENTS: configs}
    origin = origin or Origin("pipeline", folder.resolve().name)
    return FolderSource(stored, side, config, origin=origin, notes=tuple(found))  # type: ignore[arg-type]


def _by_component(files: Mapping[str, TensorFile]) -> dict[str, dict[str, TensorFile]]:
    found: dict[str, dict[str, TensorFile]] = {}
    for path, file in files.items():
        component, _, name = path.partition("/")
        found.setdefault(component, {})[name] = file
    return found


def _has_weights(folder: Path) -> bool:
    return any(path.name.endswith(WEIGHT_SUFFIXES) for path in folder.iterdir())


def _close(parts: Mapping[str, StoredTensors]) -> None:
    for part in parts.values():
        part.close()


@dataclass(frozen=True, slots=True)
class _Place:
    part: StoredTensors
    name: str


class PipelineTensors:
    """The tensors of all components under `<component>.<name>`."""

    def __init__(self, parts: Mapping[str, StoredTensors], label: str) -> None:
        self.label = label
        self.notes = tuple(note for part in parts.values() for note in part.notes)
        self._parts = parts
        self._places = {
            f"{component}.{_renewed(name)}": _Place(part, name)
            for component, part in parts.items()
            for name in part.tensors
        }
        self.tensors: Mapping[str, TensorMeta] = {
            name: replace(place.part.tensors[place.name], name=name) for name, place in self._places.items()
        }

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Elements [start, stop) of a tensor, 1-D."""
        meta_of(self.tensors, name, self.label)
        place = self._places[name]
        return place.part.read(place.name, start, stop)

    def extent(self, name: str) -> Extent | None:
        """Where the bytes of a tensor lie, if they lie plainly."""
        meta_of(self.tensors, name, self.label)
        place = self._places[name]
        return place.part.extent(place.name)

    def stored(self, name: str) -> Stored:
        """How a tensor lies in its file."""
        meta_of(self.tensors, name, self.label)
        place = self._places[name]
        return place.part.stored(place.name)

    def unfetched(self) -> list[RemoteFile]:
        """Files of which only the header is here."""
        return [file for part in self._parts.values() for file in part.unfetched()]

    def weight_files(self) -> Mapping[Path, tuple[Span, ...]]:
        """The files of every component."""
        return {path: spans for part in self._parts.values() for path, spans in part.weight_files().items()}

    def identity(self) -> list[dict[str, Any]]:
        """Name (`unet/…`), size and header digest of every file."""
        entries = [entry for part in self._parts.values() for entry in part.identity()]
        return sorted(entries, key=lambda entry: str(entry["name"]))

    def close(self) -> None:
        """Close all files."""
        _close(self._parts)


def _renewed(name: str) -> str:
    old = _OLD_ATTENTION.fullmatch(name)
    return f"{old['at']}.{_NEW_ATTENTION[old['name']]}.{old['leaf']}" if old else name


class PipelineFiles:
    """Side files of a pipeline: those of its folder, and those of each component under `<component>/<name>`."""

    def __init__(self, folder: Path, components: list[str], label: str, limits: Limits) -> None:
        self._own = SideFiles(folder, label, limits)
        self._inner = {name: SideFiles(folder / name, label, limits) for name in components}

    def files(self) -> list[str]:
        """Names, sorted."""
        inner = [f"{part}/{name}" for part, side in self._inner.items() for name in side.files()]
        return sorted([*self._own.files(), *inner])

    def file(self, name: str) -> bytes | None:
        """The bytes of a side file, None when there is none; UnsafeFile when the name leaves the folder."""
        part, _, rest = name.partition("/")
        return self._inner[part].file(rest) if rest and part in self._inner else self._own.file(name)

    def identity(self) -> list[dict[str, Any]]:
        """Name, size and digest of the files that change what the pipeline is."""
        entries = self._own.identity()
        for part, side in self._inner.items():
            entries += [{**entry, "name": f"{part}/{entry['name']}"} for entry in side.identity()]
        return entries
