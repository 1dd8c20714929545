"""What golden vectors are made of: edge values as inputs, operations, and cases with a digest of what torch gives."""

from __future__ import annotations

import base64
import math
import struct
from typing import Any

import torch
from torch import Tensor

from cuvee.engine.kernels.operations import TILE, Code
from cuvee.engine.kernels.selftest import digest

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


def single(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)
