"""Two checkpoints, tensor by tensor: what is in one only, what changed shape or type, and by how much values differ."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cuvee.api.checkpoint import Checkpoint
from cuvee.core.lazy import torch
from cuvee.core.names import printable

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 1 << 22  # elements compared at once


@dataclass(frozen=True, slots=True)
class TensorDiff:
    """How one tensor differs. Norms, cosine and changes are of float tensors of equal shape."""

    name: str
    status: Literal["equal", "changed", "only_a", "only_b", "shape", "dtype"]
    shape_a: tuple[int, ...] | None = None
    shape_b: tuple[int, ...] | None = None
    dtype_a: str | None = None
    dtype_b: str | None = None
    norm_a: float | None = None
    norm_b: float | None = None
    norm_difference: float | None = None
    cosine: float | None = None
    max_change: float | None = None
    changed: int | None = None
    numel: int | None = None


@dataclass(frozen=True, slots=True)
class Diff:
    """All differences of two checkpoints."""

    a: str
    b: str
    tensors: tuple[TensorDiff, ...]

    @property
    def same(self) -> bool:
        """Whether every tensor is in both, with equal type, shape and values."""
        return all(t.status == "equal" for t in self.tensors)

    def as_json(self) -> dict[str, Any]:
        """Plain data (schema `cuvee.diff/1`)."""
        return {
            "schema": "cuvee.diff/1",
            "a": self.a,
            "b": self.b,
            "same": self.same,
            "tensors": [{k: v for k, v in asdict(t).items() if v is not None} for t in self.tensors],
        }

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(
            f"<tr><td>{escape(printable(t.name))}</td><td>{t.status}</td><td>{_cell(t.norm_difference)}</td>"
            f"<td>{_cell(t.cosine)}</td><td>{_cell(t.max_change)}</td></tr>"
            for t in self.tensors
            if t.status != "equal"
        )
        head = "<tr><th>tensor</th><th>status</th><th>‖a−b‖</th><th>cosine</th><th>max change</th></tr>"
        return f"<table>{head}{rows}</table>"


def compare(a: Any, b: Any, *, anchor: Path | None = None, values: bool = True) -> Diff:
    """Compare two checkpoints; with `values=False` only names, shapes and dtypes, without reading a weight."""
    with ExitStack() as opened:
        first, second = (_opened(each, anchor, opened) for each in (a, b))
        names = list(dict.fromkeys([*first.source.tensors, *second.source.tensors]))
        found = tuple(_one(n, first, second, values) for n in names)
    return Diff(first.source.label, second.source.label, found)


def _opened(what: Any, anchor: Path | None, stack: ExitStack) -> Checkpoint:
    """The checkpoint; it is closed with the stack unless it came open."""
    found = Checkpoint.opened(what, anchor=anchor)
    return found if found is what else stack.enter_context(found)


def _one(name: str, a: Checkpoint, b: Checkpoint, values: bool) -> TensorDiff:
    left, right = a.source.tensors.get(name), b.source.tensors.get(name)
    if left is None or right is None:
        only = left or right
        assert only is not None
        return TensorDiff(name, "only_a" if right is None else "only_b", numel=only.numel)
    facts: dict[str, Any] = {
        "shape_a": left.shape,
        "shape_b": right.shape,
        "dtype_a": left.dtype.name,
        "dtype_b": right.dtype.name,
        "numel": left.numel,
    }
    if left.shape != right.shape:
        return TensorDiff(name, "shape", **facts)
    if not values:
        return TensorDiff(name, "equal" if left.dtype == right.dtype else "dtype", **facts)
    figures = _figures(name, left.numel, a, b)
    status: Any = "changed" if figures["changed"] else "equal"
    if left.dtype != right.dtype:
        status = "dtype"
    return TensorDiff(name, status, **facts, **figures)


def _figures(name: str, numel: int, a: Checkpoint, b: Checkpoint) -> dict[str, Any]:
    aa = bb = ab = dd = largest = 0.0
    changed = 0
    for start in range(0, numel, BLOCK):
        stop = min(start + BLOCK, numel)
        x, y = (_wide(c.source.read(name, start, stop)) for c in (a, b))
        delta = x - y
        different = ~((x == y) | (x.isnan() & y.isnan()))
        changed += int(different.sum())
        aa += float(x @ x)
        bb += float(y @ y)
        ab += float(x @ y)
        dd += float(delta @ delta)
        largest = max(largest, float(delta.abs().max()))
    norm = math.sqrt(aa * bb) if aa >= 0 and bb >= 0 else math.nan
    return {
        "norm_a": math.sqrt(aa),
        "norm_b": math.sqrt(bb),
        "norm_difference": math.sqrt(dd),
        "cosine": max(-1.0, min(1.0, ab / norm)) if norm else None,
        "max_change": largest,
        "changed": changed,
    }


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float64)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
