"""A plan whose output is a package: which tensors are coded how, and how many bytes that takes, before any is read.

Owns the choice of codecs as far as shapes and parameters decide it. Where the data decide (entries that are 0, adapters
known as products) the engine may choose a smaller one. Knows no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cuvee.core.dtypes import BY_NAME, FLOAT32, FLOAT64, DType
from cuvee.core.names import printable
from cuvee.core.tensors import TensorMeta
from cuvee.errors import PlanError, Where
from cuvee.formats.package_form import COMMON, Codec, matrix, part_name, parts_of
from cuvee.methods.combine.tsv_c import kept_rank
from cuvee.plan.nodes import Apply, Convert, Node, Read, Sum
from cuvee.plan.plan import Opened, OutputTensor, Plan
from cuvee.recipe.model import Reference
from cuvee.recipe.packaging import RESTORING, tasks_of

MASKED = ("tall_masks", "emr_expert")


@dataclass(frozen=True, slots=True)
class Piece:
    """One tensor of the base that tasks change: the stage that restores it, whose inputs belong to `owners`, and the
    codec of each; `count` is the rank or the number of basis tensors, `inner` the rank of a basis of products.
    """

    tensor: OutputTensor
    apply: Apply
    owners: tuple[str, ...]
    codecs: tuple[Codec, ...]
    dtype: DType
    count: int = 0
    inner: int = 0

    @property
    def name(self) -> str:
        return self.tensor.meta.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.meta.shape

    def shared(self) -> list[TensorMeta]:
        """What the tasks store of it together."""
        rows, columns = matrix(self.shape)
        forms = {
            "vector": self.shape,
            "basis": (self.count, *self.shape),
            "left_basis": (self.count, rows, self.inner),
            "right_basis": (self.count, self.inner, columns),
        }
        parts = COMMON.get(self.codecs[0], ())
        return [TensorMeta(part_name(self.name, part), self.dtype, forms[part]) for part in parts]

    def own(self, number: int, count: int | None = None) -> list[TensorMeta]:
        """What one task stores of it."""
        many = self.count if count is None else count
        return parts_of(self.name, self.codecs[number], self.shape, self.dtype, many)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes of tensors: of the base, of what tasks share, of all tasks, and of as many models of the base's size."""

    base: int
    shared: int
    tasks: int
    models: int


def pieces(plan: Plan) -> Iterator[Piece]:
    """Every tensor that tasks change, in plan order; PlanError for one that a package cannot hold."""
    tasks = tasks_of(plan.recipe)
    for tensor in plan.tensors:
        if tensor.action != "merged" or not tensor.meta.dtype.is_float:
            continue
        apply = _restoring(tensor, plan)
        owners = _owners(tensor, apply, tasks, plan)
        codecs, count = _codecs(tensor, apply)
        yield Piece(tensor, apply, owners, codecs, stored_type(plan, tensor), count)


def stored_type(plan: Plan, tensor: OutputTensor) -> DType:
    """The type of vectors, factors and bases: the output's where the recipe says one, else that of the arithmetic."""
    if plan.recipe.output.dtype:
        return BY_NAME[plan.recipe.output.dtype]
    return tensor.compute if tensor.compute in (FLOAT32, FLOAT64) else FLOAT32


def estimate(plan: Plan) -> Estimate:
    """How large the package will be at most (task heads and headers of files not counted)."""
    found = list(pieces(plan))
    base = sum(meta.nbytes for meta in base_of(plan).source.tensors.values())
    shared = sum(meta.nbytes for piece in found for meta in piece.shared())
    own = sum(meta.nbytes for piece in found for i in range(len(piece.owners)) for meta in piece.own(i))
    return Estimate(base, shared, own, base * len(tasks_of(plan.recipe)))


def base_of(plan: Plan) -> Opened:
    """The base, which must be a checkpoint of its own."""
    alias = plan.recipe.base or ""
    found = source_of(plan, alias)
    if found is None:
        raise _unfit("its base is not a checkpoint of its own", plan)
    return found


def source_of(plan: Plan, alias: str) -> Opened | None:
    """The physical source behind a name of the recipe; None for recipes and arithmetic."""
    if alias in plan.sources:
        return plan.sources[alias]
    spec = plan.recipe.sources.get(alias)
    if isinstance(spec, Reference):  # opened once, under the name it has first
        plain = replace(spec, where=None)
        for other, twin in plan.recipe.sources.items():
            if isinstance(twin, Reference) and replace(twin, where=None) == plain and other in plan.sources:
                return plan.sources[other]
    return None


def _restoring(tensor: OutputTensor, plan: Plan) -> Apply:
    """The stage that restores a tensor, which its base's tensor is added to as it stands."""
    total = _unwrapped(tensor.node)
    if isinstance(total, Sum) and len(total.terms) == 2:
        base, apply = _unwrapped(total.terms[0][1]), total.terms[1][1]
        plain = isinstance(base, Read) and base.meta.name == tensor.meta.name
        if plain and isinstance(apply, Apply) and apply.stage in RESTORING:
            return apply
    what = f"`{printable(tensor.meta.name)}` is not the base's tensor plus a change"
    raise _unfit(f"{what}; vocabularies are brought together before, not in a package", plan)


def _unwrapped(node: Node) -> Node:
    return node.child if isinstance(node, Convert) else node


def _owners(tensor: OutputTensor, apply: Apply, tasks: Sequence[str], plan: Plan) -> tuple[str, ...]:
    """The task of each input; where some models lack a tensor, those that have it."""
    count = len(apply.inputs)
    if count == len(tasks):
        return tuple(tasks)
    have = tuple(
        t for t in tasks if (o := source_of(plan, t)) is None or tensor.meta.name in o.source.tensors
    )
    if len(have) != count:
        raise _unfit(f"it cannot be told which models have `{printable(tensor.meta.name)}`", plan)
    return have


def _codecs(tensor: OutputTensor, apply: Apply) -> tuple[tuple[Codec, ...], int]:
    values: dict[str, Any] = dict(apply.values)
    many = len(apply.inputs)
    if apply.stage in MASKED:
        return _each("mask", many), 0
    if apply.stage == "tsv_c":
        rank = kept_rank(tensor.meta.shape, many, values["share"])
        return (_each("dense", many), 0) if rank is None else (_each("low_rank", many), rank)
    if apply.stage == "reversible_merging":
        basis = int(values["basis"])
        return (_each("dense", many), 0) if basis >= many else (_each("basis", many), basis)
    return tuple("sign" if is_signs(node) else "dense" for node in apply.inputs), 0


def _each(codec: Codec, count: int) -> tuple[Codec, ...]:
    return (codec,) * count


def is_signs(node: Node) -> bool:
    """Whether a task vector is one number with signs."""
    return isinstance(node, Apply) and node.stage == "one_bit" and bool(dict(node.values)["compress"])


def _unfit(what: str, plan: Plan) -> PlanError:
    return PlanError(
        "CV-P180", f"the merge cannot be written as a package: {what}", where=Where(file=plan.recipe.file)
    )
