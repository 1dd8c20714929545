"""OPCM: merge experts one after the other, each without what points where the others have been."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cuvee.methods.combine.spectral.matrices import Matrices, added, matrices_of, matrix_stage
from cuvee.methods.contract import Decomposer, Stream, Summary
from cuvee.methods.parameters import Fraction, Positive, Range, each

if TYPE_CHECKING:
    from torch import Tensor

Strips = Literal["keep", "drop"]
_RUN = 1 << 20  # elements in float64 at a time


def _summarise(stream: Stream, *, decompose: Decomposer, seen: int, **values: Any) -> Summary:
    """The factor that brings the merged model to the experts' mean length, with what a later run must know."""
    own = {name: values[name] for name in ("alpha", "strips", "seen_lambda")}
    merged: list[float] = []
    experts: list[list[float]] = [[] for _ in range(stream.inputs)]
    for block in stream.blocks():
        matrices = matrices_of(block.tensors, block, values)
        if matrices is None:
            tensor = _rest(block.tensors, weight=values["weight"], seen_lambda=own["seen_lambda"])
        else:
            tensor = accumulated(matrices, decompose=decompose, **own)
        merged.append(square(tensor))
        del tensor
        for expert, weight, sizes in zip(
            range(stream.inputs), each(values["weight"], stream.inputs), experts, strict=True
        ):
            sizes.append(square(block.tensors[expert]) * float(weight) ** 2)
    lengths = [math.sqrt(math.fsum(sizes)) for sizes in experts]
    known = max(1, seen)
    mean = math.fsum([known * lengths[0], *lengths[1:]]) / (known + len(lengths) - 1)
    length = math.sqrt(math.fsum(merged))
    return {
        "factor": mean / length if length else 1.0,
        "seen": known + len(lengths) - 1,
        "seen_lambda": length / mean if mean else 1.0,
    }


def _rest(deltas: Sequence[Tensor], *, weight: Any, seen_lambda: float, **_: Any) -> Tensor:
    """Tensors that are no matrices: λΔ + τ, step by step."""
    weights = each(weight, len(deltas))
    factors = (w * seen_lambda if i == 0 else w for i, w in enumerate(weights))
    return added(deltas[i] * factor for i, factor in enumerate(factors))


def _rest_scaled(deltas: Sequence[Tensor], *, summary: Summary, **values: Any) -> Tensor:
    return _rest(deltas, **values).mul_(summary["factor"])


@matrix_stage(
    name="opcm",
    paper="arXiv:2501.09522",
    elsewhere=None,
    tensors="layers",
    exclude="",
    cut=False,
    summarise=_summarise,
    scope=lambda values: "model",
    records=("seen", "seen_lambda"),
    asks_before=2,
    rest=_rest_scaled,
)
def opcm(
    matrices: Matrices,
    *,
    decompose: Decomposer,
    summary: Summary,
    alpha: Fraction = 0.5,
    strips: Strips = "keep",
    seen: Annotated[int, Range(0)] = 0,
    seen_lambda: Positive = 1.0,
) -> Tensor:
    """Take experts in their order, and of each only what is orthogonal to the model merged so far.

    With the merged task matrix Δ = UΣVᵀ and the next τ: r = the first index (from 0) where the cumulated σ exceed the
    share α of their sum; P = UᵀτV loses its diagonal and its leading r × r block; Δ ← λΔ + UPVᵀ. Tensors that are no
    matrices: Δ ← λΔ + τ. Then the whole model is scaled to the mean length of the task vectors so far, and λ is what
    it was divided by. Since λΔ is the unscaled sum, one pass accumulates all experts and one scale ends it: memory
    does not grow with their number, and only the last model's length is needed. The order matters; it is the recipe's.
    Two passes, T − 1 decompositions of each matrix (kept between the passes by the store).

    To add experts to an earlier output: make that output the first expert, `seen` the number of experts in it and
    `seen_lambda` its λ, which the earlier run's manifest records.

    Tang et al., "Merging models on the fly without retraining: a sequential approach to scalable continual model
    merging", 2025 (arXiv:2501.09522). The paper protects all pairs of directions with one below r (`strips: drop`);
    the released code, followed by default, only the block. FusionBench shuffles the experts first.

    Args:
        alpha: α, the share of the merged model's nuclear norm whose directions are protected as a block
        strips: `keep` what maps between protected and other directions (code), or `drop` it (paper)
        seen: number of experts that are merged in the first input already; 0 or 1 where it is an expert itself
        seen_lambda: λ at the end of the run that made the first input
    """
    total = accumulated(matrices, decompose=decompose, alpha=alpha, strips=strips, seen_lambda=seen_lambda)
    return total.mul_(summary["factor"])


def accumulated(
    matrices: Matrices, *, decompose: Decomposer, alpha: float, strips: Strips, seen_lambda: float
) -> Tensor:
    """The sum of the experts' task matrices, each without what points where those before it have been."""
    total = matrices[0] * seen_lambda
    for index in range(1, len(matrices)):
        u, s, vh = decompose.svd(total)
        total = total.add_(freed(matrices[index], u, s, vh, alpha, strips))
        del u, vh
    return total


def freed(matrix: Tensor, u: Tensor, s: Tensor, vh: Tensor, alpha: float, strips: Strips) -> Tensor:
    """U P Vᵀ after zeroing P = UᵀτV on its diagonal and leading block, without its complement ever being formed."""
    if not float(s[0]):
        return matrix
    over = s.cumsum(0) / s.sum() > alpha
    rank = int(over.int().argmax()) if bool(over.any()) else 0
    image = matrix @ vh.T
    diagonal = (u * image).sum(dim=0)
    leading, right = u[:, :rank], vh[:rank]
    block = leading.T @ image[:, :rank]
    del image
    out = matrix - (u[:, rank:] * diagonal[rank:]) @ vh[rank:]
    if strips == "keep":
        return out.sub_(leading @ (block @ right))
    out.sub_(leading @ (leading.T @ matrix)).sub_((matrix @ right.T) @ right)
    return out.add_(leading @ (block @ right))


def square(tensor: Tensor) -> float:
    """‖x‖² in float64, a run of elements at a time."""
    flat = tensor.reshape(-1)
    return math.fsum(_runs(flat))


def _runs(flat: Tensor) -> Iterator[float]:
    for start in range(0, len(flat), _RUN):
        yield float(flat[start : start + _RUN].double().square().sum())
