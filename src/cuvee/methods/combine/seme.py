"""SeMe's computable core: bring models into one latent space by their output heads, then merge them as SCE does.

Owns the map between two latent spaces and which axes of which tensors live there; the merging rule is `sce`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cuvee.core.lazy import torch
from cuvee.methods.combine.sce import sce
from cuvee.methods.contract import Block, Place, Stream, Summary, Uniforms, stage
from cuvee.methods.parameters import Fraction

if TYPE_CHECKING:
    from torch import Tensor

READERS = frozenset(
    ("q", "k", "v", "qkv", "gate", "up", "gate_up", "router", "shared_gate", "shared_up", "head")
)
WRITERS = frozenset(("o", "down", "shared_down"))
_ROWS = 1024  # of a head, taken at a time
_RUN = 1 << 18  # elements merged at a time


@dataclass(frozen=True, slots=True)
class Alignment:
    """Latents h of a model are h @ `there` in the pivot's space, and back with `back`, its pseudo-inverse."""

    there: Tensor
    back: Tensor

    def applied(self, tensor: Tensor, place: Place) -> Tensor:
        """A tensor of the model in the pivot's coordinates; those that touch no latent stay as they are."""
        size = len(self.there)
        if tensor.dim() == 2 and place.role in READERS and tensor.shape[1] == size:
            return tensor @ self.back.T.to(tensor.dtype)
        if tensor.dim() == 2 and place.role in WRITERS and tensor.shape[0] == size:
            return self.there.T.to(tensor.dtype) @ tensor
        latent = place.role == "embeddings" or (place.role in WRITERS and tensor.dim() == 1)
        return tensor @ self.there.to(tensor.dtype) if latent and tensor.shape[-1] == size else tensor


def alignment(heads: Sequence[Tensor], gains: Sequence[Tensor] | None = None) -> list[Alignment]:
    """For each head (vocabulary, latent) after the first the map to the first's latents: W_A W_B⁺, W = gain ⊙ headᵀ.

    The least-squares latent whose logits in the pivot equal the model's own; float64, from latent × latent Gram
    matrices. `gains` are the scales of the final norms, if there is one.
    """
    return _aligned([_gram(head, heads[0]) for head in heads], gains)


def _aligned(grams: Sequence[Tensor], gains: Sequence[Tensor] | None) -> list[Alignment]:
    """See `alignment`; of the heads' products with the first, itself among them."""
    if gains:
        scales = [gain.double() for gain in gains]
        grams = [s[:, None] * gram * scales[0] for s, gram in zip(scales, grams, strict=True)]
    inverse = torch.linalg.pinv(grams[0], hermitian=True)
    return [Alignment(there, torch.linalg.pinv(there)) for there in (gram @ inverse for gram in grams[1:])]


def _gram(one: Tensor, other: Tensor) -> Tensor:
    total = torch.zeros(one.shape[1], other.shape[1], dtype=torch.float64, device=one.device)
    for start in range(0, len(one), _ROWS):
        rows = slice(start, start + _ROWS)
        total = total + one[rows].double().T @ other[rows].double()
    return total


def _summarise(stream: Stream, **_: Any) -> Summary:
    products: dict[str, list[Tensor]] = {}  # of heads, and of embeddings, which may serve as heads
    norms: list[list[Tensor]] = []
    with torch.no_grad():
        for block in stream.blocks():
            role = block.place.role
            if role in ("head", "embeddings") and role not in products and len(block.shape) == 2:
                pivot = block.tensors[0]
                products[role] = [_gram(head, pivot) for head in block.tensors]
            elif role == "norm" and block.place.layer is None and len(block.shape) == 1:
                norms.append(list(block.tensors))
        found = products.get("head") or products.get("embeddings")
        if not found:
            return {}
        gains = norms[0] if len(norms) == 1 and len(norms[0][0]) == len(found[0]) else None
        return {"alignments": _aligned(found, gains)}


def _asks_before(
    values: Mapping[str, Any], shape: tuple[int, ...], place: Place, count: int
) -> Sequence[int]:
    """Heads and embeddings, the pivot's twice, and the norm behind the layers."""
    table = place.role in ("head", "embeddings") and len(shape) == 2
    norm = place.role == "norm" and place.layer is None and len(shape) == 1
    return tuple(int(norm) if not table else 2 if i == 0 else 1 for i in range(count))


@stage(
    "seme",
    role="combine",
    takes="weight",
    access="tensor",
    summarise=_summarise,
    scope=lambda values: "model",
    upcast=True,
    lazy=True,
    asks_before=_asks_before,
    inputs=(2, None),
    paper="arXiv:2505.20144",
)
def seme(tensors: Sequence[Tensor], *, select_topk: Fraction = 0.1, summary: Summary, block: Block) -> Tensor:
    """Merge language models in the pivot's latent space, found from the output heads (after SeMe, arXiv:2505.20144).

    The first input is the pivot. With W = gain ⊙ headᵀ of a model (final norm folded in where there is exactly one),
    T = W_A W_B⁺ takes A's latents to those of the pivot B with the same logits. What reads latents (q, k, v, gate, up,
    head) becomes M (T⁺)ᵀ, what writes them (o, down) Tᵀ M, embeddings E T; the rest stays. The differences to the pivot
    are then merged by `sce`. Without a known head or embeddings models count as aligned. Result: shape and dtype of the
    pivot.

    Args:
        select_topk: share of the coordinates that `sce` selects
    """
    pivot = tensors[0]
    maps: list[Alignment | None] = summary.get("alignments") or [None] * (len(tensors) - 1)
    deltas = [_delta(tensors[1 + i], pivot, found, block.place) for i, found in enumerate(maps)]
    stream = _Runs(Block(deltas, 0, block.shape, place=block.place))
    values = {"select_topk": select_topk, "mask_scope": "all", "guard": "relative"}
    assert sce.summarise is not None
    found = sce.summarise(stream, **values)
    merged = torch.empty_like(deltas[0])
    for run in stream.blocks():
        end = run.start + run.tensors[0].numel()
        merged[run.start : end] = sce.function(list(run.tensors), **values, summary=found, block=run)
    return merged.reshape(pivot.shape).add_(pivot)


def _delta(tensor: Tensor, pivot: Tensor, found: Alignment | None, place: Place) -> Tensor:
    aligned = found.applied(tensor, place) if found else tensor
    return (aligned - pivot).reshape(-1)


@dataclass(frozen=True, slots=True)
class _Runs:
    """One tensor's flat inputs as a stream of blocks, so that what is made of them takes no memory of its size."""

    block: Block

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.block.tensors[0].numel(),)

    @property
    def inputs(self) -> int:
        return len(self.block.tensors)

    def blocks(self) -> Iterator[Block]:
        block = self.block
        for start in range(0, max(self.sizes[0], 1), _RUN):
            cut = [tensor[start : start + _RUN] for tensor in block.tensors]
            yield Block(cut, start, block.shape, place=block.place)

    def uniforms(self, number: int) -> Uniforms:
        raise LookupError("nothing random here")
