"""Tensors that are already in memory: dictionaries of tensors or arrays, torch modules.

A module's tied weights appear once, under their first name; a dictionary keeps every name its owner gave.
PEFT models are taken apart in `live_peft`. Must not change what it was given, nor copy it whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from cuvee.core.dtypes import BY_NAME
from cuvee.core.lazy import torch
from cuvee.core.names import printable
from cuvee.core.tensors import Extent, Held, TensorMeta
from cuvee.errors import Diagnostic, SourceError, UsageError, Where
from cuvee.sources.prefixes import strip_prefixes
from cuvee.sources.source import Source, bounded, meta_of, note

if TYPE_CHECKING:
    from torch import Tensor


class MemorySource:
    """Named tensors held elsewhere; reading is a view of them where their layout allows it."""

    def __init__(
        self,
        held: Mapping[str, Tensor],
        label: str,
        config: Mapping[str, Any] | None = None,
        notes: tuple[Diagnostic, ...] = (),
    ) -> None:
        self.label = label
        self.config = config
        metas = {name: _meta(name, tensor, label) for name, tensor in held.items()}
        names, stripped = strip_prefixes(metas, label)
        self.notes = (*notes, *stripped)
        self.tensors: Mapping[str, TensorMeta] = {n: replace(metas[old], name=n) for n, old in names.items()}
        self._held: dict[str, Tensor] = {name: held[old].detach() for name, old in names.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Elements [start, stop) on the CPU, 1-D; a view of the tensor itself where it is contiguous."""
        start, stop = bounded(meta_of(self.tensors, name, self.label), start, stop)
        tensor = self._held.get(name)
        if tensor is None:
            raise SourceError("CV-S045", "the source was closed", where=Where(source=self.label))
        return elements(tensor, start, stop).cpu()

    def extent(self, name: str) -> Extent | None:
        """Always None: there are no bytes on disk."""
        meta_of(self.tensors, name, self.label)
        return None

    def held(self, name: str) -> Held | None:
        """Where the tensor lies in memory; None where it has gaps, is elsewhere than on the CPU, or is a lazy view."""
        tensor = self._held.get(name)
        if tensor is None or tensor.device.type != "cpu" or not tensor.is_contiguous() or tensor.is_neg():
            return None
        return Held(tensor.data_ptr(), tensor.numel() * tensor.element_size())

    def file(self, name: str) -> bytes | None:
        """Always None: there are no side files."""
        return None

    def files(self) -> list[str]:
        """Always empty."""
        return []

    def identity(self) -> dict[str, Any]:
        """Names, dtypes and shapes; the values are not hashed, so a lock cannot pin them."""
        table = [[name, meta.dtype.code, list(meta.shape)] for name, meta in self.tensors.items()]
        digest = "header-blake3:" + blake3(json.dumps(table, separators=(",", ":")).encode()).hexdigest()
        entry = {
            "name": "memory",
            "size": sum(meta.nbytes for meta in self.tensors.values()),
            "digest": digest,
        }
        return {"kind": "memory", "name": self.label, "revision": None, "files": [entry]}

    def close(self) -> None:
        """Let go of the tensors."""
        self._held = {}


def open_memory(what: Any, label: str) -> Source:
    """A source over a mapping of names to tensors or NumPy arrays, a torch module, or a PEFT model."""
    if isinstance(what, Mapping):
        return MemorySource({name: _tensor(name, value, label) for name, value in what.items()}, label)
    if not isinstance(what, torch.nn.Module):
        kind = type(what).__name__
        message = f"`{kind}` is not a source: expected a reference, a mapping of tensors, or a torch module"
        raise UsageError("CV-S037", message, where=Where(source=label))
    if hasattr(what, "peft_config"):
        from cuvee.sources.live_peft import open_peft

        return open_peft(what, label)
    return module_source(what, label)


def module_source(module: Any, label: str, state: Mapping[str, Tensor] | None = None) -> MemorySource:
    """The state of a torch module (or the given part of it), tied weights once, with its configuration."""
    held, notes = _untied(module.state_dict() if state is None else state, label)
    return MemorySource(held, label, config_of(module), notes)


def config_of(module: Any) -> Mapping[str, Any] | None:
    """What `module.config.to_dict()` says, where there is such a thing."""
    config: Any = getattr(getattr(module, "_orig_mod", module), "config", None)
    found = config.to_dict() if hasattr(config, "to_dict") else config
    return found if isinstance(found, Mapping) else None


def elements(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Elements [start, stop), row-major, without gaps; of a strided tensor only the rows are copied."""
    if tensor.is_contiguous() or tensor.dim() < 2:
        found = tensor.reshape(-1)[start:stop]
    elif stop <= start:
        return tensor.new_empty(0)
    else:
        row = tensor[0].numel()
        first = start // row
        rows = tensor[first : -(-stop // row)].reshape(-1)
        found = rows[start - first * row : stop - first * row]
    return found if found.stride() == (1,) else found.clone(memory_format=torch.contiguous_format)


def _untied(state: Mapping[str, Any], label: str) -> tuple[dict[str, Tensor], tuple[Diagnostic, ...]]:
    """Each piece of memory once, under its first name, and a note for every other name."""
    held: dict[str, Tensor] = {}
    first: dict[tuple[Any, ...], str] = {}
    notes = []
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):  # extra state of a module: not weights
            notes.append(note("CV-S034", f"`{printable(name)}` is not a tensor and is left out", label))
            continue
        place = (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride())
        owner = first.setdefault(place, name) if tensor.numel() and tensor.device.type != "meta" else name
        if owner == name:
            held[name] = tensor
        else:
            message = f"`{printable(name)}` is tied to `{printable(owner)}` and appears once, under that name"
            notes.append(note("CV-S035", message, label))
    return held, tuple(notes)


def _tensor(name: Any, value: Any, label: str) -> Tensor:
    """A tensor, or a NumPy array as one (shared memory where NumPy allows writing, else a copy)."""
    if not isinstance(name, str):
        raise UsageError("CV-S037", f"names of tensors are text, got `{printable(str(name))}`")
    if isinstance(value, torch.Tensor):
        return value
    if hasattr(value, "__array__") and hasattr(value, "dtype"):
        try:
            return torch.from_numpy(value if value.flags.writeable else value.copy())
        except (TypeError, ValueError, AttributeError):
            pass
    found = getattr(value, "dtype", None) or type(value).__name__
    raise UsageError(
        "CV-S037",
        f"`{printable(name)}` is neither a tensor nor an array of numbers: `{printable(str(found))}`",
        where=Where(source=label, tensor=printable(name)),
    )


def _meta(name: str, tensor: Tensor, label: str) -> TensorMeta:
    dtype = BY_NAME.get(str(tensor.dtype).removeprefix("torch."))
    plain = tensor.layout == torch.strided and tensor.device.type != "meta" and not tensor.is_quantized
    if dtype is None or not plain:
        what = str(tensor.dtype) if dtype is None else f"on `{tensor.device}` with layout `{tensor.layout}`"
        raise SourceError(
            "CV-S038",
            f"`{printable(name)}` cannot be read: it is {what}",
            where=Where(source=label, tensor=printable(name)),
            hint="load the model with real, dense weights",
        )
    return TensorMeta(name, dtype, tuple(tensor.shape))
