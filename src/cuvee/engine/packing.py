"""Codes of a package, computed: masks, signs, factors, bases and what is stored whole, tensor by tensor.

Elementwise codes are made block by block, so memory does not grow with tensors; factors and bases see one whole tensor
at a time. Owns what `plan.packages` leaves to the data. Writes through a function it is handed; knows no files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from cuvee.core.dtypes import FLOAT64
from cuvee.core.lazy import torch
from cuvee.core.tensors import TensorMeta
from cuvee.engine.blocks import cut
from cuvee.engine.changes import factors_of
from cuvee.engine.evaluate import Evaluator
from cuvee.engine.fused.builder import Unfusable
from cuvee.engine.fused.fuse import Fused
from cuvee.engine.fused.marks import Marking
from cuvee.engine.package_rounds import markable, marked_nodes, prepared
from cuvee.engine.streams import Frame, Stopped
from cuvee.errors import CuveeError
from cuvee.formats.package_form import BASE, RESCALER, SHARED, Codec, Task, matrix, packed, part_name
from cuvee.methods.combine import emr
from cuvee.methods.combine.consensus import scope as consensus_scope
from cuvee.methods.combine.consensus import tall_mask, total_vector
from cuvee.methods.contract import Block, rows_of
from cuvee.methods.recompression import Bound, compress
from cuvee.methods.reversible import basis_of, factor_bases
from cuvee.plan.nodes import Apply, Node
from cuvee.plan.packages import MASKED, Piece, base_of, pieces, source_of
from cuvee.plan.plan import OutputTensor, Plan
from cuvee.recipe.packaging import tasks_of
from cuvee.sources.source import Source, kept_dtype

if TYPE_CHECKING:
    from torch import Tensor

Write = Callable[[str, int, "Tensor"], None]  # name, first element, values
_BLOCK = 1 << 20  # elements copied at once


@dataclass(frozen=True, slots=True)
class Stored:
    """Tensors of the package that are computed together; names begin with their folder."""

    metas: tuple[TensorMeta, ...]
    fill: Callable[[Write], None]
    tensor: str = ""  # of the plan, whose room they take


@dataclass(slots=True)
class Packing:
    """Everything a package stores, measured and ready to be written."""

    plan: Plan
    evaluator: Evaluator
    folders: Mapping[str, str]
    include_base: bool
    fused: Fused | None = None
    codecs: dict[str, dict[str, Codec]] = field(default_factory=dict)
    absent: dict[str, list[str]] = field(default_factory=dict)
    rescaled: bool = False

    def stored(self) -> list[Stored]:
        """Every tensor with its form; entries that are 0 and copies of the base's tensors are counted by reading."""
        tasks = tasks_of(self.plan.recipe)
        self.codecs, self.absent = {task: {} for task in tasks}, {task: [] for task in tasks}
        out = list(self._base()) if self.include_base else []
        found = list(pieces(self.plan))
        for piece in found:
            with self.evaluator.keeping(*piece.apply.inputs):
                made = self._piece(piece)
            self.evaluator.stored.release(piece.apply)
            out += [self._together(piece, made)] if made else []
        out += self._rescalers(found)
        return out + list(self._others({piece.name for piece in found}))

    def tasks(self, nbytes: Mapping[str, int]) -> dict[str, Task]:
        """The tasks for `package.json`; `nbytes` of each folder."""
        return {
            task: Task(
                folder, self.codecs[task], tuple(self.absent[task]), self.rescaled, nbytes.get(folder, 0)
            )
            for task, folder in self.folders.items()
        }

    def prepared(self) -> Sequence[OutputTensor]:
        """The tensors of which kernels are to find the figures that span several."""
        return prepared(self.plan, self.fused, self._budget()[0]) if self.fused else ()

    # -- changes --------------------------------------------------------------------------------------------------

    def _piece(self, piece: Piece) -> list[Stored]:
        for task, codec in zip(piece.owners, piece.codecs, strict=True):
            self.codecs[task][piece.name] = codec
        if piece.apply.stage in MASKED:
            return [self._masks(piece)]
        if piece.codecs[0] == "basis":
            return [self._basis(piece)]
        signs = [i for i, codec in enumerate(piece.codecs) if codec == "sign"]
        out = [self._signs(piece, signs)] if signs else []
        for i, codec in enumerate(piece.codecs):
            if codec != "sign":
                out += self._low_rank(piece, i) if codec == "low_rank" else self._plain(piece, i)
        return out

    def _together(self, piece: Piece, made: Sequence[Stored]) -> Stored:
        """What all tasks store of a tensor; their models are read once, where they fit."""

        def fill(write: Write) -> None:
            with self.evaluator.keeping(*piece.apply.inputs):
                for one in made:
                    one.fill(write)
            self.evaluator.stored.release(piece.apply)

        return Stored(tuple(meta for one in made for meta in one.metas), fill, piece.name)

    def _masks(self, piece: Piece) -> Stored:
        (vector,) = self._named(SHARED, piece.shared())
        masks = [self._own(piece, i)[0] for i in range(len(piece.owners))]

        def fill(write: Write) -> None:
            marking = Marking(piece.apply.inputs, partial(self._masked, piece.apply), piece.dtype)
            if self._compiled(piece, marking, masks, write, piece.apply.inputs, vector) is not None:
                return
            for start, stop in cut(piece.apply, *self._budget()):
                frame = Frame(start, stop)
                merged, *flags = self._masked(piece.apply, self.evaluator.inputs(piece.apply, frame), frame)
                write(vector.name, start, merged.to(piece.dtype.torch))
                for meta, own in zip(masks, flags, strict=True):
                    write(meta.name, start // 8, packed(own))
            self.evaluator.forget(piece.apply)

        return Stored((vector, *masks), fill, piece.name)

    def _masked(self, apply: Apply, deltas: Sequence[Tensor], frame: Frame | None = None) -> list[Tensor]:
        """The shared vector and each task's mask of it, on a run of elements or of traced values."""
        values = dict(apply.values)
        if apply.stage == "emr_expert":
            merged = emr.unified(deltas)
            return [merged, *(emr.mask(delta, merged) for delta in deltas)]
        summary = self.evaluator.summary(apply, frame) if consensus_scope(values) else {}
        start, number = frame.start if frame else 0, self.evaluator.number(apply)
        block = Block(deltas, start, apply.shape, number, apply.place)
        merged = total_vector(deltas, values["total"], values["density"], summary, block)
        strengths = values["strength"]
        each = strengths if isinstance(strengths, tuple) else (strengths,) * len(deltas)
        return [merged, *(tall_mask(d, merged, s) for d, s in zip(deltas, each, strict=True))]

    def _compiled(
        self,
        piece: Piece,
        marking: Marking,
        bits: Sequence[TensorMeta],
        write: Write,
        roots: Sequence[Node],
        vector: TensorMeta | None = None,
    ) -> Mapping[int, Any] | None:
        """The vector and the bits of a piece by the compiled kernels; the figures of the roots, or None where they
        cannot."""
        options = self.evaluator.options
        if self.fused is None or not markable(self.fused, piece, options.memory // max(1, options.threads)):
            return None

        def wrote(first: int, count: int, data: memoryview) -> None:
            if self.evaluator.stopped():
                raise Stopped
            if vector is not None:
                write(vector.name, first, torch.frombuffer(data, dtype=vector.dtype.torch))

        try:
            places, known = self.fused.marks(piece.tensor, marking, roots, wrote)
        except (Unfusable, CuveeError):
            return None
        for meta, place in zip(bits, places, strict=True):
            write(meta.name, 0, torch.frombuffer(place, dtype=torch.uint8))
        return known

    def _rescalers(self, found: Sequence[Piece]) -> list[Stored]:
        """EMR's factor of each task, from the one summary over the model."""
        first = next((piece.apply for piece in found if piece.apply.stage == "emr_expert"), None)
        self.rescaled = first is not None
        if first is None:
            return []
        metas = [TensorMeta(f"{folder}.{RESCALER}", FLOAT64, (1,)) for folder in self.folders.values()]

        def fill(write: Write) -> None:
            known = self.fused.known(first) if self.fused else {}
            summary = known["traced"][0] if "traced" in known else self.evaluator.summary(first)
            for meta, factor in zip(metas, summary["rescalers"], strict=True):
                write(meta.name, 0, torch.tensor([factor], dtype=torch.float64))

        return [Stored(tuple(metas), fill)]

    def _signs(self, piece: Piece, numbers: Sequence[int]) -> Stored:
        """The signs of several tasks' changes and their mean magnitudes."""
        nodes = [node for node in marked_nodes(piece) if isinstance(node, Apply)]
        parts = [self._own(piece, i) for i in numbers]

        def fill(write: Write) -> None:
            changes = [node.inputs[0] for node in nodes]
            marking = Marking(changes, lambda values: [value < 0 for value in values])
            known = self._compiled(piece, marking, [bits for bits, _ in parts], write, nodes)
            for node, (bits, scale) in zip(nodes, parts, strict=True):
                found = known[id(node)]["traced"][0] if known else None
                mean = found["mean"] if found else self._generic_signs(node, bits, write)
                write(scale.name, 0, torch.tensor([mean], dtype=torch.float64))

        return Stored(tuple(meta for own in parts for meta in own), fill, piece.name)

    def _generic_signs(self, node: Apply, bits: TensorMeta, write: Write) -> float:
        with self.evaluator.keeping(node):
            mean: float = self.evaluator.summary(node)["mean"]
            for start, stop in cut(node, *self._budget()):
                (delta,) = self.evaluator.inputs(node, Frame(start, stop))
                write(bits.name, start // 8, packed(delta < 0))
        self.evaluator.forget(node)
        return mean

    def _plain(self, piece: Piece, number: int) -> list[Stored]:
        """A task vector whole, as an adapter's factors or by its entries that are not 0: what takes least room."""
        node, task = piece.apply.inputs[number], piece.owners[number]
        known = self._factors(node)
        if known is not None and 0 < known.right.shape[0] * sum(matrix(piece.shape)) < math.prod(piece.shape):
            return [self._product(piece, number, known.right.shape[0])]
        many = sum(int(torch.count_nonzero(part)) for _, part in self._blocks(node))
        sparse = replace(piece, codecs=_each("sparse", piece))
        if not many:
            del self.codecs[task][piece.name]
            return []
        if sum(m.nbytes for m in sparse.own(number, many)) < sum(m.nbytes for m in piece.own(number)):
            self.codecs[task][piece.name] = "sparse"
            return [self._sparse(sparse, number, many)]
        self.codecs[task][piece.name] = "dense"
        (meta,) = self._own(piece, number)

        def fill(write: Write) -> None:
            for start, part in self._blocks(node):
                write(meta.name, start, part.to(piece.dtype.torch))

        return [Stored((meta,), fill, piece.name)]

    def _product(self, piece: Piece, number: int, rank: int) -> Stored:
        """An adapter's own factors."""
        self.codecs[piece.owners[number]][piece.name] = "low_rank"
        metas = self._own(replace(piece, codecs=_each("low_rank", piece), count=rank), number)

        def fill(write: Write) -> None:
            found = self._factors(piece.apply.inputs[number])
            for meta, factor in zip(metas, (found.left, found.right), strict=True):
                write(meta.name, 0, factor.to(meta.dtype.torch))

        return Stored(tuple(metas), fill, piece.name)

    def _sparse(self, piece: Piece, number: int, many: int) -> Stored:
        node = piece.apply.inputs[number]
        indices, values = self._named(self.folders[piece.owners[number]], piece.own(number, many))

        def fill(write: Write) -> None:
            done = 0
            for start, part in self._blocks(node):
                places = part.nonzero().reshape(-1)
                write(indices.name, done, (places + start).to(indices.dtype.torch))
                write(values.name, done, part[places].to(values.dtype.torch))
                done += len(places)

        return Stored((indices, values), fill, piece.name)

    def _low_rank(self, piece: Piece, number: int) -> list[Stored]:
        metas = self._own(piece, number)

        def fill(write: Write) -> None:
            delta = self._whole(piece.apply, number)
            found = compress(delta, Bound(rank=piece.count), self.evaluator.decompose).factors
            for meta, factor in zip(metas, (found.left, found.right), strict=True):
                filled = torch.zeros(meta.shape, dtype=factor.dtype)  # of lower rank: the rest is 0
                filled[: factor.shape[0], : factor.shape[1]] = factor
                write(meta.name, 0, filled.to(meta.dtype.torch))

        return [Stored(tuple(metas), fill, piece.name)]

    def _basis(self, piece: Piece) -> Stored:
        inner = self._product_rank(piece)
        if inner is not None:
            piece = replace(piece, codecs=_each("basis_product", piece), inner=inner)
            for task in piece.owners:
                self.codecs[task][piece.name] = "basis_product"
        shared = self._named(SHARED, piece.shared())
        own = [self._own(piece, i) for i in range(len(piece.owners))]

        def fill(write: Write) -> None:
            for side, (meta, basis) in enumerate(zip(shared, self._bases(piece), strict=True)):
                write(meta.name, 0, torch.stack(basis.tensors).to(meta.dtype.torch))
                for i, metas in enumerate(own):
                    write(metas[side].name, 0, basis.coefficients[:, i].double())

        return Stored((*shared, *(meta for metas in own for meta in metas)), fill, piece.name)

    def _bases(self, piece: Piece) -> tuple[Any, ...]:
        decompose = self.evaluator.decompose
        if piece.inner:
            factors = [f for node in piece.apply.inputs if (f := self._factors(node)) is not None]
            return factor_bases(factors, piece.count, decompose)
        deltas = [self._whole(piece.apply, i) for i in range(len(piece.owners))]
        return (basis_of(deltas, piece.count, decompose),)

    def _product_rank(self, piece: Piece) -> int | None:
        """The rank of a basis of factors, where every expert is known as a product that takes less room."""
        known = [self._factors(node) for node in piece.apply.inputs]
        ranks: list[int] = [f.right.shape[0] for f in known if f is not None]
        rows, columns = rows_of(piece.shape)
        if len(ranks) < len(known) or not max(ranks) or max(ranks) >= min(rows, columns):
            return None
        return max(ranks)

    def _factors(self, node: Node) -> Any:
        return factors_of(node, self.evaluator.sources, torch.zeros(0))

    # -- tensors as they are ----------------------------------------------------------------------------------------

    def _base(self) -> Iterator[Stored]:
        source = base_of(self.plan).source
        for name in source.tensors:
            yield self._copy(source, name, f"{BASE}.{name}")

    def _others(self, changed: set[str]) -> Iterator[Stored]:
        """Tensors that are not merged (heads, whole numbers): each task's own, where it is not the base's."""
        base = base_of(self.plan).source
        for tensor in self.plan.tensors:
            name = tensor.meta.name
            for task, folder in self.folders.items():
                opened = source_of(self.plan, task)
                if name in changed or opened is None:
                    continue
                if name not in opened.source.tensors:
                    self.absent[task] += [name] if name in base.tensors else []
                elif not _equal(opened.source, base, name):
                    self.codecs[task][name] = "whole"
                    yield self._copy(opened.source, name, f"{folder}.{part_name(name, 'whole')}")

    def _copy(self, source: Source, name: str, as_name: str) -> Stored:
        dtype = kept_dtype(source, name)
        meta = TensorMeta(as_name, dtype, source.tensors[name].shape)

        def fill(write: Write) -> None:
            for start in range(0, meta.numel, _BLOCK):
                part = source.read(name, start, min(start + _BLOCK, meta.numel))
                write(as_name, start, part.to(dtype.torch))

        return Stored((meta,), fill)

    # -- parts ----------------------------------------------------------------------------------------------------

    def _own(self, piece: Piece, number: int) -> list[TensorMeta]:
        return self._named(self.folders[piece.owners[number]], piece.own(number))

    def _named(self, folder: str, metas: Sequence[TensorMeta]) -> list[TensorMeta]:
        return [replace(meta, name=f"{folder}.{meta.name}") for meta in metas]

    def _whole(self, apply: Apply, number: int) -> Tensor:
        """One input of a stage that sees whole tensors, the others not computed."""
        node = apply.inputs[number]
        value = self.evaluator.assembled(node).reshape(node.shape)
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value

    def _blocks(self, node: Node) -> Iterator[tuple[int, Tensor]]:
        for start, _, value in self.evaluator.blocks(node):
            yield start, value

    def _budget(self) -> tuple[int, int | None]:
        options = self.evaluator.options
        return options.memory // max(1, options.threads), options.block


def _equal(one: Source, other: Source, name: str) -> bool:
    """Whether two sources hold the same values of a tensor."""
    if name not in other.tensors:
        return False
    mine, theirs = one.tensors[name], other.tensors[name]
    if (mine.shape, mine.dtype) != (theirs.shape, theirs.dtype):
        return False
    starts = range(0, mine.numel, _BLOCK)
    ends = (min(start + _BLOCK, mine.numel) for start in starts)
    return all(
        torch.equal(one.read(name, a, b), other.read(name, a, b)) for a, b in zip(starts, ends, strict=True)
    )


def _each(codec: Codec, piece: Piece) -> tuple[Codec, ...]:
    """The same codec for every task of a piece."""
    return (codec,) * len(piece.codecs)
