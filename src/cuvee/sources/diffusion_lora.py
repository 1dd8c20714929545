"""LoRA files of diffusion models (kohya's and diffusers' names), applied to a base without writing a merged copy.

Owns the way from modules to the base's tensors, also where the base has them under other names, fused or turned. The
names are in `lora_names`, what a module stands for in `lora_modules`. Every module must find its place, or nothing is
read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.core.lazy import torch
from cuvee.core.limits import Limits
from cuvee.core.names import printable
from cuvee.errors import CorruptFile, SourceError, Where
from cuvee.formats.file import open_file
from cuvee.sources.adapted import AdaptedSource, Overlay, OverlayFacts
from cuvee.sources.folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Origin
from cuvee.sources.key_map import Part
from cuvee.sources.lora_modules import ModuleReader, leaves_of, misfit
from cuvee.sources.lora_names import ModuleIndex, Target, is_lora, taken_apart
from cuvee.sources.low_rank import Delta, FactorCache, Sum
from cuvee.sources.mapped import MappedSource
from cuvee.sources.peft_config import AdapterConfig, adapter_config
from cuvee.sources.source import Source
from cuvee.sources.stored import StoredTensors

if TYPE_CHECKING:
    import torch as torch_types
    from torch import Tensor

WEIGHTS = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")
_METADATA = "lora_adapter_metadata"  # where diffusers keeps the configurations of PEFT


@dataclass(frozen=True, slots=True)
class Placed:
    """Part of a delta at its place in a base tensor: `count` elements of `inner` from `first` on, put at `at`."""

    inner: Delta
    first: int
    at: int
    count: int
    turned: tuple[int, int] | None = None  # the shape of `inner`, whose transpose is meant

    def slice(self, start: int, stop: int, dtype: torch_types.dtype) -> Tensor:
        """Elements [start, stop) of the base tensor; zero outside the part."""
        out = torch.zeros(stop - start, dtype=dtype)
        low, high = max(start, self.at), min(stop, self.at + self.count)
        if low < high:
            out[low - start : high - start] = self._inner(
                low - self.at + self.first, high - self.at + self.first, dtype
            )
        return out

    def _inner(self, start: int, stop: int, dtype: torch_types.dtype) -> Tensor:
        if self.turned is None:
            return self.inner.slice(start, stop, dtype)
        rows, columns = self.turned
        return self.inner.slice(0, rows * columns, dtype).reshape(rows, columns).T.reshape(-1)[start:stop]


def lora_file(path: Path) -> Path | None:
    """The file of a diffusion model's LoRA: the path itself, or the usual one in a folder; None for PEFT's adapters."""
    folder = path if path.is_dir() else path.parent
    if (folder / ADAPTER_CONFIG).is_file() or path.name in ADAPTER_WEIGHTS:
        return None
    if path.is_dir():
        return next((path / name for name in WEIGHTS if (path / name).is_file()), None)
    return path if path.is_file() else None


def apply_lora(base: Source, path: Path, label: str, limits: Limits, origin: Origin) -> AdaptedSource:
    """base + LoRA; SourceError when it is no such file or does not fit the base."""
    file = open_file(path, limits)
    metadata = dict(file.metadata)
    stored = StoredTensors([file], label, limits, root=path.parent)
    try:
        if not is_lora(stored.tensors):
            raise _refused(stored, "it has tensors that are no factors of a LoRA")
        return _applied(base, stored, metadata, origin)
    except BaseException:
        stored.close()
        raise


def _applied(
    base: Source, stored: StoredTensors, metadata: Mapping[str, Any], origin: Origin
) -> AdaptedSource:
    modules = _modules(stored)
    targets = _targets(base, stored, modules)
    reader = ModuleReader(stored, _configs(metadata, stored.label), FactorCache())
    pieces: dict[str, list[Delta]] = {}
    ranks: set[int] = set()
    for (module, leaf), target in targets.items():
        delta, rank = reader.delta(module, modules[module], leaf, target.meta, partial(_values, base, target))
        ranks |= {rank} if rank else set()
        for name, piece in _at_base(delta, target, base):
            pieces.setdefault(name, []).append(piece)
    deltas = {name: found[0] if len(found) == 1 else Sum(tuple(found)) for name, found in pieces.items()}
    size = sum(meta.nbytes for meta in stored.tensors.values())
    facts = OverlayFacts(Path(stored.label).name, tuple(sorted(ranks)), size, len(deltas), 0)
    identity = {**asdict(origin), "files": stored.identity()}
    overlay = Overlay({}, deltas, identity, close=stored.close, facts=facts)
    return AdaptedSource(base, overlay, f"{base.label} + {stored.label}")


def _targets(
    base: Source, stored: StoredTensors, modules: Mapping[str, Mapping[str, str]]
) -> dict[tuple[str, str], Target]:
    """The tensors of the base by module and leaf; CorruptFile where one is not there, or is changed twice."""
    index = ModuleIndex(base)
    wanted = [(module, leaf) for module, parts in modules.items() for leaf in leaves_of(parts)]
    targets = {place: index.find(*place) for place in wanted}
    lost = [module for (module, _), target in targets.items() if target is None]
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise misfit(stored, lost[0], f"`{printable(lost[0])}`{more} of the LoRA is not in the base")
    found = {place: target for place, target in targets.items() if target is not None}
    taken: dict[str, str] = {}
    for (module, _), target in found.items():
        if taken.setdefault(target.meta.name, module) != module:
            raise misfit(stored, module, f"two modules of the LoRA change `{printable(target.meta.name)}`")
    return found


def _values(base: Source, target: Target, start: int, stop: int) -> Tensor:
    """Elements of the tensor that a module changes, as the LoRA sees it."""
    if target.made is None:
        return base.read(target.meta.name, start, stop)
    return MappedSource(base, {target.meta.name: target.made}).read(target.meta.name, start, stop)


def _modules(stored: StoredTensors) -> dict[str, dict[str, str]]:
    """Names of tensors by module and part; SourceError for other kinds of adapters."""
    out: dict[str, dict[str, str]] = {}
    for name in stored.tensors:
        found = taken_apart(name)
        assert found is not None
        if found.other is not None:
            raise _refused(stored, f"`{printable(name)}` is part of {found.other}")
        parts = out.setdefault(found.module, {})
        if found.part in parts:
            raise misfit(stored, found.module, f"`{printable(name)}` is there twice, under two names")
        parts[found.part] = name
    return out


def _configs(metadata: Mapping[str, Any], label: str) -> dict[str, AdapterConfig]:
    """PEFT's configuration of each component, as newer versions of diffusers keep them in the file's header."""
    text = metadata.get(_METADATA)
    try:
        raw = json.loads(text) if isinstance(text, str) else {}
    except ValueError:
        raise CorruptFile(
            "CV-S155", f"`{_METADATA}` of the LoRA is not JSON", where=Where(source=label)
        ) from None
    sections: dict[str, dict[str, Any]] = {}
    for key, value in raw.items() if isinstance(raw, dict) else ():
        component, _, name = key.partition(".")
        sections.setdefault(component, {})[name] = value
    return {part: adapter_config(section, label)[0] for part, section in sections.items()}


def _at_base(delta: Delta, target: Target, base: Source) -> list[tuple[str, Delta]]:
    """The delta on the base's own tensors."""
    if target.made is None:
        return [(target.meta.name, delta)]
    only = target.made.parts[0]
    if len(target.made.parts) == 1 and not only.turned and only.count == base.tensors[only.name].numel:
        return [(only.name, delta)]
    out: list[tuple[str, Delta]] = []
    first = 0
    for part in target.made.parts:
        out.append((part.name, _piece(delta, target, part, first)))
        first += part.count
    return out


def _piece(delta: Delta, target: Target, part: Part, first: int) -> Placed:
    shape = target.meta.shape
    turned = (shape[0], math.prod(shape[1:])) if part.turned else None
    return Placed(delta, first, part.start, part.count, turned)


def _refused(stored: StoredTensors, reason: str) -> SourceError:
    return SourceError(
        "CV-S154",
        f"the LoRA `{printable(stored.label)}` cannot be applied: {reason}",
        where=Where(source=stored.label),
        hint="merge it into its base with the tool that made it, and name the merged model",
    )
