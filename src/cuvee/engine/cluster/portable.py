"""What kernels count, as data that can be sent: C arrays become their type and bytes, and arrays again."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from typing import Any

from cuvee.engine.fused.selection import Window

_TYPES: dict[str, Any] = {
    kind._type_: kind for kind in (ctypes.c_double, ctypes.c_uint32, ctypes.c_int64, ctypes.c_uint64)
}


@dataclass(frozen=True, slots=True)
class Packed:
    """A C array: the code of its type, and its bytes."""

    code: str
    data: bytes


def portable(value: Any) -> Any:
    """The value with every C array packed."""
    if isinstance(value, ctypes.Array):
        return Packed(value._type_._type_, bytes(value))
    if isinstance(value, Window):
        return replace(value, keys=portable(value.keys))
    if isinstance(value, dict):
        return {key: portable(one) for key, one in value.items()}
    return [portable(one) for one in value] if isinstance(value, (list, tuple)) else value


def restored(value: Any) -> Any:
    """What `portable` was given."""
    if isinstance(value, Packed):
        kind = _TYPES[value.code]
        return (kind * (len(value.data) // ctypes.sizeof(kind))).from_buffer_copy(value.data)
    if isinstance(value, Window):
        return replace(value, keys=restored(value.keys))
    if isinstance(value, dict):
        return {key: restored(one) for key, one in value.items()}
    return [restored(one) for one in value] if isinstance(value, list) else value
