"""Merged tensors into a live module: every key, or an error before anything is touched."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import TYPE_CHECKING

from cuvee.api.apart import span
from cuvee.core.lazy import torch
from cuvee.core.names import printable
from cuvee.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

_SHOWN = 4
Tensors = Mapping[str, "Tensor"]


def put(tensors: Tensors, module: Module) -> Module:
    """Load the tensors into the module and return it.

    UsageError CV-U012 where names or shapes differ, where parameters or buffers of one memory (tied ones) would get two
    values, where they share it in part, where the module has no memory yet, and where its type holds no such values.
    """
    own: Tensors | None = module.state_dict() if hasattr(module, "state_dict") else None
    if own is None:
        raise _refused(f"a module is needed to put the merge into, not a {type(module).__name__}")
    tied = _tied(own)
    _refuse_others(tensors, own, tied)
    empty = next((name for name in tensors if own[name].is_meta), None)
    if empty is not None:
        text = f"the module has no memory for `{printable(empty)}` (device `meta`)"
        raise _refused(text, "`module.to_empty(device=...)` gives it some")
    _refuse_shared({name: tensor for name, tensor in own.items() if name not in tied})
    for name, first in tied.items():
        if name in tensors and first in tensors and not _same(tensors[name], tensors[first]):
            text = f"the module ties `{printable(name)}` to `{printable(first)}`, and the merge has two values for them"
            raise _refused(text, "untie them in the module's config, or leave one out of the merge")
    for name, tensor in tensors.items():
        _refuse_overflow(name, tensor, own[name].dtype)
    module.load_state_dict(dict(tensors), strict=False)
    return module


def _refused(text: str, hint: str | None = None) -> UsageError:
    return UsageError("CV-U012", text, hint=hint)


def _refuse_others(tensors: Tensors, own: Tensors, tied: Mapping[str, str]) -> None:
    wrong = [f"`{printable(n)}` is the module's alone" for n in own if n not in tensors and n not in tied]
    wrong += [f"`{printable(n)}` is the merge's alone" for n in tensors if n not in own]
    wrong += [
        f"`{printable(n)}` is {list(own[n].shape)} in the module and {list(t.shape)} in the merge"
        for n, t in tensors.items()
        if n in own and own[n].shape != t.shape
    ]
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        shown = "; ".join(wrong[:_SHOWN])
        raise _refused(f"the module and the merge do not have the same tensors: {shown}{more}")


def _tied(own: Tensors) -> dict[str, str]:
    """Entries that are the same memory as an earlier one: name → the earlier name."""
    firsts: dict[Hashable, str] = {}
    found = {}
    for name, tensor in own.items():
        storage = tensor.untyped_storage()
        place = (storage._cdata, tensor.storage_offset(), tensor.dtype, tensor.shape, tensor.stride())
        first = firsts.setdefault(place, name)
        if first != name and tensor.numel():
            found[name] = first
    return found


def _refuse_shared(own: Tensors) -> None:
    """Refuse a module of which two entries share a part of their memory, or one repeats an element."""
    for name, tensor in own.items():
        if any(size > 1 and step == 0 for size, step in zip(tensor.shape, tensor.stride(), strict=True)):
            raise _refused(f"`{printable(name)}` of the module is expanded: several entries are one number")
    far = 0, ""
    for start, stop, name in sorted(_spans(own)):
        if start < far[0]:
            text = f"`{printable(far[1])}` and `{printable(name)}` of the module share a part of their memory"
            raise _refused(text, "give each of them memory of its own (`clone`)")
        far = max(far, (stop, name))


def _spans(own: Tensors) -> Iterator[tuple[int, int, str]]:
    # On another device than the CPU addresses are of that device alone.
    if len({tensor.device for tensor in own.values()}) == 1:
        for name, tensor in own.items():
            if tensor.numel():
                yield *span(tensor), name


def _same(one: Tensor, other: Tensor) -> bool:
    return one.equal(other) or bool(
        one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
    )


def _refuse_overflow(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    if not (tensor.is_floating_point() and dtype.is_floating_point):
        return
    if torch.finfo(dtype).max < torch.finfo(tensor.dtype).max:
        lost = int((~tensor.to(dtype).isfinite() & tensor.isfinite()).sum())
        if lost:
            kind = str(dtype).removeprefix("torch.")
            text = (
                f"{lost} value{'s' * (lost > 1)} of `{printable(name)}` do not fit into the module's {kind}"
            )
            raise _refused(text, "convert the module to a wider type, or scale what is merged")
