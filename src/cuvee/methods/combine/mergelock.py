"""One model's attention heads under secret maps that its own layers undo: it works as before, and cannot be averaged.

Owns which rows and columns of q, k, v and o a map meets. Each tensor is transformed on its own, since the maps of a
layer depend on secret, layer and group of heads alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from cuvee.core.lazy import torch
from cuvee.core.names import printable
from cuvee.errors import RunError, Where
from cuvee.methods.contract import Block, Heads, Place, stage
from cuvee.methods.parameters import Range
from cuvee.methods.places import layer_of
from cuvee.methods.privacy.head_maps import HeadMap, commuting, exchanged, free, signed
from cuvee.methods.privacy.secret import secret_of

if TYPE_CHECKING:
    from torch import Tensor

Condition = Annotated[float, Range(1.0, 1e4)]
Direction = Literal["lock", "unlock"]
_PARTS = {"q": "q", "k": "k", "v": "v", "o": "o", "qkv": "qkv", "q_norm": "norm", "k_norm": "norm"}


@stage(
    "mergelock",
    role="combine",
    takes="weight",
    access="tensor",
    upcast=True,
    inputs=(1, 1),
    heads=True,
    paper="arXiv:2509.01548",
)
def mergelock(
    tensors: list[Tensor],
    *,
    key: str,
    kappa: Condition = 10.0,
    direction: Direction = "lock",
    block: Block,
) -> Tensor:
    """Multiply each attention head by secret invertible matrices that cancel within the layer (arXiv:2509.01548).

    For each group of heads, with P for queries and keys and R for values: W_q ← P W_q, W_k ← P⁻ᵀ W_k, W_v ← R W_v,
    biases alike, W_o ← W_o R⁻¹; the output's bias and everything else stay. P commutes with rotary positions, and
    behind a norm of the heads it is a signed permutation (the norm's gain is permuted alike). Matrices are float64.
    Result: shape and dtype of the input.

    Args:
        key: fingerprint of the secret, which itself is read from `CUVEE_LOCK_KEY`; one for the whole model
        kappa: largest condition number of the matrices; larger ones move weights further and cost digits (the error
            grows with it); one for the whole model, and the same when unlocking
        direction: apply the matrices, or their inverses
    """
    (tensor,) = tensors
    role = block.place.role.removeprefix("cross_")
    part, heads, layer = _PARTS.get(role), block.place.heads, layer_of(block.place)
    if part is None or heads is None or layer is None or (part == "norm" and not heads.norm):
        return tensor.clone()
    kind = "cross" if role != block.place.role else "self"
    label = f"{layer[0]}/{layer[1]}/{kind}"
    draw = _Maps(secret_of(key), label, heads, kappa, direction)
    return _changed(part, tensor, draw, block.place).to(tensor.dtype)


class _Maps:
    """The maps of one layer's heads, in the direction asked for."""

    def __init__(self, key: bytes, label: str, heads: Heads, kappa: float, direction: Direction) -> None:
        self.key, self.label, self.heads, self.kappa = key, label, heads, kappa
        self.locks = direction == "lock"

    def queries(self, group: int) -> HeadMap:
        """P of a group of heads."""
        name, heads = f"{self.label}/qk", self.heads
        if heads.norm:
            return self._directed(signed(self.key, name, heads, group))
        if heads.rotated:
            return self._directed(commuting(self.key, f"{name}/{group}", heads, self.kappa))
        return self._directed(free(self.key, f"{name}/{group}", heads.size, self.kappa))

    def values(self, group: int) -> HeadMap:
        """R of a group of heads."""
        return self._directed(free(self.key, f"{self.label}/vo/{group}", self.heads.size, self.kappa))

    def gain(self, tensor: Tensor) -> Tensor:
        """The norm's gain, permuted as queries and keys are; its own inverse."""
        return exchanged(self.key, f"{self.label}/qk", self.heads, tensor)

    def _directed(self, one: HeadMap) -> HeadMap:
        return one if self.locks else HeadMap(one.inverse, one.matrix)


def _changed(part: str, tensor: Tensor, maps: _Maps, place: Place) -> Tensor:
    """One tensor of the layer, transformed."""
    heads = maps.heads
    each = {"q": heads.query, "k": heads.groups, "v": heads.groups}
    if part == "o" and tensor.dim() < 2:
        return tensor.clone()  # a bias stands behind the heads
    wide = {"o": heads.query * heads.size, "norm": heads.size, "qkv": sum(each.values()) * heads.size}
    axis, wanted = (1, wide["o"]) if part == "o" else (0, wide.get(part) or each[part] * heads.size)
    if tensor.shape[axis] != wanted or tensor.dim() > 2:
        message = (
            f"`{printable(place.name)}` has the shape {list(tensor.shape)}; {heads.query} heads of {heads.size} in "
            f"{heads.groups} groups need {wanted} along axis {axis}"
        )
        raise RunError("CV-E192", message, where=Where(tensor=place.name))
    if part == "norm":
        return maps.gain(tensor)
    if part == "o":
        return _each_head(tensor.T, heads.query, maps, "o").T
    if part != "qkv":
        return _each_head(tensor, each[part], maps, part)
    pieces = torch.split(tensor, [count * heads.size for count in each.values()])
    return torch.cat([_each_head(t, n, maps, p) for (p, n), t in zip(each.items(), pieces, strict=True)])


def _each_head(rows: Tensor, count: int, maps: _Maps, part: str) -> Tensor:
    """Rows in runs of one head each, multiplied by that head's map from the left, head by head in float64."""
    heads, out = maps.heads, torch.empty_like(rows)
    shared = count // heads.groups  # heads of a group use one map
    for group in range(heads.groups):
        one = maps.queries(group) if part in ("q", "k") else maps.values(group)
        matrix = {"q": one.matrix, "k": one.inverse.T, "v": one.matrix, "o": one.inverse.T}[part]
        matrix = matrix.to(rows.device)
        for head in range(group * shared, (group + 1) * shared):
            run = slice(head * heads.size, (head + 1) * heads.size)
            out[run] = (matrix @ rows[run].double()).to(rows.dtype)
    return out
