"""What a checkpoint's pickle may turn into: plain values, storages and views, never objects with behaviour.

`Known` stands for the few global names a state dict needs; a name outside the table is refused where it is
read. Must not import torch: a view is only numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cuvee.core.dtypes import BY_NAME, DType


@dataclass(frozen=True, slots=True)
class Known:
    """A global name that may appear in a checkpoint: what it is for, and the dtype it stands for."""

    name: str
    role: str  # ordered_dict, set, size, rebuild, storage, dtype, encode, opaque, parameter
    dtype: DType | None = None


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of `numel` elements kept under `key` in the checkpoint."""

    key: str
    dtype: DType  # of the storage; bytes for an untyped one
    numel: int
    offset: int  # first element of the window that views may use; only legacy files have windows
    length: int  # elements in the window


@dataclass(frozen=True, slots=True)
class View:
    """A tensor: elements of a storage, in elements of the view's own dtype."""

    storage: Storage
    dtype: DType
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Opaque:
    """A value that is no tensor and of which nothing but the kind is kept (a device, a size)."""

    kind: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a container held: the pickle's value, and where each storage begins in the file."""

    value: Any
    begins: dict[str, int]


_BYTES = BY_NAME["uint8"]

_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
}

_DTYPE_ALIASES = {"float": "float32", "double": "float64", "half": "float16", "long": "int64", "int": "int32"}

_REBUILDS = (
    "_rebuild_tensor",
    "_rebuild_tensor_v2",
    "_rebuild_tensor_v3",
    "_rebuild_parameter",
    "_rebuild_parameter_with_state",
)


def _table() -> dict[tuple[str, str], Known]:
    out = {
        ("collections", "OrderedDict"): Known("OrderedDict", "ordered_dict"),
        ("collections", "Counter"): Known("Counter", "ordered_dict"),
        ("torch", "Size"): Known("Size", "size"),
        ("torch", "device"): Known("device", "opaque"),
        ("torch", "Tensor"): Known("Tensor", "parameter"),
        ("torch.nn.parameter", "Parameter"): Known("Parameter", "parameter"),
        ("torch._tensor", "_rebuild_from_type_v2"): Known("_rebuild_from_type_v2", "rebuild"),
        ("_codecs", "encode"): Known("encode", "encode"),
        ("torch.storage", "UntypedStorage"): Known("UntypedStorage", "storage", _BYTES),
        ("torch", "UntypedStorage"): Known("UntypedStorage", "storage", _BYTES),
        ("torch.serialization", "_get_layout"): Known("_get_layout", "opaque"),
    }
    for module in ("builtins", "__builtin__"):
        out[module, "set"] = Known("set", "set")
        out[module, "bytearray"] = Known("bytearray", "opaque")
        out[module, "complex"] = Known("complex", "opaque")
    for name in _REBUILDS:
        out["torch._utils", name] = Known(name, "rebuild")
    for storage, dtype in _STORAGES.items():
        for module in ("torch", "torch.cuda", "torch.storage"):
            out[module, storage] = Known(storage, "storage", BY_NAME[dtype])
    for name, dtype in [(n, n) for n in BY_NAME] + list(_DTYPE_ALIASES.items()):
        out["torch", name] = Known(name, "dtype", BY_NAME[dtype])
    return out


GLOBALS = _table()
