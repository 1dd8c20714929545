"""What changes in config.json when a model gets other layers or another vocabulary. Pure functions on
dictionaries.

Owns dotted paths (`text_config.num_hidden_layers`). Never changes its arguments; reads and writes no file.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cuvee.families.family import Family, Module


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A layer count that config.json and the tensor names give differently."""

    module: str
    key: str
    in_config: int
    in_names: int


def class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The model classes a config names, leaving out whatever is not text."""
    listed = config.get("architectures", [config.get("_class_name")])  # diffusers names one class
    return tuple(c for c in listed if isinstance(c, str)) if isinstance(listed, list | tuple) else ()


def get_path(config: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path, None where any part of it is absent."""
    value: Any = config
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def set_path(config: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of the config with the value at a dotted path; missing sections are made."""
    out = copy.deepcopy(dict(config))
    *sections, last = path.split(".")
    place = out
    for part in sections:
        if not isinstance(place.get(part), dict):
            place[part] = {}
        place = place[part]
    place[last] = value
    return out


def numbers(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, int]]:
    """Every whole number in the config with its dotted path, outer sections first."""
    for key, value in config.items():
        if isinstance(value, int) and not isinstance(value, bool):
            yield f"{prefix}{key}", value
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{key}.")


def with_layers(
    config: Mapping[str, Any], family: Family, module: str, order: Sequence[int | None]
) -> dict[str, Any]:
    """The config of a model whose module has the layers `order` of the old one (None: a layer of mixed
    origin).

    Sets the layer count wherever it stands, re-indexes lists with one entry per layer (a mixed layer keeps
    the entry of its new position, else the last) and translates lists of layer numbers. A module whose
    family knows no key for its layer count leaves the config as it is.
    """
    part = family.modules[module]
    out = copy.deepcopy(dict(config))
    if part.layers_key is None:
        return out
    old = get_path(config, part.layers_key)
    out = set_path(out, part.layers_key, len(order))
    for key in part.layers_also:
        if get_path(config, key) is not None:
            out = set_path(out, key, len(order))
    for key in part.index_keys:
        listed = get_path(config, key)
        if isinstance(listed, list):
            out = set_path(out, key, [new for new, source in enumerate(order) if source in listed])
    for key in _per_layer(config, part, old):
        out = set_path(out, key, _reordered(get_path(config, key), order))
    return out


def with_vocabulary(config: Mapping[str, Any], family: Family, size: int) -> dict[str, Any]:
    """The config of a model with `size` rows of token embeddings."""
    out = copy.deepcopy(dict(config))
    for part in family.modules.values():
        if part.vocabulary_key is not None:
            out = set_path(out, part.vocabulary_key, size)
        for key in part.vocabulary_also:
            if get_path(config, key) is not None:
                out = set_path(out, key, size)
    return out


def disagreements(config: Mapping[str, Any], family: Family, names: Iterable[str]) -> list[Disagreement]:
    """Modules whose layer count in the config differs from the one in the names, which is the right one."""
    listed = list(names)
    out = []
    for part in family.modules.values():
        said = None if part.layers_key is None else get_path(config, part.layers_key)
        counted = family.layer_count(listed, part.name)
        if isinstance(said, int) and part.layers_key is not None and counted not in (0, said):
            out.append(Disagreement(part.name, part.layers_key, said, counted))
    return out


def _per_layer(config: Mapping[str, Any], part: Module, count: Any) -> list[str]:
    """Paths of lists with one entry per layer: declared ones, and lists of that length named after layers."""
    section, _, _ = (part.layers_key or "").rpartition(".")
    inside = get_path(config, section) if section else config
    near = [f"{section}.{k}" if section else k for k in inside or () if "layer" in k]
    wanted = dict.fromkeys((*part.per_layer_keys, *near))
    lists = {k: v for k in wanted if k not in part.index_keys and isinstance(v := get_path(config, k), list)}
    return [k for k, v in lists.items() if v and len(v) == count]


def _reordered(entries: list[Any], order: Sequence[int | None]) -> list[Any]:
    last = len(entries) - 1
    sources = [min(new, last) if source is None else min(source, last) for new, source in enumerate(order)]
    return [copy.deepcopy(entries[s]) for s in sources]
