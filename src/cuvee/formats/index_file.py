"""The index of a sharded checkpoint: which tensor lies in which file, read strictly and compared with it.

Owns index files and their agreement with what the shards really hold. Which files make up a folder's model is
decided in `shard_index`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cuvee.core.limits import DEFAULT, Limits
from cuvee.errors import MissingTensor
from cuvee.formats.file import TensorFile
from cuvee.formats.json_file import read_json
from cuvee.formats.member_path import safe_member
from cuvee.formats.refusals import corrupt, over_limit, place, quoted, unsafe
from cuvee.formats.shard_names import shard_place

_SUFFIXES = {"safetensors": (".safetensors",), "torch": (".bin", ".pt", ".pth")}


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """`weight_map` gives the file of every tensor; `metadata` is what the writer noted (`total_size`)."""

    metadata: Mapping[str, Any]
    weight_map: Mapping[str, str]

    @property
    def files(self) -> tuple[str, ...]:
        """The shards' names, each once, sorted."""
        return tuple(sorted(set(self.weight_map.values())))


def read_index(path: Path, limits: Limits = DEFAULT) -> ShardIndex:
    """The checked index at `path`: names within limits, members safe and of the index's own format."""
    value = read_json(path, limits)
    if not isinstance(value, dict):
        raise corrupt("CV-S070", path, "an index is an object with `metadata` and `weight_map`")
    unknown = [key for key in value if key not in ("metadata", "weight_map")]
    if unknown:
        raise corrupt("CV-S070", path, f"an index has no field {quoted(unknown[0])}")
    metadata, weight_map = value.get("metadata", {}), value.get("weight_map")
    if metadata is None:
        metadata = {}
    if not isinstance(metadata, dict):
        raise corrupt("CV-S070", path, "the `metadata` of the index is not an object")
    if not isinstance(weight_map, dict):
        raise corrupt("CV-S070", path, "the index has no `weight_map` object")
    _check_entries(path, weight_map, limits)
    index = ShardIndex(metadata, weight_map)
    if len(index.files) > limits.shards:
        raise over_limit(path, "number of shards", len(index.files), limits.shards)
    for name in index.files:
        _check_member(path, name)
    _check_numbers(path, index.files)
    return index


def _check_entries(path: Path, weight_map: dict[str, Any], limits: Limits) -> None:
    if not weight_map:
        raise corrupt("CV-S070", path, "the `weight_map` of the index is empty")
    if len(weight_map) > limits.tensors:
        raise over_limit(path, "number of tensors", len(weight_map), limits.tensors)
    for tensor, file in weight_map.items():
        if not isinstance(file, str):
            raise corrupt("CV-S070", path, "the index names no file for this tensor", tensor=tensor)
        if len(tensor.encode()) > limits.name_bytes:
            size = len(tensor.encode())
            raise over_limit(path, "length of a name in bytes", size, limits.name_bytes, tensor=tensor)


def _check_member(path: Path, name: str) -> None:
    """The member stays in the folder and is of the format that the index is named for."""
    safe_member(path.parent, name)
    kind = "safetensors" if path.name.endswith(".safetensors.index.json") else "torch"
    if not name.endswith(_SUFFIXES[kind]):
        raise unsafe(
            "CV-S076",
            path,
            f"the index lists {quoted(name)}, expected files that end in `{_SUFFIXES[kind][0]}`",
            hint="an index must not make a reader open another format than its name says",
        )


def _check_numbers(path: Path, files: tuple[str, ...]) -> None:
    """`x-00001-of-00006` and so on: all six must be listed, else the index was cut short."""
    places = [(name, found) for name in files if (found := shard_place(name))]
    listed: dict[tuple[str, int], set[int]] = {}
    for _, found in places:
        listed.setdefault((found.stem, found.total), set()).add(found.number)
    for (stem, total), numbers in listed.items():
        if len(numbers) != total or max(numbers) - min(numbers) != total - 1:  # some count from 0
            raise corrupt(
                "CV-S073",
                path,
                f"the index lists {len(numbers)} of the {total} shards of {quoted(stem)}",
                hint="the model is incomplete: fetch or write it again",
            )


def check_against_shards(path: Path, index: ShardIndex, shards: Mapping[str, TensorFile]) -> None:
    """The index and the opened shards hold the same tensors in the same places."""
    for tensor, file in index.weight_map.items():
        if tensor not in shards[file].tensors:
            raise MissingTensor(
                "CV-S073",
                f"the index says that {quoted(tensor)} is in {quoted(file)}, which does not hold it",
                where=place(path, tensor),
                hint="the model is incomplete: fetch or write it again",
            )
    for file, shard in shards.items():
        for tensor in shard.tensors:
            listed = index.weight_map.get(tensor)
            if listed == file:
                continue
            said = "does not list it" if listed is None else f"says it is in {quoted(listed)}"
            raise corrupt(
                "CV-S073",
                path,
                f"{quoted(file)} holds {quoted(tensor)}, but the index {said}",
                tensor=tensor,
                hint="loaders would fill such a tensor with random numbers; write the index again",
            )
