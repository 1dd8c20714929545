"""Golden vectors of the operations that take all experts at once: votes, variances, products, balances."""

from __future__ import annotations

import math
import struct
from typing import Any

import torch
from torch import Tensor
from vector_cases import ELEMENTS, INPUTS, LOADS, WEIGHTS, X, case, marks, op, raw, single

from cuvee.core.random import Stream, keep
from cuvee.engine.kernels.operations import BANDED, DROPPED, TILE, TRIMMED, Code
from cuvee.engine.kernels.selftest import digest
from cuvee.methods.combine.pcb import Span, balanced_scores, pcb
from cuvee.methods.combine.sce import _variance
from cuvee.methods.exact_sums import line_sums


def votes() -> list[dict[str, Any]]:
    """The operations by which a coordinate decides which experts count."""
    few, y, z = INPUTS["few"], INPUTS["y"], INPUTS["z"]
    own, boost = z.abs() > X, 1.75
    (bits,) = struct.unpack("I", struct.pack("f", boost))
    copied = op(Code.SCALE, 5, 0, x=1.0)
    counts = [int((own & (few > 1)).sum()), int((own & (few == 1)).sum())]
    boosted = few + torch.where(own, torch.where(few == 1, z * boost, z), 0.0)
    outweighs = few + (z.abs() > (y - z).abs() * X)
    return [
        case("moved", "few z", [op(Code.MOVED, 0, 1, x=X), copied], few + own),
        case("boost", "few z few", [op(Code.BOOST, 0, 1, 2, x=X, bits=bits), copied], boosted),
        case("unique", "z few", [op(Code.UNIQUE, 0, 0, 1, x=X)], None, data=raw(torch.tensor(counts))),
        case("larger", "y z", [op(Code.LARGER, 5, 0, 1)], torch.where(y.abs() >= z.abs(), y, z)),
        case("larger, tied", "few x", [op(Code.ABS, 2, 0), op(Code.LARGER, 5, 0, 2)], few),
        case("outweighs", "few z y", [op(Code.OUTWEIGHS, 0, 1, 2, x=X), copied], outweighs),
        case("reached", "y few", [op(Code.REACHED, 5, 0, 1, x=1.0)], torch.where(few >= 1, y, 0.0)),
        case("at least", "y", [op(Code.AT_LEAST, 5, 0, x=X)], y.clamp(min=X)),
    ]


def variances() -> list[dict[str, Any]]:
    """Of one, three and 65 experts, of usual sizes and of denormal ones; `few` twice makes some 0."""
    found = []
    for name, inputs in (("three", "few z h"), ("two", "few few y"), ("one", "x"), ("many", "z few h")):
        values = [INPUTS[n].float() for n in inputs.split()]
        count = {"three": 3, "two": 2, "one": 1, "many": 65}[name]
        for scale in (1e-6, 1e-20, 2.0**-75):
            registers = [place % len(values) for place in range(count)]
            scaled = [value * scale for value in values]
            ops = [op(Code.SCALE, place, place, x=scale) for place in range(len(values))]
            result = _variance([scaled[place] for place in registers])
            given = struct.pack(f"{count + 1}i", count, *registers)
            ops.append(op(Code.VARIANCE, 5))
            found.append(case(f"variance {name} {scale}", inputs, ops, result, given=given))
    return found


def varying(
    names: list[str], cut: int, ties: int, *, least: float = 0.0, energies: bool = False, marked: bool = False
) -> bytes:
    """The inputs after the first, less it, with scratch in their registers and room for their energies behind.

    `marked`: bits say what is selected, which lie behind that room.
    """
    lines, head = -(-ELEMENTS // TILE), 40 + 24 * len(names)
    behind = (head + 8 * lines * len(names)) * marked
    found = struct.pack("3ifqIIq", len(names), 0, int(cut > 0), least, ties, cut, 0, behind)
    for place, name in enumerate(names):
        wide, room = int(INPUTS[name].dtype == torch.float32), head + 8 * lines * place if energies else 0
        found += struct.pack("3ifq", place + 1, 1 + place, wide, WEIGHTS[place], room)
    return found


def variations() -> list[dict[str, Any]]:
    """SCE over two and three experts, narrow and wide: variances, energies and what is decided, ties kept or not."""
    found = []
    for inputs in ("few_h p q", "few_h p q r", "p few q", "r few p q"):
        base, *names = inputs.split()
        changes = [INPUTS[name].float() - INPUTS[base].float() for name in names]
        spread = _variance(changes)
        ops = [op(Code.SPREADS, 5)]
        found.append(case(f"spreads {inputs}", inputs, ops, spread, given=varying(names, 0, 0)))
        keys = spread.view(torch.int32)
        cut = int(keys[keys > 0].mode().values)
        tied = (keys == cut).nonzero().reshape(-1).tolist()
        for left in (0, len(tied) // 2, 1 << 62):
            kept = keys > cut
            kept[tied[:left]] = True
            chosen = [torch.where(kept, change, 0.0) for change in changes]
            after = max(left - len(tied), 0)
            given = varying(names, cut, left, energies=True)
            sums = b"".join(raw(line_sums(one.double().square(), by_row=False)) for one in chosen)
            data = varying(names, cut, after, energies=True) + sums
            ops = [op(Code.ENERGY, 5)]
            found.append(case(f"energies {inputs} {left}", inputs, ops, None, given=given, data=data))
            for least in (0.0, 0.5):
                given, data = (varying(names, cut, ties, least=least) for ties in (left, after))
                ops = [op(Code.DECIDED, 5)]
                name = f"decided {inputs} {left} {least}"
                found.append(case(name, inputs, ops, agreeing(chosen, least), given=given, data=data))
        bits = marks(kept.float()).ljust(-(-ELEMENTS // TILE) * TILE // 8, b"\0")
        head = varying(names, cut, 0, energies=True, marked=True)
        given, data = (head + part + bits for part in (bytes(len(sums)), sums))
        ops = [op(Code.ENERGY, 5)]
        found.append(case(f"energies {inputs} marked", inputs, ops, None, given=given, data=data))
        ops, result = [op(Code.DECIDED, 5)], agreeing(chosen, 0.0)
        found.append(case(f"decided {inputs} marked", inputs, ops, result, given=given, data=given))
    return found


def sifts() -> list[dict[str, Any]]:
    """Bits of what is above two bounds and of what lies within, and the magnitudes of that."""
    found, tiles = [], -(-ELEMENTS // TILE)
    for name, low, high in (("x", 1, 0x3F800000), ("few", 0x3F800000, 0x40000000), ("y", 5, 0x7FFFFFFF)):
        keys = INPUTS[name].view(torch.int32) & 0x7FFFFFFF
        within, room = (keys >= low) & (keys <= high), tiles * TILE
        behind = 32 + 4 * (room + 16)
        ops = [op(Code.SIFT, 0, 0, c=high, d=tiles, bits=low, key=behind, count=room)]
        counts = [int((keys < low).sum()), int((keys == 0).sum()), 0, int(within.sum())]
        data = (struct.pack("4q", *counts) + raw(keys[within])).ljust(behind, b"\0")
        for chosen in (keys > high, within):
            data += marks(chosen.float()).ljust(tiles * TILE // 8, b"\0")
        given = bytes(len(data))
        found.append(case(f"sift {name}", name, ops, None, given=given, data=data))
    return found


def movers() -> list[dict[str, Any]]:
    """The mean of what moved, narrow and wide, boosted where one moved alone or not."""
    found = []
    for inputs, boosts, least in (
        ("few_h p", [1.0], 1.0),
        ("few_h p q r", [1.0, 1.0, 1.0], X),
        ("few_h p q r", [1.25, 1.0, 1.5], X),
        ("p few q", [1.0, 1.0], 0.0),
    ):
        base, *names = inputs.split()
        changes = [INPUTS[name].float() - INPUTS[base].float() for name in names]
        moved = [change.abs() > single(least) for change in changes]
        count = sum((own.int() for own in moved), torch.zeros(ELEMENTS))
        total = torch.zeros(ELEMENTS)
        given = struct.pack("2ifi", len(names), 0, least, any(boost != 1 for boost in boosts))
        for place, (change, own, boost) in enumerate(zip(changes, moved, boosts, strict=True), 1):
            total = total + torch.where(own, torch.where(count == 1, change * boost, change), 0.0)
            wide = int(INPUTS[names[place - 1]].dtype == torch.float32)
            given += struct.pack("3if", place, 3 + place, wide, boost)
        name = f"movers {inputs} {boosts[0]}"
        ops = [op(Code.MOVERS, 5)]
        found.append(case(name, inputs, ops, total / count.clamp(min=1), given=given))
    return found


def grams() -> list[dict[str, Any]]:
    """All products of two to four inputs, less a base or not, narrow and wide."""
    found, lines = [], -(-ELEMENTS // TILE)
    for base, inputs in (
        ("few_h", "p q"),
        ("few_h", "p few q"),
        ("", "p few"),
        ("", "p q r"),
        ("", "p q few r"),
    ):
        names = inputs.split()
        less = INPUTS[base].float() if base else torch.zeros(ELEMENTS)
        values = [(INPUTS[name].float() - less).double() for name in names]
        given = struct.pack("2iqq", len(names), 0 if base else -1, 24 + 16 * len(names), lines)
        for place, name in enumerate(names, bool(base)):
            given += struct.pack("4i", place, place, int(INPUTS[name].dtype == torch.float32), 0)
        sums = [line_sums(a * b, by_row=False) for i, a in enumerate(values) for b in values[i:]]
        data = given + b"".join(map(raw, sums))
        ops = [op(Code.GRAM)]
        found.append(case(f"gram {base} {inputs}", f"{base} {inputs}", ops, None, given=given, data=data))
    return found


def agreeing(changes: list[Tensor], least: float) -> Tensor:
    """The weighted mean of those that agree in sign with their sum, which counts as above 0 where it is 0."""
    sign = torch.where(sum(changes, torch.zeros(ELEMENTS)) >= 0, 1.0, -1.0)
    total, share = torch.zeros(ELEMENTS), torch.zeros(ELEMENTS)
    for change, weight in zip(changes, WEIGHTS, strict=False):
        agrees = change.sign() == sign
        total += torch.where(agrees, change * weight, 0.0)
        share += torch.where(agrees, single(weight), 0.0)
    share = share.clamp(min=single(least)) if least else torch.where(share == 0, 1.0, share)
    return total / share


def balances() -> list[dict[str, Any]]:
    """PCB merging: scores of either kind, scores in order, and what is combined by them."""
    deltas, spans = [INPUTS["few"] * 0.1, INPUTS["z"] * 0.03], [Span(0.1, 0.25), Span(1e-4, 0.01)]
    cuts, weights = [Span(-0.01, 0.3), Span(0.0, 0.0)], [1.2, 0.7]
    scaled = [op(Code.SCALE, 0, 0, x=0.1), op(Code.SCALE, 1, 1, x=0.03)]
    found = []
    for variant in ("reference", "vision"):
        given = struct.pack("ii", 2, int(variant == "vision"))
        for place, (size, cut, weight) in enumerate(zip(spans, cuts, weights, strict=True)):
            bounds = [size.low, size.high, size.high - size.low, cut.low, cut.high]
            width = cut.high - cut.low or math.inf
            given += struct.pack("iiff6d", place, place + 2, weight, 0.0, *bounds, width)
        scores = balanced_scores(deltas, spans, variant)
        merged = pcb.function(
            deltas,
            weight=weights,
            variant=variant,
            summary={"sizes": spans, "scores": cuts},
        )
        program = [*scaled, op(Code.SCORES)]
        for place, score in enumerate(scores):
            copied = [*program, op(Code.SCALE, 5, place + 2, x=1.0)]
            found.append(case(f"score {place}, {variant}", "few z", copied, score, given=given))
        found.append(
            case(f"balanced, {variant}", "few z", [*program, op(Code.BALANCED, 5)], merged, given=given)
        )
    keys = scores[0].view(torch.int32)
    one = 0x3F800000
    ordered = torch.where(scores[0] < 0, one - (keys & 0x7FFFFFFF), one + (keys & 0x7FFFFFFF))
    placed = [*program, op(Code.ORDERED, 5, 2)]
    found.append(case("ordered", "few z", placed, ordered.view(torch.float32), given=given))
    return found


def crowd(
    weights: list[float],
    ties: list[int],
    *,
    base: int,
    first: int = 0,
    made: int | None = None,
    dropped: tuple[int, float, int] | None = None,
    roof: tuple[int, int] | None = None,
) -> bytes:
    """Two experts: input 0 as it is, input 1 trimmed at 2.0 for elections, with scratch in registers 6 and 7.

    `dropped`: below which random words input 1 is kept instead, its divisor, and the key of those words. `roof`: it is
    trimmed from above as well, at the magnitude of these bits, and so many equal to it go.
    """
    found = struct.pack("4iff", 2, base, first, made or 0, 1.0, 0.0)
    for place, (weight, left) in enumerate(zip(weights, ties, strict=True)):
        wide = int(place == 1)
        how, cut, divisor, key = TRIMMED * int(wide and made is not None), 0x40000000, 1.0, 0
        if wide and dropped is not None:
            how, (cut, divisor, key) = DROPPED, dropped
        if wide and roof is not None:
            how = BANDED
        head = struct.pack("4iff", place, 6 + place, wide, how, weight, weight)
        bits, over = roof if wide and roof is not None else (0, 0)
        found += head + struct.pack("IfqQqII", cut, divisor, left, key, over, bits, 0)
    return found


def crowds() -> list[dict[str, Any]]:
    """Sums and elections of all experts at once: operation by operation as single ones."""
    h, few, y, weights = INPUTS["h"].float(), INPUTS["few"], INPUTS["y"], [0.3, -1.25]
    plain = crowd(weights, [0, 0], base=-1, first=1)
    total = h * weights[0] + few * weights[1]
    found = [case("mixed", "h few", [op(Code.MIXED, 5)], total, given=plain)]
    zero = op(Code.SCALE, 2, 2, x=0.0)
    changed = crowd(weights, [0, 0], base=2)
    small = y * 1e-20
    total = 0.0 + (h - small) * weights[0] + (few - small) * weights[1]
    ops = [op(Code.SCALE, 2, 2, x=1e-20), op(Code.MIXED, 5)]
    found.append(case("mixed, less a base", "h few y", ops, total, given=changed))
    tied = (few.abs() == 2.0).nonzero().reshape(-1).tolist()
    for name, left in (("none", 0), ("some", len(tied) // 2), ("all", 1 << 62)):
        kept = few.abs() > 2.0
        kept[tied[:left]] = True
        parts = [h * weights[0], torch.where(kept, few, 0.0) * weights[1]]
        for made, result in enumerate(agreed(parts, weights)):
            given = crowd(weights, [0, left], base=2, made=made)
            over = left if left > 1 << 40 else 0
            after = crowd(weights, [0, over], base=2, made=made)
            ops = [zero, op(Code.ELECTED, 5)]
            found.append(case(f"elected {name} {made}", "h few y", ops, result, given=given, data=after))
        given, after = (crowd(weights, [0, each], base=2, made=0) for each in (left, over))
        result, ops = 0.0 + parts[0] + parts[1], [zero, op(Code.MIXED, 5)]
        found.append(case(f"mixed {name}", "h few y", ops, result, given=given, data=after))
    return found + drops(weights, zero) + bands(weights, zero)


def bands(weights: list[float], zero: list[Any]) -> list[dict[str, Any]]:
    """Sums with the second expert thinned from below at 2.0, and from above there, too, or at 3.0."""
    h, few = INPUTS["h"].float(), INPUTS["few"]
    at = {bound: (few.abs() == bound).nonzero().reshape(-1).tolist() for bound in (2.0, 3.0)}
    tiled = {bound: sum(i < TILE for i in places) for bound, places in at.items()}  # the rest has none
    found, every = [], 1 << 62
    for bound, left, over in (
        *((3.0, 1, 1), (3.0, every, 0), (3.0, 0, 2), (2.0, 5, 2), (2.0, every, 1)),
        *((3.0, 300, 300), (3.0, 300, 5), (3.0, 5, 300), (2.0, 300, 299), (2.0, 299, 300)),
    ):
        kept = (few.abs() > 2.0) & (few.abs() < bound)
        kept[at[2.0][:left]] = True
        kept[at[bound][over:]] |= bound > 2.0
        kept[at[bound][:over]] = False
        bits = 0x40000000 if bound == 2.0 else 0x40400000
        result = 0.0 + h * weights[0] + torch.where(kept, few, 0.0) * weights[1]
        given = crowd(weights, [0, left], base=2, roof=(bits, over))
        remain = (left if left == every else max(left - tiled[2.0], 0), max(over - tiled[bound], 0))
        after = crowd(weights, [0, remain[0]], base=2, roof=(bits, remain[1]))
        ops = [zero, op(Code.MIXED, 5)]
        name = f"banded below {bound}, {left} {over}"
        found.append(case(name, "h few y", ops, result, given=given, data=after))
    return found


def agreed(parts: list[Tensor], weights: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Of what agrees with the elected sign: the sum, the mean and the greatest."""
    sign = torch.where(parts[0] + parts[1] == 0, 1.0, (parts[0] + parts[1]).sign())
    total, share, greatest = (torch.zeros_like(sign) for _ in range(3))
    for part, weight in zip(parts, weights, strict=True):
        total = total + torch.where(part.sign() == sign, part, 0.0)
        share = share + (part.sign() == sign).float() * weight
        greatest = torch.maximum(greatest, torch.where(part.sign() == sign, part, 0.0).abs())
    return total, total / torch.where(share == 0, 1.0, share), greatest * sign


def drops(weights: list[float], zero: list[Any]) -> list[dict[str, Any]]:
    """Sums and elections with the second expert thinned at random and divided by its density."""
    h, few, found = INPUTS["h"].float(), INPUTS["few"], []
    for key, first, density, divisor in (
        (5, 0, 0.3, 0.3),
        (2**64 - 3, 5 * TILE, 0.75, 1.0),
        (9, 2**43, 0.0, 1.0),
    ):
        mask = keep(Stream(key).words(first, first + ELEMENTS), density)
        parts = [h * weights[0], torch.where(mask, few, 0.0) / divisor * weights[1]]
        below = round(density * 2**32), divisor, key
        for made, result in enumerate((*agreed(parts, weights), 0.0 + parts[0] + parts[1])):
            given = crowd(weights, [0, 0], base=2, made=made % 3, dropped=below)
            ops = [zero, op(Code.MIXED if made == 3 else Code.ELECTED, 5)]
            name = f"dropped {density}, {'mixed' if made == 3 else made}"
            found.append(case(name, "h few y", ops, result, given=given, first=first))
    return found


def norms() -> list[dict[str, Any]]:
    """Magnitudes of a change before and after dropping, narrow and wide, with the bits of what is kept or without."""
    found, lines = [], -(-ELEMENTS // TILE)
    for inputs, key, density, asked in (("few_h p", 5, 0.3, True), ("p few", 2**64 - 3, 0.75, False)):
        base, change = (INPUTS[name] for name in inputs.split())
        mask = keep(Stream(key).words(0, lines * TILE), density)
        delta = (change.float() - base.float()).abs()
        wide, sums = int(change.dtype == torch.float32), 64
        given = struct.pack("4iQ2I", 1, 0, 2, wide, key, round(density * 2**32), 0)
        given += struct.pack("3q", sums, sums + 8 * lines, (sums + 16 * lines) * asked) + bytes(sums - 56)
        totals = [line_sums(part, by_row=False) for part in (delta, torch.where(mask[:ELEMENTS], delta, 0.0))]
        data = given + raw(torch.cat(totals)) + marks(mask.float()) * asked
        found.append(case(f"norms {inputs}", inputs, [op(Code.NORMS)], None, given=given, data=data))
    return found


def ballots() -> list[dict[str, Any]]:
    """Elections over entries that were gathered: what is not 0 of `few` and of `x`, less a base."""
    masks, weights, found = ("few", "x"), [0.3, -1.25], []
    for names, base, narrow, divisors in (
        (("h", "k"), "few_h", True, (1.0, 1.0)),
        (("h", "k"), "few", False, (1.0, 1.0)),
        (("h", "k"), "few_h", True, (1.0, 0.3)),
        (("g", "g"), "few", False, (1.0, 1.0)),
        (("z", "y"), "few", False, (0.3, 1.0)),
    ):
        experts, parts, left = [], [], b""
        for name, by, weight, divisor in zip(names, masks, weights, divisors, strict=True):
            kept, stored = INPUTS[by] != 0, INPUTS[name]
            delta = torch.where(kept, (stored.float() - INPUTS[base].float()) / divisor, 0.0)
            parts.append(delta * weight)
            ops = [op(Code.LOAD_F32, 0, 0), op(Code.GATHER, 0, 0, 1)]
            experts.append({"inputs": [by, name], "ops": ops, "weight": weight, "divisor": divisor})
            bits = marks(kept.float()).ljust(2 * TILE // 8, b"\0")
            before = torch.tensor([0, int(kept[:TILE].sum()), int(kept.sum())])
            left += bits + raw(before) + raw(stored[kept])
        dtype = INPUTS[names[0]].dtype
        told = {"width": dtype.itemsize, "half": int(dtype == torch.float16), "narrow": int(narrow)}
        ops = [op(LOADS[INPUTS[base].dtype], 1, 0), op(Code.VOTED, 5), op(Code.STORE_F32, 0, 5)]
        for made, result in enumerate(agreed(parts, weights)):
            flags = 0 if bool(result.isfinite().all()) else 2
            name = f"voted {' '.join(names)} less {base}, {divisors[1]}, {made}"
            own = {"name": name, "inputs": [base], "experts": experts, "ops": ops, "made": made, **told}
            found.append({**own, "digest": digest(flags, raw(result), left, [])})
    return found


def agree(code: Code, to: int, share: int) -> list[list[Any]]:
    return [op(code, to, 0, 1, 2, share, x=X)]
