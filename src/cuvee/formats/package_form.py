"""The form of a package: what `package.json` says, which tensors each codec consists of, and how bits are packed.

A package holds several models as one base, tensors they share and a code for each task. Both who writes packages and
who reads them goes by this table. Owns names, types and shapes; must not know folders, methods or what is computed.

    codec          of a task                           shared                      the task's change
    mask           mask (bits)                         vector                      mask ⊙ vector · rescaler
    sign           sign (bits), scale                                              ± scale
    low_rank       left (m × r), right (r × n)                                     left @ right
    sparse         indices, values                                                 values at indices
    dense          delta                                                           delta
    basis          coefficients (p)                    basis (p × shape)           Σ cⱼ basisⱼ
    basis_product  left_, right_coefficients (p)       left_, right_basis (p × …)  Σ cⱼ leftⱼ @ Σ dⱼ rightⱼ
    whole          whole                                                           stands in for the base's tensor
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from cuvee.core.dtypes import BY_NAME, FLOAT64, DType
from cuvee.core.lazy import numpy, torch
from cuvee.core.tensors import TensorMeta
from cuvee.formats.folder_files import PACKAGE

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
FILE = PACKAGE
BASE, SHARED = "base", "shared"  # folders
RESCALER = "::rescaler"  # of a task: one number for all its masks
Codec = Literal["mask", "sign", "low_rank", "sparse", "dense", "basis", "basis_product", "whole"]
CODECS: tuple[Codec, ...] = get_args(Codec)
PARTS: Mapping[Codec, tuple[str, ...]] = {
    "mask": ("mask",),
    "sign": ("sign", "scale"),
    "low_rank": ("left", "right"),
    "sparse": ("indices", "values"),
    "dense": ("delta",),
    "basis": ("coefficients",),
    "basis_product": ("left_coefficients", "right_coefficients"),
    "whole": ("whole",),
}
COMMON: Mapping[Codec, tuple[str, ...]] = {
    "mask": ("vector",),
    "basis": ("basis",),
    "basis_product": ("left_basis", "right_basis"),
}
_UINT8, _INT32, _INT64 = BY_NAME["uint8"], BY_NAME["int32"], BY_NAME["int64"]


@dataclass(frozen=True, slots=True)
class Task:
    """One task of a package: its folder, the codec of each tensor it changes, base tensors it lacks, bytes stored."""

    folder: str
    codecs: Mapping[str, Codec]
    absent: tuple[str, ...] = ()
    rescaled: bool = False
    nbytes: int = 0


@dataclass(frozen=True, slots=True)
class BaseModel:
    """The base a package adds to: included, or named, with samples of its files by which it is known again."""

    included: bool
    path: str = ""
    revision: str | None = None
    samples: tuple[Mapping[str, str], ...] = ()
    nbytes: int = 0


@dataclass(frozen=True, slots=True)
class Package:
    """What `package.json` says."""

    method: str
    base: BaseModel
    tasks: Mapping[str, Task]
    shared_bytes: int = 0
    parameters: Mapping[str, Any] = field(default_factory=dict)


def part_name(tensor: str, part: str) -> str:
    """The name under which a part of a tensor's code is stored."""
    return f"{tensor}::{part}"


def parts_of(
    name: str, codec: Codec, shape: tuple[int, ...], dtype: DType, count: int = 0
) -> list[TensorMeta]:
    """What a task stores of one tensor; `count` is the rank, the number of entries or of basis tensors."""
    size = math.prod(shape)
    rows, columns = matrix(shape)
    bits = (size + 7) // 8
    forms: Mapping[Codec, list[tuple[DType, tuple[int, ...]]]] = {
        "mask": [(_UINT8, (bits,))],
        "sign": [(_UINT8, (bits,)), (FLOAT64, (1,))],
        "low_rank": [(dtype, (rows, count)), (dtype, (count, columns))],
        "sparse": [(index_type(size), (count,)), (dtype, (count,))],
        "dense": [(dtype, shape)],
        "basis": [(FLOAT64, (count,))],
        "basis_product": [(FLOAT64, (count,)), (FLOAT64, (count,))],
        "whole": [(dtype, shape)],
    }
    return [
        TensorMeta(part_name(name, part), kind, form)
        for part, (kind, form) in zip(PARTS[codec], forms[codec], strict=True)
    ]


def index_type(size: int) -> DType:
    """The type of positions in a tensor of this size."""
    return _INT32 if size < 2**31 else _INT64


def matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a tensor as a matrix: the first axis counts rows."""
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))


def packed(flags: Tensor) -> Tensor:
    """Truth values (flat) as bytes: element 8i + j is bit j of byte i; the last byte is filled with zeros."""
    found = numpy.packbits(flags.detach().reshape(-1).cpu().numpy(), bitorder="little")
    return torch.from_numpy(found)


def unpacked(data: Tensor, start: int, stop: int) -> Tensor:
    """The truth values [start, stop), counted from the first bit of `data`."""
    shifts = torch.arange(8, dtype=torch.uint8, device=data.device)
    return ((data.reshape(-1, 1) >> shifts) & 1).reshape(-1)[start:stop].bool()


def to_json(package: Package) -> dict[str, Any]:
    """The content of `package.json`."""
    base = package.base
    named = {"path": base.path, "revision": base.revision, "samples": [dict(one) for one in base.samples]}
    tasks = sum(task.nbytes for task in package.tasks.values())
    own = base.nbytes if base.included else 0
    return {
        "cuvee_package": FORMAT,
        "method": package.method,
        "parameters": dict(package.parameters),
        "base": {"included": base.included, "bytes": base.nbytes, **({} if base.included else named)},
        "tasks": {name: _task_json(task) for name, task in package.tasks.items()},
        "bytes": {
            "base": own,
            "shared": package.shared_bytes,
            "tasks": tasks,
            "total": own + package.shared_bytes + tasks,
            "separate_models": base.nbytes * len(package.tasks),
        },
    }


def _task_json(task: Task) -> dict[str, Any]:
    by_codec: dict[str, list[str]] = {}
    for name, codec in task.codecs.items():
        by_codec.setdefault(codec, []).append(name)
    return {
        "folder": task.folder,
        "bytes": task.nbytes,
        "rescaled": task.rescaled,
        "codecs": by_codec,
        "absent": list(task.absent),
    }


class Malformed(ValueError):
    """What is wrong with the content of `package.json`, as the end of a sentence."""


def from_json(content: Any) -> Package:
    """The package that JSON data describes; Malformed when it describes none."""
    if not isinstance(content, dict) or content.get("cuvee_package") != FORMAT:
        found = content.get("cuvee_package") if isinstance(content, dict) else None
        raise Malformed(f"has format version {found!r}, this cuvee reads {FORMAT}")
    base, tasks, sizes = (_mapping(content, key) for key in ("base", "tasks", "bytes"))
    read = {}
    folders: set[str] = {BASE, SHARED}
    for name, entry in tasks.items():
        read[name] = task = _task(name, entry)
        if task.folder.casefold() in folders:
            raise Malformed(f"has two parts in the folder {task.folder!r}")
        folders.add(task.folder.casefold())
    shared = sizes.get("shared", 0)
    method = content.get("method")
    if not isinstance(method, str) or not _is_size(shared):
        raise Malformed("has a field of the wrong type: `method` or `bytes`")
    return Package(method, _base(base), read, shared, _mapping(content, "parameters"))


def _base(entry: Mapping[str, Any]) -> BaseModel:
    included, nbytes = entry.get("included"), entry.get("bytes")
    path, revision, samples = entry.get("path", ""), entry.get("revision"), entry.get("samples", [])
    flat = isinstance(samples, list) and all(
        isinstance(one, dict) and all(isinstance(v, str) for v in one.values()) for one in samples
    )
    texts = isinstance(path, str) and isinstance(revision, (str, type(None)))
    if not isinstance(included, bool) or not _is_size(nbytes) or not flat or not texts:
        raise Malformed("has a field of the wrong type in `base`")
    return BaseModel(included, path, revision, tuple(samples), int(nbytes or 0))


def _task(name: str, entry: Any) -> Task:
    fields = entry if isinstance(entry, dict) else {}
    folder, nbytes, rescaled = fields.get("folder"), fields.get("bytes"), fields.get("rescaled")
    codecs, absent = fields.get("codecs"), fields.get("absent")
    if (
        not isinstance(folder, str)
        or not folder
        or not _is_size(nbytes)
        or not isinstance(rescaled, bool)
        or not isinstance(codecs, dict)
        or not _are_texts(absent)
    ):
        raise Malformed(f"has a field of the wrong type in the task {name!r}")
    chosen: dict[str, Codec] = {}
    for codec, names in codecs.items():
        if codec not in CODECS or not _are_texts(names):
            raise Malformed(f"has an unknown codec {codec!r} in the task {name!r}")
        for tensor in names:
            if tensor in chosen:
                raise Malformed(f"gives the tensor {tensor!r} of the task {name!r} two codecs")
            chosen[tensor] = codec
    return Task(folder, chosen, tuple(absent or ()), rescaled, int(nbytes or 0))


def _mapping(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = content.get(key)
    if not isinstance(found, dict):
        raise Malformed(f"has no mapping `{key}`")
    return found


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 0
