"""Writes the golden vectors of the compiled kernels: edge values, and what torch makes of them, operation by operation.

python tests/equivalence/record_vectors.py
"""

from __future__ import annotations

import base64
import itertools
import json
from typing import Any

import torch
from vector_cases import ELEMENTS, INPUTS, STORES, X, case, marks, op, raw, single
from vector_votes import (
    agree,
    balances,
    ballots,
    crowds,
    grams,
    movers,
    norms,
    sifts,
    variances,
    variations,
    votes,
)

from cuvee.core.random import Stream, keep
from cuvee.engine.kernels.operations import TILE, Code
from cuvee.engine.kernels.selftest import VECTORS, digest, prune_limit
from cuvee.methods.contract import Block
from cuvee.methods.exact_sums import line_sums
from cuvee.methods.summaries import Cut


def arithmetic() -> list[dict[str, Any]]:
    x, y, z, few = INPUTS["x"], INPUTS["y"], INPUTS["z"], INPUTS["few"]
    safe = torch.where(y == 0, 1.0, y)
    total, share = few + torch.where(x.sign() == few, z, 0.0), few + (x.sign() == few) * X
    largest = torch.maximum(few, torch.where(x.sign() == few, z, 0.0).abs())
    three = [op(Code.ADD, 5, 3, 4)]
    nonzero = [
        op(Code.FILL, 2),
        op(Code.EQUALS, 3, 1, 2),
        op(Code.FILL, 2, x=1.0),
        op(Code.CHOOSE, 4, 2, 1, 3),
    ]
    found = [
        case("add", "x y", [op(Code.ADD, 5, 0, 1)], x + y),
        case("subtract", "x y", [op(Code.SUB, 5, 0, 1)], x - y),
        case("multiply", "x y", [op(Code.MUL, 5, 0, 1)], x * y),
        case("quotient", "x y", [op(Code.QUOTIENT, 5, 0, 1)], x / safe),
        case("divide", "x y", [*nonzero, op(Code.DIVIDE, 5, 0, 4)], x / safe),
        case("mark", "few", [op(Code.MARK, 0, 0)], None, data=marks(few), flags=0),
        case("above", "few x", [op(Code.ABOVE, 5, 0, 1)], (few > x).float()),
        case("reaches", "few x", [op(Code.REACHES, 5, 0, 1)], (few >= x).float()),
        case("equals", "few x", [op(Code.EQUALS, 5, 0, 1)], (few == x).float()),
        case("choose", "x y few", [op(Code.CHOOSE, 5, 0, 1, 2)], torch.where(few != 0, x, y)),
        case("greater", "x y", [op(Code.GREATER, 5, 0, 1)], torch.maximum(x, y)),
        case("absolute", "x", [op(Code.ABS, 5, 0)], x.abs()),
        case("sign", "x", [op(Code.SIGN, 5, 0)], x.sign()),
        case("elect", "x", [op(Code.ELECT, 5, 0, x=-1.0)], torch.where(x == 0, -1.0, x.sign())),
        case(
            "clamp", "x", [op(Code.CLAMP, 5, 0, x=X)], torch.minimum(torch.maximum(x, -single(X)), single(X))
        ),
        case(
            "agree, total", "x few z few few", [*agree(Code.AGREE, 3, 4), op(Code.SCALE, 5, 3, x=1.0)], total
        ),
        case(
            "agree, share", "x few z few few", [*agree(Code.AGREE, 3, 4), op(Code.SCALE, 5, 4, x=1.0)], share
        ),
        case(
            "largest", "x few z few few", [*agree(Code.LARGEST, 3, 4), op(Code.SCALE, 5, 3, x=1.0)], largest
        ),
        case("three", "x y z few few", three, few + few),
        case("in place", "x y", [op(Code.SUB, 0, 0, 1), op(Code.ABS, 5, 0)], (x - y).abs()),
    ]
    for scalar in (X, -7.25, 0.0, 1e-30, 1e20):
        found += [
            case(f"scale {scalar}", "x", [op(Code.SCALE, 5, 0, x=scalar)], x * scalar),
            case(
                f"multiply and add {scalar}",
                "y x",
                [op(Code.MULTIPLY_ADD, 5, 0, 1, x=scalar)],
                y + x * scalar,
            ),
        ]
        if scalar:
            found.append(case(f"shrink {scalar}", "x", [op(Code.SHRINK, 5, 0, x=scalar)], x / scalar))
    return found


def types() -> list[dict[str, Any]]:
    found = []
    for letter in "xhg":
        values = INPUTS[letter]
        for dtype in STORES:
            ops = [op(Code.SCALE, 5, 0, x=1.0)]
            found.append(case(f"{values.dtype} to {dtype}", letter, ops, values.to(dtype)))
        found += [
            case(f"{bad} in {values.dtype}", f"{letter}_{bad}", [], None, flags=1) for bad in ("nan", "inf")
        ]
    for dtype, code in ((torch.bfloat16, Code.ROUND_BF16), (torch.float16, Code.ROUND_F16)):
        found.append(case(f"round to {dtype}", "x", [op(code, 5, 0)], INPUTS["x"].to(dtype).float()))
    return found


def eight_bits() -> list[dict[str, Any]]:
    """Every finite number of the two 8-bit formats; those that are not finite are told."""
    found = []
    for letter in ("e4", "e5"):
        scaled = op(Code.SCALE, 5, 0, x=1.0)
        found.append(case(f"{letter} to float32", letter, [scaled], INPUTS[letter].float()))
        found.append(case(f"{letter}, not finite", f"{letter}_bad", [], None, flags=1))
    return found


def selection() -> list[dict[str, Any]]:
    few, x, z = INPUTS["few"], INPUTS["x"], INPUTS["z"]
    found = []
    for name, bits in (("two", 0x40000000), ("none", 0x3FC00000), ("zero", 0)):
        keys = few.abs().view(torch.int32)
        ties = (keys == bits).nonzero().reshape(-1).tolist()
        for left in (0, 1, len(ties) // 2, len(ties), 1 << 40):
            end = (0, ties[left]) if left < len(ties) else None
            # Without ties to keep only what is above stays, which is what an end before the first tie says.
            mask = Cut(1, ELEMENTS, bits, end).mask(few.abs(), Block([few], 0, (ELEMENTS,)))
            rest = max(left - len(ties), 0)
            ops = [op(Code.TRIM, 5, 0, 1, bits=bits, count=left)]
            found.append(
                case(f"trim {name} {left}", "few x", ops, torch.where(mask, x, 0.0), counts={0: rest})
            )
        inverted = [op(Code.TRIM, 5, 0, 1, 1, bits=bits, count=1)]
        mask = Cut(1, ELEMENTS, bits, (0, ties[1]) if ties else None).mask(few.abs(), Block([few], 0, (1,)))
        kept = torch.where(~mask, x, 0.0)
        found.append(case(f"trim {name} inverted", "few x", inverted, kept, counts={0: 0 if ties else 1}))
        found.append(
            case(
                f"ties {name}",
                "few",
                [op(Code.TIED, 0, 0, bits=bits)],
                None,
                data=raw(torch.tensor([len(ties)])),
            )
        )
    keys = z.abs().view(torch.int32)
    table = torch.zeros(65536, dtype=torch.int32)
    table[:32768] = torch.bincount((keys >> 16)[::2][: ELEMENTS // 2], minlength=32768)
    table[:32768] += torch.bincount((keys >> 16)[ELEMENTS - 1 :: 2], minlength=32768)
    table[32768:] = torch.bincount((keys >> 16)[1::2], minlength=32768)
    found.append(case("upper bits", "z", [op(Code.HIGH, 0, 0)], None, data=raw(table)))
    prefix = int((keys >> 16).mode().values)
    below = torch.bincount(keys[(keys >> 16) == prefix] & 0xFFFF, minlength=65536).to(torch.int32)
    found.append(case("lower bits", "z", [op(Code.LOW, 0, 0, bits=prefix)], None, data=raw(below)))
    return found


def gathering() -> list[dict[str, Any]]:
    """PICK: counts below and at two bounds, and what lies between, in order; -1 where that is too much."""
    found = []
    for name in ("z", "few"):
        keys = INPUTS[name].abs().view(torch.int32)
        low, high = (int(v) for v in keys.sort().values[[ELEMENTS // 4, ELEMENTS // 2]])
        for bounds in ((low, high), (low, low), (0, 0x7FFFFFFF)):
            inner = keys[(keys > bounds[0]) & (keys < bounds[1])]
            pick = {"bits": bounds[0], "key": bounds[1], "count": inner.numel() + 7}
            ops, data = [op(Code.PICK, 0, 0, **pick)], picked(keys, *bounds, pick["count"])
            found.append(case(f"pick {name} {bounds}", name, ops, None, data=data))
    for inputs in ("few_h p", "p few", "x y"):
        base, change = (INPUTS[name] for name in inputs.split())
        keys = (change.float() - base.float()).abs().view(torch.int32)
        low, high = (int(v) for v in keys.sort().values[[ELEMENTS // 4, ELEMENTS // 2]])
        wide = int(change.dtype == torch.float32)
        for bounds, room in itertools.product(
            ((low, high), (low, low), (0, 0x7FFFFFFF)), (ELEMENTS, TILE + 40)
        ):
            ops = [op(Code.PICK_CHANGE, 0, 0, 1, wide, d=2, bits=bounds[0], key=bounds[1], count=room)]
            data = picked(keys, *bounds, room)
            found.append(case(f"pick {inputs} {bounds} {room}", inputs, ops, None, data=data))
    return found


def picked(keys: torch.Tensor, low: int, high: int, room: int) -> bytes:
    """How many are below, at the first and at the second bound, how many between, and these."""
    inner = keys[(keys > low) & (keys < high)]
    counts = [int(c.sum()) for c in (keys < low, keys == low, keys == high)]
    found = raw(torch.tensor([*counts, inner.numel()])) + raw(inner.to(torch.int32))
    return found + bytes(4 * (room + 16 - inner.numel()))


def randomness() -> list[dict[str, Any]]:
    found = []
    x = INPUTS["x"]
    for key, first, share in (
        (1, 0, 0.3),
        (2**64 - 3, 5 * TILE, 0.5),
        (0x0123456789ABCDEF, 2**43, 0.9),
        (7, 0, 0.0),
    ):
        mask = keep(Stream(key).words(first, first + ELEMENTS), share)
        ops = [op(Code.KEEP, 5, 0, key=key, bits=round(share * 2**32))]
        found.append(case(f"keep {key} {first}", "x", ops, torch.where(mask, x, 0.0), first=first))
    return found


def prunes() -> list[dict[str, Any]]:
    """Rows thinned by rank; lines are rows, as these are shorter than 1024. `bare`: what is kept stays as it is."""
    found = []
    for name, rows, length, first, key, bare in (
        ("few", 5, 200, 0, 3, False),
        ("z", 1, 1000, 5 * TILE, 2**63 + 1, False),
        ("x", 9, 1, 0, 5, False),
        ("few", 5, 200, 0, 3, True),
        ("z", 1, 1000, 5 * TILE, 2**63 + 1, True),
    ):
        values = INPUTS[name][: rows * length].reshape(rows, length)
        order = values.abs().argsort(dim=1, stable=True)
        ranks = torch.empty_like(order).scatter_(1, order, torch.arange(length).expand_as(order))
        limits = torch.tensor([prune_limit(rank, length) for rank in range(length)])
        words = Stream(key).words(first, first + rows * length).reshape(rows, length)
        kept = torch.where(words < limits[ranks], values, 0.0)
        thinned = kept if bare else kept / (ranks + 1).float()
        again = kept if bare else thinned
        sums = [line_sums(part.abs() * bare, by_row=True) for part in (values, thinned)]
        keys = values.reshape(-1)[:length].contiguous().view(torch.int32).long() & 0xFFFFFFFF
        chosen = int(keys.sort().values[length // 3])
        told = [chosen, int((keys < chosen).sum()), *[int((keys == chosen).sum())] * 2]
        data = raw(torch.cat(sums)) + raw(again)
        case = {
            "name": f"prune {name}{' bare' * bare}",
            "input": name,
            "rows": rows,
            "length": length,
            "first": first,
            "key": key,
            "bare": bare,
        }
        found.append({**case, "digest": digest(0, raw(thinned), data, told)})
    return found


def sums() -> list[dict[str, Any]]:
    x, y = INPUTS["few"] * 0.1, INPUTS["z"]
    total = line_sums(y, by_row=False)
    product = line_sums(x.double() * y.double(), by_row=False)
    scaled = op(Code.SCALE, 2, 0, x=0.1)
    return [
        case("sum", "z", [op(Code.SUM, 0, 0)], None, data=raw(total)),
        case("dot", "few z", [scaled, op(Code.DOT, 0, 2, 1)], None, data=raw(product)),
    ]


def recorded() -> dict[str, Any]:
    """All vectors, as they are stored."""
    cases = [
        *types(),
        *arithmetic(),
        *votes(),
        *variances(),
        *variations(),
        *sifts(),
        *grams(),
        *movers(),
        *norms(),
        *balances(),
        *crowds(),
        *eight_bits(),
        *selection(),
        *gathering(),
        *randomness(),
        *sums(),
    ]
    inputs = {name: base64.b64encode(raw(tensor)).decode() for name, tensor in INPUTS.items()}
    return {"elements": ELEMENTS, "inputs": inputs, "cases": cases, "prunes": prunes(), "votes": ballots()}


if __name__ == "__main__":
    VECTORS.write_text(
        json.dumps(recorded(), indent=None, separators=(",", ":")).replace("},{", "},\n{") + "\n"
    )
