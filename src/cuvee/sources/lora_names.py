"""Which module of a diffusion model a name in a LoRA file means, in all the spellings in use.

Owns `key_maps/lora.toml` and the index of a base's modules: by diffusers' names, by original names, and both as
kohya flattens them. Reads no tensor.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cuvee.core.tensors import TensorMeta
from cuvee.errors import SourceError
from cuvee.sources.key_map import DATA, Made
from cuvee.sources.mapped import MappedSource
from cuvee.sources.pipeline import COMPONENTS
from cuvee.sources.single_file import Layout, as_pipeline, as_single, layout_for, layout_of
from cuvee.sources.source import Source

_DENOISERS = ("unet", "transformer")
_WRAPPER = "text_model."
_LEAVES = ("weight", "bias")


@dataclass(frozen=True, slots=True)
class Target:
    """A tensor that a LoRA may change: its shape as the LoRA sees it, and of which base tensors it is made."""

    meta: TensorMeta
    made: Made | None  # None: it is a tensor of the base


@dataclass(frozen=True, slots=True)
class LoraName:
    """A name taken apart: the module, and `down`, `up`, `alpha`, … or what other kind of adapter it belongs to."""

    module: str
    part: str
    other: str | None = None


@lru_cache(maxsize=1)
def _data() -> dict[str, Any]:
    return tomllib.loads((DATA / "lora.toml").read_text(encoding="utf-8"))


def taken_apart(name: str) -> LoraName | None:
    """The parts of a name in a LoRA file, None when it ends like nothing known."""
    data = _data()
    for part, endings in data["endings"].items():
        for ending in endings:
            if name.endswith(ending) and len(name) > len(ending):
                return LoraName(name.removesuffix(ending), part)
    for ending, what in data["other"].items():
        if name.endswith(ending):
            return LoraName(name.removesuffix(ending), "other", what)
    return None


def is_lora(names: Iterable[str]) -> bool:
    """Whether the names of a file are those of a LoRA of a diffusion model."""
    listed = [taken_apart(name) for name in names]
    return bool(listed) and all(found is not None for found in listed)


class ModuleIndex:
    """The weights and biases of a base by every name that a LoRA may call their modules."""

    def __init__(self, base: Source) -> None:
        self._found: dict[tuple[str, str], Target] = {}
        if COMPONENTS in (base.config or {}):
            self._own(base, "")
            layout = layout_for(base.config or {})
            if layout is not None:
                self._other(lambda: as_single(base, layout), layout)
        elif (layout := layout_of(base.tensors)) is not None:
            self._originals({name: Target(meta, None) for name, meta in base.tensors.items()}, layout)
            self._other(lambda: as_pipeline(base, layout), None)
        else:
            kind = str((base.config or {}).get("_class_name", ""))
            self._own(base, "unet." if kind.startswith("UNet") else "transformer.")

    def find(self, module: str, leaf: str = "weight") -> Target | None:
        """The weight (or `bias`) of a module as a LoRA file names it."""
        flat = next((p for p in _data()["flat"] if module.startswith(p)), None)
        if flat is not None:
            short = module.removeprefix(flat)
            keys = [f"{component}:{short}" for component in _data()["flat"][flat]]
        else:
            plain = module.removeprefix("base_model.model.").replace(".processor.", ".")
            keys = [plain, f"{plain}.0"]  # `to_out` of old files is `to_out.0`
        named = [(key, leaf) for key in keys]
        return next((self._found[key] for key in named if key in self._found), None)

    def _own(self, base: Source, prefix: str) -> None:
        for name, meta in base.tensors.items():
            self._diffusers(prefix + name, Target(meta, None))

    def _other(self, view: Any, layout: Layout | None) -> None:
        """The names of the other form; a base that does not fit it has none."""
        try:
            mapped: MappedSource = view()
        except SourceError:
            return
        targets = {name: Target(meta, mapped.made[name]) for name, meta in mapped.tensors.items()}
        if layout is not None:
            self._originals(targets, layout)
            return
        for name, target in targets.items():
            self._diffusers(name, target)

    def _diffusers(self, name: str, target: Target) -> None:
        stem, _, leaf = name.rpartition(".")
        if leaf not in _LEAVES:
            return
        component, _, path = stem.partition(".")
        spellings = [path]
        if component.startswith("text_encoder") and not path.startswith(_WRAPPER):
            spellings.append(_WRAPPER + path)
        for spelling in spellings:
            self._put(f"{component}.{spelling}", leaf, target)
            self._put(f"{component}:{spelling.replace('.', '_')}", leaf, target)
        if component in _DENOISERS:
            self._put(path, leaf, target)

    def _originals(self, targets: Mapping[str, Target], layout: Layout) -> None:
        for name, (component, prefix) in layout.placed(targets).items():
            path, _, leaf = name[len(prefix) :].rpartition(".")
            if component.name in _DENOISERS and leaf in _LEAVES:
                self._put(f"{component.name}:{path.replace('.', '_')}", leaf, targets[name])
                for before in _data()["original"]["prefixes"]:
                    self._put(before + path, leaf, targets[name])

    def _put(self, key: str, leaf: str, target: Target) -> None:
        self._found.setdefault((key, leaf), target)
