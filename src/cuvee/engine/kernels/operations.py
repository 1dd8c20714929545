"""The operations of the compiled machine, as `cuvee_kernels.c` numbers them. Knows no programs."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from enum import IntEnum

TILE = 1024  # elements of a register
REGISTER = 4 * TILE  # bytes of one


class Code(IntEnum):
    """What an operation does; `to`, `a` … are registers, except that a load's `a` is an input."""

    LOAD_BF16 = 0
    LOAD_F16 = 1
    LOAD_F32 = 2
    STORE_BF16 = 3
    STORE_F16 = 4
    STORE_F32 = 5
    ROUND_BF16 = 6
    ROUND_F16 = 7
    FILL = 8  # x
    ADD = 9
    SUB = 10
    MUL = 11
    SCALE = 12  # a · x
    SHRINK = 13  # a / x
    MULTIPLY_ADD = 14  # a + b · x, both rounded
    ABS = 15
    SIGN = 16
    ELECT = 17  # sign of a, x where it is 0
    CLAMP = 18  # a within −x … x
    TRIM = 19  # b where |a| is among the kept (c = 0) or not among them (c = 1)
    KEEP = 20  # a where a random word is below `bits`
    AGREE = 21  # to += c and d += x where sign a = b
    LARGEST = 22  # to = max(to, |c|) where sign a = b
    QUOTIENT = 23  # a / b, a where b is 0
    HIGH = 24  # count the upper 16 bits of |a|
    LOW = 25  # count the lower 16 bits of those whose upper ones are `bits`
    TIED = 26  # count those of |a| whose bits are `bits` (64-bit)
    SUM = 27  # float64 sum of each line
    DOT = 28  # float64 product of each line
    PICK = 29  # gather those of |a| between `bits` and `key`, at most `count` (`Picked`)
    MOVED = 30  # to += 1 where |a| > x
    BOOST = 31  # to += a where |a| > x, times the float of `bits` where b is 1
    UNIQUE = 32  # count those with |a| > x where b is above 1, and where it is 1 (two of 64 bits)
    LARGER = 33  # a where |a| >= |b|, else b
    OUTWEIGHS = 34  # to += 1 where |a| > |b - a| · x
    REACHED = 35  # a where b >= x, else 0
    AT_LEAST = 36  # a, at least x
    RANKED = 37  # rows of a are gathered, and thinned by the ranks of their magnitudes (`Ranked`)
    VARIANCE = 38  # over the registers that are listed (`listed`), of differences to the first
    LOAD_E4M3 = 39
    LOAD_E5M2 = 40
    SCORES = 41  # those of PCB merging, into the registers that a `Voter` for each expert names
    BALANCED = 42  # what they combine
    ORDERED = 43  # magnitudes in the order of a, which lies within -1 and 1
    MIXED = 44  # the weighted sum of inputs, or of their differences from a register, thinned (`Crowd`)
    ELECTED = 45  # their differences, thinned; those that agree with the sign of the weighted sum, combined
    GATHER = 46  # what is not 0 of a, taken from input b as stored and laid together (`Gathered`)
    VOTED = 47  # as ELECTED, of entries that were gathered (`Ballot`)
    ABOVE = 48  # 1 where a > b, else 0
    REACHES = 49  # 1 where a >= b, else 0
    EQUALS = 50  # 1 where a = b, else 0
    CHOOSE = 51  # a where c is not 0, else b
    GREATER = 52  # the larger of a and b
    DIVIDE = 53  # a / b
    MARK = 54  # a bit for each element, whether it is not 0
    SPREADS = 55  # the variance of inputs less a register (`Varying`)
    ENERGY = 56  # float64 squares of each line of those where that is selected
    DECIDED = 57  # the mean of those that agree with the sign of their sum
    GRAM = 58  # float64 products of each line, of all inputs less a register with each other (`Gram`)
    PICK_CHANGE = 59  # PICK of input b (float32 where c is not 0) less a; d is a register of its own
    STAYING = 60  # a where a bit of the tensor is set, else 0
    RECALL = 61  # float32 of the tensor from memory
    NORMS = (
        62  # float64 magnitudes of an input less a register in each line, before and after dropping (`Norms`)
    )
    MOVERS = 63  # the mean of those inputs less a register that are larger than a bound (`Movers`)
    SIFT = 64  # bits of what is above `c`, and of what is not below `bits`; these are gathered (`Picked`), and d tiles


class Op(ctypes.Structure):
    """One operation, as C sees it."""

    _fields_ = (
        ("code", ctypes.c_int32),
        ("to", ctypes.c_int32),
        ("a", ctypes.c_int32),
        ("b", ctypes.c_int32),
        ("c", ctypes.c_int32),
        ("d", ctypes.c_int32),
        ("x", ctypes.c_float),
        ("bits", ctypes.c_uint32),
        ("key", ctypes.c_uint64),
        ("count", ctypes.c_int64),
        ("data", ctypes.c_void_p),
    )


class Input(ctypes.Structure):
    """Where a program finds an input, as C sees it: an open file and memory for a run of it, or memory alone.

    Where it stays, there is memory for all of it; tiles whose number is a multiple of `seen` are there already.
    """

    _fields_ = (
        ("file", ctypes.c_int32),  # below 0 where `memory` holds all of it
        ("size", ctypes.c_int32),  # bytes of an element
        ("offset", ctypes.c_int64),
        ("memory", ctypes.c_void_p),
        ("stays", ctypes.c_int32),
        ("seen", ctypes.c_int32),
    )


class Voter(ctypes.Structure):
    """An expert of SCORES and BALANCED; `Balance` says how many follow it."""

    _fields_ = (
        ("delta", ctypes.c_int32),  # register
        ("score", ctypes.c_int32),  # register
        ("weight", ctypes.c_float),
        ("floor", ctypes.c_float),  # scores surely below it may be told as -1; 0: none
        *((name, ctypes.c_double) for name in ("low", "high", "width", "least", "most", "range")),
    )


class Balance(ctypes.Structure):
    """Before the experts of SCORES and BALANCED."""

    _fields_ = (("count", ctypes.c_int32), ("vision", ctypes.c_int32))


def listed(registers: Sequence[int]) -> ctypes.Array[ctypes.c_int32]:
    """What VARIANCE points to: how many registers, and which."""
    return (ctypes.c_int32 * (len(registers) + 1))(len(registers), *registers)


class Expert(ctypes.Structure):
    """An expert of MIXED and ELECTED; `Crowd` says how many follow it."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("input", "delta", "wide", "how")),
        ("weight", ctypes.c_float),
        ("share", ctypes.c_float),
        ("cut", ctypes.c_uint32),
        ("divisor", ctypes.c_float),
        ("ties", ctypes.c_int64),
        ("key", ctypes.c_uint64),
        ("over", ctypes.c_int64),
        ("roof", ctypes.c_uint32),
        ("unused", ctypes.c_uint32),
    )


class Crowd(ctypes.Structure):
    """Before the experts of MIXED and ELECTED."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("count", "base", "first", "made")),
        ("tied", ctypes.c_float),
        ("unused", ctypes.c_float),
    )


class Gathered(ctypes.Structure):
    """Where GATHER puts a tensor's entries: a bit for each element, how many stand before each tile, and they."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("bits", "before", "entries")),
        ("used", ctypes.c_int64),
        ("size", ctypes.c_int32),
        ("unused", ctypes.c_int32),
    )


class Kept(ctypes.Structure):
    """An expert of VOTED, as GATHER left it; `Ballot` says how many follow it."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("bits", "before", "entries")),
        ("size", ctypes.c_int32),
        ("half", ctypes.c_int32),
        *((name, ctypes.c_float) for name in ("weight", "share", "divisor", "unused")),
    )


class Ballot(ctypes.Structure):
    """Before the experts of VOTED."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("count", "base", "made", "divided")),
        ("tied", ctypes.c_float),
        ("narrow", ctypes.c_int32),
    )


class Factor(ctypes.Structure):
    """An input of GRAM; `Gram` says how many follow it."""

    _fields_ = tuple((name, ctypes.c_int32) for name in ("input", "own", "wide", "unused"))


class Gram(ctypes.Structure):
    """Before the inputs of GRAM."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("count", "base")),
        ("sums", ctypes.c_int64),  # bytes behind the head
        ("lines", ctypes.c_int64),
    )


class Norms(ctypes.Structure):
    """What NORMS works on; sums and bits lie so many bytes behind it (`drawn` 0: no bits are asked for)."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("input", "base", "own", "wide")),
        ("key", ctypes.c_uint64),
        ("below", ctypes.c_uint32),
        ("unused", ctypes.c_uint32),
        *((name, ctypes.c_int64) for name in ("before", "after", "drawn")),
    )


class Varied(ctypes.Structure):
    """An expert of SPREADS, ENERGY and DECIDED; `Varying` says how many follow it."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("input", "delta", "wide")),
        ("weight", ctypes.c_float),
        ("energies", ctypes.c_int64),  # bytes behind the head
    )


class Varying(ctypes.Structure):
    """Before the experts of SPREADS, ENERGY and DECIDED."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("count", "base", "selects")),
        ("least", ctypes.c_float),
        ("ties", ctypes.c_int64),
        ("cut", ctypes.c_uint32),
        ("unused", ctypes.c_uint32),
        ("marks", ctypes.c_int64),  # bytes behind the head
    )


class Mover(ctypes.Structure):
    """An expert of MOVERS; `Movers` says how many follow it."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("input", "delta", "wide")),
        ("boost", ctypes.c_float),
    )


class Movers(ctypes.Structure):
    """Before the experts of MOVERS."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("count", "base")),
        ("least", ctypes.c_float),
        ("boosts", ctypes.c_int32),  # whether any is not 1
    )


CROWD = 64  # experts at most
FACTORS = 4  # inputs of GRAM at most
TRIMMED, DROPPED, MARKED = 1, 2, 4  # how an expert is thinned: by magnitude, at random, or as bits say
BANDED = 8  # by magnitude, from above as well
MADE = {"sum": 0, "mean": 1, "max": 2}  # what ELECTED makes of those that agree


class Ranked(ctypes.Structure):
    """A stage of RANKED, as C sees it."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("length", "rows", "held")),
        ("key", ctypes.c_uint64),
        *((name, ctypes.c_void_p) for name in ("most", "divisors", "bits", "out", "before", "after")),
        *((name, ctypes.c_void_p) for name in ("values", "words", "scratch")),
        *((name, ctypes.c_float) for name in ("at", "by", "off", "unused")),
    )


class Picked(ctypes.Structure):
    """What PICK counts and gathers; room for the keys follows, for 16 more than are gathered."""

    _fields_ = (
        ("less", ctypes.c_int64),
        ("low", ctypes.c_int64),
        ("high", ctypes.c_int64),
        ("picked", ctypes.c_int64),  # -1 when they were too many
    )
