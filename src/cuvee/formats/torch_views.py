"""From a checkpoint's value to named views: which dictionary is the model, and what is left out.

Must not read elements.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cuvee.core.limits import Limits
from cuvee.core.names import printable
from cuvee.formats.pickle_values import Known, Opaque, Storage, View
from cuvee.formats.refusals import over_limit, quoted, unusable

# Where trainers put the model among optimizer state and counters; the first that holds tensors is taken.
NESTS = ("state_dict", "model_state_dict", "model", "module", "params_ema", "params")
_DEPTH = 4


@dataclass(frozen=True, slots=True)
class NamedViews:
    """The model's tensors, the keys they were nested under, and the entries that are no tensors of it."""

    views: dict[str, View]
    nest: tuple[str, ...]
    skipped: tuple[str, ...]


def named_views(value: Any, path: Path, limits: Limits) -> NamedViews:
    """The tensors of a state dict, which may lie under one of the keys that trainers use."""
    nest: list[str] = []
    skipped: list[str] = []
    while True:
        if not isinstance(value, dict):
            raise unusable(
                "CV-S064", path, f"the checkpoint is a {_kind(value)}, expected a dictionary of tensors"
            )
        key = None if _views(value) else _nest(value)
        skipped += [_entry(nest, k, v) for k, v in value.items() if k != key and not _is_named_view(k, v)]
        if key is None:
            break
        nest.append(key)
        value = value[key]
    views = _views(value)
    if not views:
        raise _no_tensors(path, value)
    for name in views:
        if len(name.encode("utf-8", "replace")) > limits.name_bytes:
            raise over_limit(path, "length of a name in bytes", len(name), limits.name_bytes, tensor=name)
    if len(views) > limits.tensors:
        raise over_limit(path, "number of tensors", len(views), limits.tensors)
    return NamedViews(views, tuple(nest), tuple(skipped))


def _is_named_view(key: Any, value: Any) -> bool:
    return isinstance(key, str) and isinstance(value, View)


def _views(value: dict[Any, Any]) -> dict[str, View]:
    return {k: v for k, v in value.items() if _is_named_view(k, v)}


def _nest(value: dict[Any, Any], depth: int = 0) -> str | None:
    """The well-known key under which tensors lie."""
    for key in NESTS:
        inner = value.get(key)
        if isinstance(inner, dict) and (_views(inner) or (depth < _DEPTH and _nest(inner, depth + 1))):
            return key
    return None


def _entry(nest: list[str], key: Any, value: Any) -> str:
    shown = printable(str(key)[:200], 80) if isinstance(key, (str, int)) else f"a {_kind(key)}"
    return f"{'.'.join([*nest, shown])} ({_kind(value)})"


def _kind(value: Any) -> str:
    if isinstance(value, View):
        return "tensor"
    if isinstance(value, (Known, Opaque)):
        return value.role if isinstance(value, Known) else value.kind
    return "storage" if isinstance(value, Storage) else type(value).__name__.lower()


def _no_tensors(path: Path, value: dict[Any, Any]) -> Exception:
    holders = [k for k, v in value.items() if isinstance(k, str) and isinstance(v, dict) and _views(v)]
    found = f"; there are some under {quoted(holders[0])}" if holders else ""
    return unusable(
        "CV-S064",
        path,
        f"the checkpoint holds no tensors by name, neither directly nor under a usual key{found}",
        hint="save the state dict itself" if holders else None,
    )
