"""Which blocks of which experts are worth reading: by gain per byte, with the error known before anything is read.

Leaving a block of an expert out sets its task vector to 0 there. For weighted sums the error is the norm of what is
left out, computed from the products in the catalogue, and so is what reading an expert beside others gains. For votes
(TIES) and the largest change (MagMax) a block is left out of all experts or of none: the error is what they could have
voted for at most. All is divided by the least that the norm of the whole merged update can be. Nothing is estimated.
Rounding is told apart. Bytes are those of whole pages. Must not read weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cuvee.plan.budget_blocks import Block, Thinned, collected
from cuvee.plan.budget_spending import Spending
from cuvee.plan.joined import Key, Unbounded, joined
from cuvee.plan.pages import Ledger, Places
from cuvee.plan.plan import OutputTensor, Plan
from cuvee.plan.sharing import StandIns, nbytes_of
from cuvee.sources.catalogue import Catalogue, blocks_of

_Where = tuple[str, int]  # tensor, block


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be read of the experts: a share of their bytes, or as much as keeps the error below a bound.

    `aside`: the share that is kept for measuring where not everything is read.
    """

    share: float | None = None
    deviation: float | None = None
    aside: float = 0.0


@dataclass(frozen=True, slots=True)
class Choice:
    """Blocks left out, by source and tensor; bytes of the experts, and of those the ones to read; the bounds.

    `total` and `read` are bytes of whole pages, `asked` those that are asked for. `identical` counts bytes that change
    nothing. `bound` is the largest norm of the error over the norm of the merged update, which is `update` at least (0
    when nothing that differs is left out, infinite when the update may be nothing), besides rounding; `rounded` counts
    all rounding, too. `bounded`: whether there is anything at all whose error can be bounded. `base` is the source
    that stands in. `errors`: of blocks of which something is left out, the largest squared norm of the error. `lost`
    counts blocks left out of which nobody holds the bytes; without an error signs of zeros may still be others.
    """

    spared: Mapping[str, Mapping[str, frozenset[int]]]
    identical: int
    bound: float
    rounded: float
    total: int = 0
    read: int = 0
    asked: int = 0
    bounded: bool = True
    update: float = 0.0
    base: str = ""
    errors: Mapping[_Where, float] = field(default_factory=dict)
    lost: int = 0


def summed(tensor: OutputTensor) -> Mapping[Key, float] | None:
    """The coefficients of an output tensor that is a plain weighted sum; else None."""
    try:
        found = joined(tensor)
    except Unbounded:
        return None
    return found.factors if found.how == "sum" and not found.thinned else None


def choose(
    plan: Plan,
    base: str,
    experts: Sequence[str],
    catalogue: Catalogue,
    budget: Budget,
    thinned: Mapping[int, Thinned],
    equal: StandIns | None = None,
) -> Choice:
    """The blocks to leave out: first those that change nothing, then those that add least for their bytes.

    A tensor of an expert is read whole when it is not part of exactly one output tensor whose error can be bounded, or
    is not in the catalogue. `thinned`: what is known of the thresholds, by the identity of their stage. `equal`: blocks
    for which another source stands in with the same bytes.
    """
    blocks, least = collected(plan, base, experts, catalogue, thinned, equal or {})
    places = Places(plan)
    ledger = _settled(plan, base, experts, blocks, equal or {})
    total = in_pages(plan, experts)
    order = sorted(blocks)
    chains = [
        blocks[where].chain([places.block(blocks[where].keys[m[0]], *where) for m in blocks[where].members])
        for where in order
    ]
    spending = Spending(chains, ledger)
    limit = math.inf if budget.share is None else budget.share * total
    if spending.everything > limit:
        limit -= budget.aside * total
    if budget.deviation is None:
        spending.within(limit)
    else:
        allowed = budget.deviation
        spending.until(lambda error: _relative(error, least) <= allowed, limit)
    for where, chain, taken in zip(order, chains, spending.taken, strict=True):
        for member in (m for step in chain.steps[taken:] for m in step.members):
            for place in blocks[where].members[member]:
                blocks[where].out[place] = True
    found = _told(plan, experts, blocks, least, equal or {})
    return replace(found, total=total, read=ledger.nbytes, base=base)


def in_pages(
    plan: Plan, experts: Sequence[str], besides: Mapping[str, Mapping[str, Any]] | None = None
) -> int:
    """Bytes of the pages that the experts lie in, all of them or without some blocks, by source and tensor."""
    return _ledger(plan, experts, besides or {}).nbytes


def _ledger(plan: Plan, experts: Sequence[str], besides: Mapping[str, Mapping[str, Any]]) -> Ledger:
    ledger, places = Ledger(), Places(plan)
    for key in experts:
        for name, meta in plan.sources[key].source.tensors.items():
            gone = besides.get(key, {}).get(name, ())
            if gone:
                left = (n for n in range(blocks_of(meta)) if n not in gone)
                ledger.take(places.block(key, name, n) for n in left)
            else:
                ledger.take([places.tensor(key, name)])
    return ledger


def _settled(
    plan: Plan, base: str, experts: Sequence[str], blocks: Mapping[_Where, Block], equal: StandIns
) -> Ledger:
    """What is read whatever is chosen: all that is in no block that may be left out, but for what the base holds."""
    open_: dict[str, dict[str, set[int]]] = {key: {} for key in experts}
    for (name, number), block in blocks.items():
        for key in block.keys:
            open_[key].setdefault(name, set()).add(number)
    for key in experts:
        for name, held in equal.get(key, {}).items():
            open_[key].setdefault(name, set()).update(n for n, holder in held.items() if holder == base)
    return _ledger(plan, experts, open_)


def _told(
    plan: Plan, experts: Sequence[str], blocks: Mapping[_Where, Block], least: float, equal: StandIns
) -> Choice:
    """What was chosen, as far as it does not say what it takes in pages."""
    spared: dict[str, dict[str, set[int]]] = {key: {} for key in experts}
    identical = 0
    for (name, number), block in blocks.items():
        first = {member[0] for member in block.members}
        for place, key in enumerate(block.keys):
            inside = any(place in member for member in block.members)
            if block.out[place] or not inside:
                spared[key].setdefault(name, set()).add(number)
            identical += 0 if place in first else nbytes_of(plan, key, name, number)
    errors = {where: error for where in sorted(blocks) if (error := blocks[where].error())}
    bound = _relative(math.fsum(errors.values()), least)
    extra = _relative(math.fsum(block.rounding() ** 2 for block in blocks.values()), least)
    return Choice(
        spared={key: {n: frozenset(b) for n, b in tensors.items()} for key, tensors in spared.items()},
        identical=identical,
        bound=bound,
        rounded=bound + extra,
        bounded=bool(blocks),
        asked=_asked(plan, experts, spared, equal),
        update=math.sqrt(max(0.0, least)),
        errors=errors,
        lost=sum(
            len(gone - equal.get(key, {}).get(name, {}).keys())
            for key, tensors in spared.items()
            for name, gone in tensors.items()
        ),
    )


def _asked(
    plan: Plan, experts: Sequence[str], spared: Mapping[str, Mapping[str, set[int]]], equal: StandIns
) -> int:
    """Bytes of the experts that are asked for."""
    total = sum(t.nbytes for key in experts for t in plan.sources[key].source.tensors.values())
    for key in experts:
        for name in spared[key].keys() | equal.get(key, {}).keys():
            gone = spared[key].get(name, set()) | equal.get(key, {}).get(name, {}).keys()
            total -= sum(nbytes_of(plan, key, name, number) for number in gone)
    return total


def _relative(error: float, update: float) -> float:
    if error <= 0:
        return 0.0
    return math.sqrt(error / update) if update > 0 else math.inf


__all__ = ["Budget", "Choice", "Thinned", "choose", "in_pages", "summed"]
