"""The golden vectors: what the torch reference made of edge values, which a library must reproduce to the bit.

`vectors.json` is written by `tests/equivalence/record_vectors.py`: inputs (zeros of both signs, denormals, halfway
cases, the largest numbers, NaN and infinity), small programs, and a digest of what torch computed. No torch here.
"""

from __future__ import annotations

import base64
import ctypes
import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from cuvee.engine.kernels.operations import REGISTER, TILE, Ballot, Code, Gathered, Kept, Op, Ranked

if TYPE_CHECKING:
    from cuvee.engine.kernels.library import Kernels

VECTORS = Path(__file__).parent / "vectors.json"
_FIELDS = ("code", "to", "a", "b", "c", "d", "x", "bits", "key", "count")
_REGISTERS = 8


def failures(library: Kernels) -> list[str]:
    """Names of the vectors that the library gets wrong; a missing or damaged file is one, too."""
    try:
        vectors = _vectors()
        made = ((case, run_case(library, case, vectors)) for case in vectors["cases"])
        wrong = [case["name"] for case, found in made if found != case["digest"]]
        pruned = ((case, prune_case(library, case, vectors)) for case in vectors["prunes"])
        wrong += [case["name"] for case, found in pruned if found != case["digest"]]
        voted = ((case, vote_case(library, case, vectors)) for case in vectors["votes"])
        return wrong + [case["name"] for case, found in voted if found != case["digest"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"the vectors cannot be read: {error}"]


def run_case(library: Kernels, case: dict[str, Any], vectors: dict[str, Any]) -> str:
    """The digest of a case's flags, output, tables and counts."""
    data = (ctypes.c_char * max(case["data"], 1))()
    given = base64.b64decode(case.get("given", ""))
    ctypes.memmove(data, given, len(given))
    ops = (Op * len(case["ops"]))()
    for op, values in zip(ops, case["ops"], strict=True):
        for name, value in zip(_FIELDS, values, strict=True):
            setattr(op, name, value)
        op.data = ctypes.addressof(data)
    inputs = [base64.b64decode(vectors["inputs"][name]) for name in case["inputs"]]
    held = [ctypes.create_string_buffer(raw, len(raw)) for raw in inputs]
    addresses = (ctypes.c_void_p * max(len(held), 1))(*(ctypes.addressof(h) for h in held))
    out = (ctypes.c_char * (vectors["elements"] * case["size"] + 1))()
    area = (ctypes.c_char * (_REGISTERS * REGISTER))()
    flags = library.run(
        ops,
        len(ops),
        addresses,
        ctypes.addressof(out),
        case["first"],
        vectors["elements"],
        ctypes.addressof(area),
    )
    return digest(flags, bytes(out)[:-1], bytes(data)[: case["data"]], [op.count for op in ops])


def prune_case(library: Kernels, case: dict[str, Any], vectors: dict[str, Any]) -> str:
    """The digest of thinned rows, their sums before and after, what bits leave of them, and an order statistic."""
    raw = base64.b64decode(vectors["inputs"][case["input"]])
    rows, length = case["rows"], case["length"]
    count, first, bare = rows * length, case["first"], case["bare"]
    divisors = (ctypes.c_float * length)(*(rank + 1.0 for rank in range(length)))
    most = (ctypes.c_uint32 * length)(
        *(min(prune_limit(rank, length), 1 << 32) - 1 for rank in range(length))
    )
    sums, bits, out = (ctypes.c_double * (2 * rows))(), (ctypes.c_uint64 * 17)(), (ctypes.c_float * count)()
    own = [(ctypes.c_uint32 * size)() for size in (length + 2 * TILE, length + 2 * TILE, 5 * length + 16)]
    head = Ranked(length=length, key=case["key"], out=ctypes.addressof(out))
    head.most, head.divisors = ctypes.addressof(most), None if bare else ctypes.addressof(divisors)
    head.values, head.words, head.scratch = map(ctypes.addressof, own)
    if bare:
        head.bits, head.before = map(ctypes.addressof, (bits, sums))
        head.after = head.before + 8 * rows
    values = ctypes.create_string_buffer(raw, len(raw))
    inputs = (ctypes.c_void_p * 1)(ctypes.addressof(values))
    area = (ctypes.c_char * (2 * REGISTER))()
    load = Op(code=Code.LOAD_F32)
    thin = Op(code=Code.RANKED, data=ctypes.addressof(head))
    library.run((Op * 2)(load, thin), 2, inputs, 0, first, count, ctypes.addressof(area))
    again = (ctypes.c_float * count)()
    left = Op(code=Code.STAYING, to=1, data=ctypes.addressof(bits) - first // 8)
    if not bare:
        left = Op(code=Code.RECALL, to=1, data=ctypes.addressof(out) - 4 * first)
    ops = (Op * 3)(load, left, Op(code=Code.STORE_F32, a=1))
    library.run(ops, 3, inputs, ctypes.addressof(again), first, count, ctypes.addressof(area))
    keys = (ctypes.c_uint32 * length).from_buffer_copy(raw)
    found = library.select(keys, length, length // 3) or (0, 0, 0)
    told = [*found, library.equal(keys, found[0])]
    return digest(0, bytes(out), bytes(sums) + bytes(again), told)


def vote_case(library: Kernels, case: dict[str, Any], vectors: dict[str, Any]) -> str:
    """The digest of what is gathered of each expert, and of a vote over it that takes a base away first."""
    count = vectors["elements"]
    tiles = -(-count // TILE)
    raw = (Kept * (1 + len(case["experts"])))()  # the ballot lies in the last bytes of the first
    experts = raw[1:]
    head = Ballot.from_buffer(raw, ctypes.sizeof(Kept) - ctypes.sizeof(Ballot))
    head.count, head.base, head.made, head.tied = len(experts), 1, case["made"], 1.0
    head.narrow, head.divided = case["narrow"], any(own["divisor"] != 1 for own in case["experts"])
    left, held = b"", []
    for expert, own in zip(experts, case["experts"], strict=True):
        bits, before = (ctypes.c_uint64 * (tiles * TILE // 64))(), (ctypes.c_int64 * (tiles + 1))()
        entries = (ctypes.c_char * ((count + TILE) * case["width"]))()
        held += [bits, before, entries]
        expert.bits, expert.before, expert.entries = (ctypes.addressof(part) for part in held[-3:])
        expert.size, expert.half, expert.divisor = case["width"], case["half"], own["divisor"]
        expert.weight = expert.share = own["weight"]
        table = Gathered(expert.bits, expert.before, expert.entries, 0, case["width"])
        run_ops(library, own["ops"], own["inputs"], vectors, ctypes.addressof(table), 0)
        left += bytes(bits) + bytes(before) + bytes(entries)[: table.used * case["width"]]
    flags, out = run_ops(library, case["ops"], case["inputs"], vectors, ctypes.addressof(head), 4)
    return digest(flags, out, left, [])


def run_ops(
    library: Kernels, program: list[Any], names: list[str], vectors: dict[str, Any], data: int, size: int
) -> tuple[int, bytes]:
    """The flags and the output of operations that all work on what lies at `data`."""
    ops = (Op * len(program))()
    for op, values in zip(ops, program, strict=True):
        for name, value in zip(_FIELDS, values, strict=True):
            setattr(op, name, value)
        op.data = data
    held = [ctypes.create_string_buffer(base64.b64decode(vectors["inputs"][name])) for name in names]
    addresses = (ctypes.c_void_p * len(held))(*map(ctypes.addressof, held))
    out = (ctypes.c_char * (vectors["elements"] * size + 1))()
    area = (ctypes.c_char * (_REGISTERS * REGISTER))()
    at = ctypes.addressof(out)
    flags = library.run(ops, len(ops), addresses, at, 0, vectors["elements"], ctypes.addressof(area))
    return flags, bytes(out)[:-1]


def prune_limit(rank: int, length: int) -> int:
    """The random word below which the vectors keep the entry of this rank."""
    return (rank << 32) // length + (1 << 29)


def digest(flags: int, out: bytes, data: bytes, counts: list[int]) -> str:
    """One short text for all that a case leaves behind."""
    return blake3(repr((flags, counts)).encode() + out + data).hexdigest(length=16)


@functools.cache
def _vectors() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(VECTORS.read_text(encoding="ascii"))
    return found
