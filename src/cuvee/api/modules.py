"""Merged tensors into a live module: every key, or an error before anything is touched."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

from cuvee.api.apart import overlapping, span
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
    found = module.state_dict() if hasattr(module, "state_dict") else None
    if found is None:
        raise _refused(f"a module is needed to put the merge into, not a {type(module).__name__}")
    own = plain(found)
    tied = _tied(own)
    _refuse_others(tensors, own, tied, found)
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
        _refuse_loss(name, tensor, own[name].dtype)
    module.load_state_dict(dict(tensors), strict=False)
    return module


def plain(own: Mapping[str, Any]) -> dict[str, Tensor]:
    """The entries of a module's state that are tensors with a place for every element."""
    return {
        name: entry
        for name, entry in own.items()
        if isinstance(entry, torch.Tensor)
        and not torch.nn.parameter.is_lazy(entry)
        and entry.layout == torch.strided
        and not entry.is_quantized
    }


def _refused(text: str, hint: str | None = None) -> UsageError:
    return UsageError("CV-U012", text, hint=hint)


def _refuse_others(tensors: Tensors, own: Tensors, tied: Mapping[str, str], every: Mapping[str, Any]) -> None:
    wrong = [
        f"`{printable(n)}` of the module is no plain tensor" for n in every if n not in own and n in tensors
    ]
    wrong += [f"`{printable(n)}` is the module's alone" for n in every if n not in tensors and n not in tied]
    wrong += [f"`{printable(n)}` is the merge's alone" for n in tensors if n not in every]
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
    """Refuse a module of which two entries share an element, or one repeats its own."""
    for name, tensor in own.items():
        if any(size > 1 and step == 0 for size, step in zip(tensor.shape, tensor.stride(), strict=True)):
            raise _refused(f"`{printable(name)}` of the module is expanded: several entries are one number")
    # A subclass of tensors may have its memory elsewhere.
    spans = [(*span(t), name) for name, t in own.items() if t.numel() and type(t) is torch.Tensor]
    for one, other in overlapping(spans):
        if own[one].device == own[other].device and _meet(own[one], own[other]):
            text = f"`{printable(one)}` and `{printable(other)}` of the module share a part of their memory"
            raise _refused(text, "give each of them memory of its own (`clone`)")


def _meet(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors whose spans overlap share an element: columns of one matrix do not."""
    if (one.is_contiguous() and other.is_contiguous()) or one.element_size() != other.element_size():
        return True
    size, begin = one.element_size(), min(one.data_ptr(), other.data_ptr())
    if (one.data_ptr() - other.data_ptr()) % size:
        return True
    taken = torch.zeros((max(span(one)[1], span(other)[1]) - begin) // size, dtype=torch.bool)
    for tensor in (one, other):
        view = taken.as_strided(tensor.shape, tensor.stride(), (tensor.data_ptr() - begin) // size)
        if view.any():
            return True
        view.fill_(True)
    return False


def _same(one: Tensor, other: Tensor) -> bool:
    return one.equal(other) or bool(
        one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
    )


def _refuse_loss(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    """Refuse values that a type does not hold: too large ones, and fractions or signs where it has none."""
    lost = _lost(tensor, dtype)
    if lost:
        kind = str(dtype).removeprefix("torch.")
        text = f"{lost} value{'s' * (lost > 1)} of `{printable(name)}` do not fit into the module's {kind}"
        raise _refused(text, "convert the module to a wider type, or scale what is merged")


def _lost(tensor: Tensor, dtype: torch.dtype) -> int:
    """How many values change for more than a rounding."""
    if tensor.dtype == dtype or not tensor.numel():
        return 0
    if tensor.is_complex() and not dtype.is_complex:
        return int((tensor.imag != 0).sum()) or _lost(tensor.real, dtype)
    if dtype.is_complex:
        return _lost(torch.view_as_real(tensor) if tensor.is_complex() else tensor, dtype.to_real())
    if not dtype.is_floating_point:
        return int((tensor.to(dtype).to(tensor.dtype) != tensor).sum())
    return _overflown(tensor, torch.finfo(dtype))


def _overflown(tensor: Tensor, kind: torch.finfo) -> int:
    """How many finite values round to more than the largest of a type of floats."""
    if tensor.is_floating_point() and kind.max >= torch.finfo(tensor.dtype).max:
        return 0
    # Whole numbers have no infinity, and eight bits no arithmetic.
    wide = tensor if tensor.is_floating_point() and tensor.element_size() > 1 else tensor.double()
    least, largest = torch.aminmax(wide)
    if max(-float(least), float(largest)) <= kind.max:  # False where there is a NaN
        return 0
    half_step = kind.eps / 2 * 2.0 ** math.floor(math.log2(kind.max))
    return int(((wide.abs() >= kind.max + half_step) & wide.isfinite()).sum())
