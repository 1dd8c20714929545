"""Checkpoints in block-scaled float8, read as the float32 numbers they stand for.

weight = float8 · scale, with one scale per block of rows and columns (`weight_scale_inv`, 128 × 128 unless
the config says otherwise: DeepSeek-V3, arXiv:2412.19437 §3.3), per row, or per tensor (`weight_scale`).
Both names hold factors that multiply. Other kinds of quantisation are refused with the way out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.core.dtypes import BFLOAT16, FLOAT32, DType
from cuvee.core.lazy import torch
from cuvee.core.names import printable
from cuvee.core.sampling import Span
from cuvee.core.tensors import Extent, Stored, TensorMeta
from cuvee.errors import CorruptFile, SourceError, Where
from cuvee.sources.source import (
    Source,
    bounded,
    kept_dtype,
    meta_of,
    note,
    stored_form,
    unfetched,
    weight_files,
)

if TYPE_CHECKING:
    from torch import Tensor

    from cuvee.sources.remote_file import RemoteFile

_SCALES = ("_scale_inv", "_scale")  # of `x.weight`; for fused experts, of `x.gate_up_proj`
_ACTIVATIONS = re.compile(r".*\.(input_scale|activation_scale|input_scale_inv|activation_scale_ub)")
_DEFAULT_BLOCK = (128, 128)
_READABLE = ("fp8", "fbgemm_fp8", "compressed-tensors", "modelopt")
_REMEDY = "load it in transformers, dequantise it, save it in bfloat16, and name that folder"


@dataclass(frozen=True, slots=True)
class _Scale:
    """A scale tensor and the rows and columns that one of its entries covers; `grid` None: one for all."""

    name: str
    rows: int = 1
    columns: int = 1
    grid: tuple[int, int] | None = None  # scales per matrix: down, across


def dequantised(source: Source) -> Source:
    """The source itself when its tensors are plain, else a float32 view; SourceError for other schemes."""
    block = _block(source)
    scales: dict[str, _Scale] = {}
    hidden: set[str] = set()
    for name, meta in source.tensors.items():
        if meta.dtype.code.startswith("F8_"):
            found = next((name + end for end in _SCALES if name + end in source.tensors), None)
            if found is not None:
                scales[name] = _scale(meta, source.tensors[found], block, source.label)
                hidden.add(found)
            elif block is not None:
                raise _corrupt(
                    name, f"`{printable(name)}` is float8 and has no scale beside it", source.label
                )
    if not scales:
        return source
    hidden |= {name for name in source.tensors if _ACTIVATIONS.fullmatch(name)}
    return DequantisedSource(source, scales, hidden)


class DequantisedSource:
    """A source whose float8 weights are multiplied by their scales; the scales themselves are hidden."""

    def __init__(self, base: Source, scales: Mapping[str, _Scale], hidden: set[str]) -> None:
        self.label = base.label
        config = base.config
        self.config = {k: v for k, v in config.items() if k != "quantization_config"} if config else config
        message = f"{len(scales)} float8 tensors are read as float32 (value × scale)"
        self.notes = (*base.notes, note("CV-S030", message, base.label))
        self.tensors: Mapping[str, TensorMeta] = {
            name: replace(meta, dtype=FLOAT32) if name in scales else meta
            for name, meta in base.tensors.items()
            if name not in hidden
        }
        self._base = base
        self._scales = scales

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Elements [start, stop), multiplied by their scales in float32."""
        start, stop = bounded(meta_of(self.tensors, name, self.label), start, stop)
        values = self._base.read(name, start, stop)
        scale = self._scales.get(name)
        if scale is None:
            return values
        values = values.to(torch.float32)
        if start < stop:
            values *= self._factors(scale, self.tensors[name].shape, start, stop)
        return values

    def _factors(self, scale: _Scale, shape: tuple[int, ...], start: int, stop: int) -> Tensor:
        """The scale of each element in [start, stop)."""
        if scale.grid is None:
            return self._base.read(scale.name).to(torch.float32)
        height, width = shape[-2:]
        first, last = start // width, -(-stop // width)
        down, across = scale.grid
        rows = torch.arange(first, last)
        lines = rows // height * down + rows % height // scale.rows
        low, high = int(lines[0]), int(lines[-1]) + 1
        table = self._base.read(scale.name, low * across, high * across).to(torch.float32).reshape(-1, across)
        wide = table.repeat_interleave(scale.columns, dim=1)[:, :width]
        return wide[lines - low].reshape(-1)[start - first * width : stop - first * width]

    def kept_dtype(self, name: str) -> DType:
        """bfloat16 for weights that were float8: what such checkpoints are trained and dequantised in."""
        return BFLOAT16 if name in self._scales else kept_dtype(self._base, name)

    def stored(self, name: str) -> Stored:
        """As in the base: float8 weights are one byte an element, whatever `read` gives."""
        return stored_form(self._base, name)

    def extent(self, name: str) -> Extent | None:
        """The base's bytes; None for dequantised tensors."""
        meta_of(self.tensors, name, self.label)
        return None if name in self._scales else self._base.extent(name)

    def file(self, name: str) -> bytes | None:
        """A side file of the base."""
        return self._base.file(name)

    def files(self) -> list[str]:
        """Side files of the base."""
        return self._base.files()

    def unfetched(self) -> list[RemoteFile]:
        """The files of the base of which only the header is here."""
        return unfetched(self._base)

    def weight_files(self) -> Mapping[Path, tuple[Span, ...]]:
        """The base's files."""
        return weight_files(self._base)

    def identity(self) -> dict[str, Any]:
        """The base's identity."""
        return self._base.identity()

    def close(self) -> None:
        """Close the base."""
        self._base.close()


def _block(source: Source) -> tuple[int, int] | None:
    """The block of the config's float8 scheme, None when it names none; SourceError for other schemes."""
    quantisation = (source.config or {}).get("quantization_config")
    if not isinstance(quantisation, Mapping):
        return None
    kind = str(quantisation.get("quant_method", "")).lower()
    if kind not in _READABLE or not _is_float8(kind, quantisation):
        raise SourceError(
            "CV-S031",
            f"the weights are quantised by `{printable(kind or 'an unnamed method')}`,"
            " which cannot be merged as they are",
            where=Where(source=source.label, file="config.json", path="quantization_config"),
            hint=_REMEDY,
        )
    size = quantisation.get("weight_block_size")
    if size is None:
        return _DEFAULT_BLOCK
    if not (
        isinstance(size, list) and len(size) == 2 and all(type(n) is int and 0 < n < 1 << 31 for n in size)
    ):
        message = f"`weight_block_size` must be two whole numbers, got `{printable(str(size))}`"
        raise CorruptFile("CV-S032", message, where=Where(source=source.label, file="config.json"))
    return (size[0], size[1])


def _is_float8(kind: str, quantisation: Mapping[str, Any]) -> bool:
    if kind == "compressed-tensors":
        return quantisation.get("format") in ("float-quantized", "naive-quantized")
    if kind == "modelopt":
        return "FP8" in str(quantisation.get("quant_algo", "")).upper()
    return True


def _scale(meta: TensorMeta, scale: TensorMeta, block: tuple[int, int] | None, label: str) -> _Scale:
    """How a scale covers a weight: everything, one row each, or blocks; CorruptFile when it does not."""
    shape = meta.shape
    height, width = (shape[-2], shape[-1]) if len(shape) >= 2 else (1, meta.numel)
    if scale.dtype.is_float:
        if scale.numel == 1:
            return _Scale(scale.name)
        if len(shape) == 2 and scale.shape in ((height,), (height, 1)):
            return _Scale(scale.name, 1, width, (height, 1))
        rows, columns = block or _DEFAULT_BLOCK
        grid = (-(-height // rows), -(-width // columns))
        if len(shape) >= 2 and scale.shape == (*shape[:-2], *grid):
            return _Scale(scale.name, rows, columns, grid)
    found = f"{scale.dtype} {list(scale.shape)}"
    message = f"the scale of `{printable(meta.name)}`, {found}, does not fit {list(shape)}"
    raise _corrupt(meta.name, message, label)


def _corrupt(name: str, message: str, label: str) -> CorruptFile:
    return CorruptFile("CV-S032", message, where=Where(source=label, tensor=printable(name)))
