"""The weight files of a package: the shared part and one folder for each task, checked against `package.json`.

Owns what a damaged or hostile package is refused for: parts that lack a tensor, have one of another type or shape, or
hold values that no code can have. Errors name the file and the tensor. Must not know bases or recipes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.core.limits import Limits
from cuvee.core.names import printable
from cuvee.core.sampling import Span
from cuvee.core.tensors import TensorMeta
from cuvee.errors import CorruptFile, Where
from cuvee.formats.member_path import safe_member
from cuvee.formats.package_form import (
    COMMON,
    PARTS,
    RESCALER,
    SHARED,
    Codec,
    Task,
    matrix,
    part_name,
    parts_of,
)
from cuvee.formats.shard_index import weight_files
from cuvee.sources.adapted import Replacement
from cuvee.sources.low_rank import Delta, FactorCache, LowRank, Scaled
from cuvee.sources.package_deltas import Combined, Masked, Signed, Sparse
from cuvee.sources.stored import StoredTensors

if TYPE_CHECKING:
    from torch import Tensor


class Parts:
    """The folders of a package that are open, each at most once."""

    def __init__(self, folder: Path, label: str, limits: Limits) -> None:
        self.folder, self.label, self.limits = folder, label, limits
        self.cache = FactorCache()
        self._open: dict[str, StoredTensors] = {}

    def part(self, name: str) -> StoredTensors:
        """The tensors of one folder of the package."""
        if name not in self._open:
            path = safe_member(self.folder, name)
            files = weight_files(path, self.limits).files
            self._open[name] = StoredTensors(files, f"{self.label} · {name}", self.limits, root=self.folder)
        return self._open[name]

    def weight_files(self) -> Mapping[Path, tuple[Span, ...]]:
        """Every open file."""
        return {path: spans for part in self._open.values() for path, spans in part.weight_files().items()}

    def identity(self) -> list[dict[str, Any]]:
        """Name, size and header digest of every open file."""
        return [entry for part in self._open.values() for entry in part.identity()]

    def close(self) -> None:
        """Close all."""
        for part in self._open.values():
            part.close()

    def bad(self, part: str, name: str, what: str) -> CorruptFile:
        """The refusal of a tensor of a part."""
        where = Where(source=self.label, file=str(self.folder / part), tensor=printable(name))
        hint = "`cuvee verify` finds what was changed in a package; write or fetch it again"
        return CorruptFile(
            "CV-S182", f"`{printable(name)}` in `{printable(part)}` {what}", where=where, hint=hint
        )


class TaskReader:
    """One task's codes; `base` are the tensors they are added to."""

    def __init__(self, parts: Parts, name: str, task: Task, base: Mapping[str, TensorMeta]) -> None:
        self.parts, self.name, self.task, self.base = parts, name, task, base
        for tensor, codec in task.codecs.items():
            self._check(tensor, codec)
        if task.rescaled:
            self._rescaler()
        self._nothing_else()

    def deltas(self) -> dict[str, Delta]:
        """What the task adds to each tensor of the base that it changes."""
        makers: Mapping[Codec, Callable[[str], Delta]] = {
            "mask": self._masked,
            "sign": lambda n: Signed(self._reader(n, "sign"), partial(self._scale, part_name(n, "scale"))),
            "low_rank": self._low_rank,
            "sparse": lambda n: Sparse(partial(self._sparse, n), self.parts.cache),
            "dense": lambda n: Scaled(self._reader(n, "delta"), 1.0),
            "basis": self._basis,
            "basis_product": self._product,
        }
        return {name: makers[codec](name) for name, codec in self.task.codecs.items() if codec != "whole"}

    def replaced(self) -> dict[str, Replacement]:
        """Tensors that the task has instead of the base's, or besides."""
        stored = self.parts.part(self.task.folder) if "whole" in self.task.codecs.values() else None
        out = {}
        for name, codec in self.task.codecs.items():
            if codec == "whole" and stored is not None:
                own = part_name(name, "whole")
                meta = stored.tensors[own]
                made = TensorMeta(name, meta.dtype, meta.shape)
                out[name] = Replacement(made, partial(stored.read, own), partial(stored.extent, own))
        return out

    # -- what must be there ------------------------------------------------------------------------------------

    def _check(self, name: str, codec: Codec) -> None:
        own = {part: self._meta(self.task.folder, part_name(name, part)) for part in PARTS[codec]}
        if codec == "whole":
            return
        if name not in self.base:
            raise self.parts.bad(
                self.task.folder, part_name(name, PARTS[codec][0]), "is for a tensor that the base lacks"
            )
        if not self.base[name].dtype.is_float:
            raise self.parts.bad(
                self.task.folder, part_name(name, PARTS[codec][0]), "would change whole numbers"
            )
        shape = self.base[name].shape
        common = {part: self._meta(SHARED, part_name(name, part)) for part in COMMON.get(codec, ())}
        sample = own[PARTS[codec][-1]] if codec in ("low_rank", "sparse", "dense") else None
        count = (
            own[PARTS[codec][0]].shape[-1]
            if codec not in ("mask", "sign", "dense") and _axes(own, codec)
            else 0
        )
        wanted = parts_of(name, codec, shape, sample.dtype if sample else self.base[name].dtype, count)
        for meta in wanted:
            self._same(
                self.task.folder, own[meta.name.rpartition("::")[2]], meta, exact=codec in ("mask", "sign")
            )
        for part, meta in common.items():
            self._shared(codec, part, meta, shape, count)

    def _shared(self, codec: Codec, part: str, meta: TensorMeta, shape: tuple[int, ...], count: int) -> None:
        rows, columns = matrix(shape)
        inner = (
            meta.shape[-1]
            if part == "left_basis" and meta.shape
            else meta.shape[1]
            if len(meta.shape) > 1
            else 0
        )
        forms = {
            "vector": shape,
            "basis": (count, *shape),
            "left_basis": (count, rows, inner),
            "right_basis": (count, inner, columns),
        }
        if meta.shape != forms[part] or not meta.dtype.is_float:
            raise self.parts.bad(
                SHARED, meta.name, f"is {_form(meta)}, expected floats of shape {list(forms[part])}"
            )

    def _same(self, part: str, found: TensorMeta, wanted: TensorMeta, *, exact: bool) -> None:
        kinds = found.dtype == wanted.dtype or (wanted.dtype.is_float and found.dtype.is_float and not exact)
        if not kinds or found.shape != wanted.shape:
            raise self.parts.bad(part, found.name, f"is {_form(found)}, expected {_form(wanted)}")

    def _meta(self, part: str, name: str) -> TensorMeta:
        found = self.parts.part(part).tensors.get(name)
        if found is None:
            raise self.parts.bad(part, name, "is missing")
        return found

    def _nothing_else(self) -> None:
        """A tensor that no codec asks for is no part of the package."""
        if not self.task.codecs:
            return
        known = {part_name(n, part) for n, codec in self.task.codecs.items() for part in PARTS[codec]} | {
            RESCALER
        }
        for name in self.parts.part(self.task.folder).tensors:
            if name not in known:
                raise self.parts.bad(self.task.folder, name, "is not listed in `package.json`")

    # -- reading -------------------------------------------------------------------------------------------------

    def _reader(self, name: str, part: str, folder: str | None = None) -> Callable[[int, int], Tensor]:
        return partial(self.parts.part(folder or self.task.folder).read, part_name(name, part))

    def _masked(self, name: str) -> Delta:
        scale = partial(self._scale, RESCALER) if self.task.rescaled else None
        return Masked(self._reader(name, "mask"), self._reader(name, "vector", SHARED), scale)

    def _rescaler(self) -> None:
        meta = self._meta(self.task.folder, RESCALER)
        if meta.shape != (1,) or not meta.dtype.is_float:
            raise self.parts.bad(self.task.folder, RESCALER, f"is {_form(meta)}, expected one float")

    def _scale(self, name: str) -> float:
        value = float(self.parts.part(self.task.folder).read(name)[0])
        if value - value != 0:
            raise self.parts.bad(self.task.folder, name, f"is {value}, expected a finite number")
        return value

    def _low_rank(self, name: str) -> Delta:
        rows, columns = matrix(self.base[name].shape)
        return LowRank(
            lambda: self._reader(name, "left")(0, None).reshape(rows, -1),  # type: ignore[arg-type]
            lambda: self._reader(name, "right")(0, None).reshape(-1, columns),  # type: ignore[arg-type]
            1.0,
            columns,
            self.parts.cache,
        )

    def _sparse(self, name: str) -> tuple[Tensor, Tensor]:
        stored = self.parts.part(self.task.folder)
        places, values = stored.read(part_name(name, "indices")), stored.read(part_name(name, "values"))
        size = self.base[name].numel
        ascending = bool((places[1:] > places[:-1]).all())
        if len(places) and not (ascending and int(places[0]) >= 0 and int(places[-1]) < size):
            what = f"holds positions that do not ascend within 0 … {size - 1}"
            raise self.parts.bad(self.task.folder, part_name(name, "indices"), what)
        return places, values

    def _coefficients(self, name: str, part: str) -> list[float]:
        values: list[float] = self.parts.part(self.task.folder).read(part_name(name, part)).tolist()
        if any(value - value != 0 for value in values):
            raise self.parts.bad(self.task.folder, part_name(name, part), "holds values that are not finite")
        return values

    def _basis(self, name: str) -> Delta:
        """Σ cⱼ basisⱼ, in the order in which `methods.reversible.restored` adds."""
        size, read = self.base[name].numel, self._reader(name, "basis", SHARED)
        coefficients = partial(self._coefficients, name, "coefficients")
        return Combined(lambda number: partial(_shifted, read, number * size), coefficients)

    def _product(self, name: str) -> Delta:
        _, columns = matrix(self.base[name].shape)

        def side(which: str) -> Tensor:
            stored = self.parts.part(SHARED)
            key = part_name(name, f"{which}_basis")
            every = stored.read(key).reshape(stored.tensors[key].shape)
            first, *rest = zip(self._coefficients(name, f"{which}_coefficients"), every, strict=True)
            total: Tensor = first[1] * first[0]
            for value, tensor in rest:
                total = total + tensor * value
            return total

        return LowRank(partial(side, "left"), partial(side, "right"), 1.0, columns, self.parts.cache)


def _shifted(read: Callable[[int, int], Tensor], by: int, start: int, stop: int) -> Tensor:
    return read(by + start, by + stop)


def _axes(own: Mapping[str, TensorMeta], codec: Codec) -> bool:
    return all(meta.shape for part, meta in own.items() if part in PARTS[codec])


def _form(meta: TensorMeta) -> str:
    return f"{meta.dtype} {list(meta.shape)}"
