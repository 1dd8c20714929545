"""Writes the golden vectors of the compiled kernels: edge values, and what torch makes of them, operation by operation.

python tests/equivalence/record_vectors.py
"""

from __future__ import annotations

import base64
import json
import math
import struct
from typing import Any

import torch
from torch import Tensor

from cuvee.core.random import Stream, keep
from cuvee.engine.kernels.operations import DROPPED, TILE, TRIMMED, Code
from cuvee.engine.kernels.selftest import VECTORS, digest, prune_limit
from cuvee.methods.combine.pcb import Span, balanced_scores, pcb
from cuvee.methods.combine.sce import _variance
from cuvee.methods.contract import Block
from cuvee.methods.exact_sums import line_sums
from cuvee.methods.summaries import Cut

ELEMENTS = TILE + 3  # a whole tile and an odd rest
EDGES = [0.0, -0.0, 1.0, -1.0, 2.0**-149, -(2.0**-149), 2.0**-126, 2.0**-133, 6e-8, 5.96e-8, 6.1e-5, -6.09e-5]
EDGES += [
    65504.0,
    65519.0,
    -65503.9,
    1e-3,
    1.00390625,
    1.01171875,
    1.0048828125,
    1.00146484375,
    3.3e38,
    -3.3e38,
]
EDGES += [2049.0, 2051.0, 0.1, -0.1, 1 / 3, 7.5, 1e-40, -1e-40, 3e-39, 1e20, -1e20]
X = 0.3
WEIGHTS = (0.3, 0.6, 0.1)


def vector(seed: int, dtype: torch.dtype) -> Tensor:
    """Edges, some of them often, and noise of many sizes; finite in its type."""
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(ELEMENTS, generator=draw) * 10.0 ** torch.randint(-6, 3, (ELEMENTS,), generator=draw)
    edges = torch.tensor(EDGES)[torch.randint(0, len(EDGES), (ELEMENTS,), generator=draw)]
    found = torch.where(torch.rand(ELEMENTS, generator=draw) < 0.4, edges, noise).to(dtype)
    return torch.where(torch.isfinite(found), found, 1.0).to(dtype)


def wild(dtype: torch.dtype, value: float) -> Tensor:
    """Ones, and one value that is not finite near the end."""
    found = torch.ones(ELEMENTS, dtype=dtype)
    found[ELEMENTS - 2] = value
    return found


def eight_bit_inputs() -> dict[str, Tensor]:
    every = torch.arange(ELEMENTS, dtype=torch.int64).remainder(256)
    found = {}
    for letter, dtype, mask in (("e4", torch.float8_e4m3fn, 0x7F), ("e5", torch.float8_e5m2, 0x7C)):
        finite = torch.where((every & mask) == mask, every & 0x80, every).to(torch.uint8)
        found[letter] = finite.view(dtype)
        broken = finite.clone()
        broken[ELEMENTS - 2] = mask | 0x80
        found[f"{letter}_bad"] = broken.view(dtype)
    return found


INPUTS = {"x": vector(0, torch.float32), "y": vector(1, torch.float32), "z": vector(2, torch.float32)}
INPUTS |= {"h": vector(3, torch.bfloat16), "g": vector(4, torch.float16)}
INPUTS["few"] = (torch.arange(ELEMENTS) % 7 - 3).float()  # many ties
for letter, dtype in (("x", torch.float32), ("h", torch.bfloat16), ("g", torch.float16)):
    INPUTS |= {f"{letter}_nan": wild(dtype, math.nan), f"{letter}_inf": wild(dtype, -math.inf)}
INPUTS |= eight_bit_inputs()
INPUTS |= {"k": vector(5, torch.bfloat16), "few_h": INPUTS["few"].bfloat16()}
for place, letter in enumerate("pqr"):  # whose squares are finite
    INPUTS[letter] = vector(6 + place, torch.float32).clamp(-1e6, 1e6).bfloat16()
LOADS = {torch.float32: Code.LOAD_F32, torch.bfloat16: Code.LOAD_BF16, torch.float16: Code.LOAD_F16}
LOADS |= {torch.float8_e4m3fn: Code.LOAD_E4M3, torch.float8_e5m2: Code.LOAD_E5M2}
STORES = {torch.float32: Code.STORE_F32, torch.bfloat16: Code.STORE_BF16, torch.float16: Code.STORE_F16}


def raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def op(code: Code, to: int = 0, a: int = 0, b: int = 0, c: int = 0, d: int = 0, **more: Any) -> list[Any]:
    x = struct.unpack("f", struct.pack("f", more.get("x", 0.0)))[0]
    return [int(code), to, a, b, c, d, x, more.get("bits", 0), more.get("key", 0), more.get("count", 0)]


def case(
    name: str,
    inputs: str,
    ops: list[list[Any]],
    result: Tensor | None,
    *,
    first: int = 0,
    flags: int | None = None,
    data: bytes = b"",
    counts: dict[int, int] | None = None,
    given: bytes = b"",
) -> dict[str, Any]:
    """Inputs go to registers 0, 1, …; `result` is what register 5 holds then, stored in its type.

    `given`: what operations are handed in memory; `data`: what they leave there, where that is something else.
    """
    names = inputs.split()
    program = [op(LOADS[INPUTS[n].dtype], place, place) for place, n in enumerate(names)] + ops
    out = b""
    if result is not None:
        if bool(result.float().isnan().any()) and flags is None:
            raise ValueError(f"{name}: the result holds NaN")
        program.append(op(STORES[result.dtype], 0, 5))
        out = raw(result)
        flags = flags if flags is not None else 0 if bool(result.float().isfinite().all()) else 2
    after = [p[9] for p in program]
    for place, count in (counts or {}).items():
        after[len(names) + place] = count
    size = 0 if result is None else result.element_size()
    data = data or given
    made = {"name": name, "inputs": names, "ops": program, "first": first, "size": size, "data": len(data)}
    if given:
        made["given"] = base64.b64encode(given).decode()
    return {**made, "digest": digest(flags or 0, out, data, after)}


def marks(values: Tensor) -> bytes:
    """A bit for each element, to the end of the last tile."""
    flags = [int(x != 0) for x in values.tolist()] + [0] * (-len(values) % 8)
    return bytes(sum(flags[i + j] << j for j in range(8)) for i in range(0, len(flags), 8))


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
        case("spill", "y", [op(Code.SPILL, 0, 0)], None, data=raw(y)),
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


def varying(names: list[str], cut: int, ties: int, *, least: float = 0.0, energies: bool = False) -> bytes:
    """The inputs after the first, less it, with scratch in their registers and room for their energies behind."""
    lines, head = -(-ELEMENTS // TILE), 32 + 24 * len(names)
    found = struct.pack("3ifqII", len(names), 0, int(cut > 0), least, ties, cut, 0)
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
) -> bytes:
    """Two experts: input 0 as it is, input 1 trimmed at 2.0 for elections, with scratch in registers 6 and 7.

    `dropped`: below which random words input 1 is kept instead, its divisor, and the key of those words.
    """
    found = struct.pack("4iff", 2, base, first, made or 0, 1.0, 0.0)
    for place, (weight, left) in enumerate(zip(weights, ties, strict=True)):
        wide = int(place == 1)
        how, cut, divisor, key = TRIMMED * int(wide and made is not None), 0x40000000, 1.0, 0
        if wide and dropped is not None:
            how, (cut, divisor, key) = DROPPED, dropped
        head = struct.pack("4iff", place, 6 + place, wide, how, weight, weight)
        found += head + struct.pack("IfqQ", cut, divisor, left, key)
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
            after = crowd(weights, [0, over - len(tied) * (over > 0)], base=2, made=made)
            ops = [zero, op(Code.ELECTED, 5)]
            found.append(case(f"elected {name} {made}", "h few y", ops, result, given=given, data=after))
    return found + drops(weights, zero)


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


def single(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)


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
            counts = [int(c.sum()) for c in (keys < bounds[0], keys == bounds[0], keys == bounds[1])]
            room = inner.numel() + 7
            data = raw(torch.tensor([*counts, inner.numel()])) + raw(inner.to(torch.int32))
            data += bytes(4 * (room + 16 - inner.numel()))
            ops = [op(Code.PICK, 0, 0, bits=bounds[0], key=bounds[1], count=room)]
            found.append(case(f"pick {name} {bounds}", name, ops, None, data=data))
    return found


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
    """Rows thinned by rank; lines are rows, as these are shorter than 1024."""
    found = []
    for name, rows, length, first, key in (
        ("few", 5, 200, 0, 3),
        ("z", 1, 1000, 5 * TILE, 2**63 + 1),
        ("x", 9, 1, 0, 5),
    ):
        values = INPUTS[name][: rows * length].reshape(rows, length)
        order = values.abs().argsort(dim=1, stable=True)
        ranks = torch.empty_like(order).scatter_(1, order, torch.arange(length).expand_as(order))
        limits = torch.tensor([prune_limit(rank, length) for rank in range(length)])
        words = Stream(key).words(first, first + rows * length).reshape(rows, length)
        kept = torch.where(words < limits[ranks], values, 0.0)
        thinned = kept / (ranks + 1).float()
        noted = thinned.view(torch.int32) != 0
        marked = noted.reshape(-1).tolist() + [False] * 8
        bits = bytes(
            sum(int(marked[at + k]) << k for k in range(8)) for at in range(0, rows * length // 8 * 8 + 1, 8)
        )
        again = torch.where(noted, values, 0.0)
        totals = [line_sums(part.abs(), by_row=True) for part in (values, thinned)]
        keys = values.reshape(-1)[:length].contiguous().view(torch.int32).long() & 0xFFFFFFFF
        chosen = int(keys.sort().values[length // 3])
        told = [chosen, int((keys < chosen).sum()), *[int((keys == chosen).sum())] * 2]
        data = raw(torch.cat(totals)) + bits + raw(again)
        case = {
            "name": f"prune {name}",
            "input": name,
            "rows": rows,
            "length": length,
            "first": first,
            "key": key,
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
        *grams(),
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
