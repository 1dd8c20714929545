"""Finding the compiled kernels: a prebuilt library of the package, one built earlier, or one built now.

Owns when they may be used: never unless they reproduced the golden vectors of the torch reference, in this process or,
byte for byte the same library on this processor, in an earlier one. Must not import torch or NumPy.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cuvee.core import native
from cuvee.engine.kernels.build import built, prebuilt
from cuvee.engine.kernels.operations import TILE, Op
from cuvee.engine.kernels.passed import passed, record_of, remember

_LOCK = threading.Lock()


@dataclass(frozen=True, slots=True)
class State:
    """Whether kernels are in use, and why (not); `path` is the library.

    `failed`: they should be there and are not, so that merges are many times slower for no reason of the user's.
    """

    usable: bool
    reason: str
    path: Path | None = None
    failed: bool = False


class Kernels:
    """The functions of a loaded library; calls give other threads way."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        pointer, whole, wide = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
        self._run = _function(
            library.cuvee_run, whole, [pointer, whole, pointer, pointer, wide, wide, wide, pointer]
        )
        self._stream = _function(
            library.cuvee_stream,
            whole,
            [pointer, whole, pointer, whole, pointer, *[wide] * 5, pointer, pointer],
        )
        self._select = _function(library.cuvee_select, whole, [pointer, wide, pointer, whole, pointer])
        self._less = _function(library.cuvee_less, None, [pointer, wide, wide, ctypes.c_uint32, pointer])
        self._exact = _function(library.cuvee_exact, whole, [pointer, wide, pointer])
        self._find = _function(library.cuvee_find, whole, [pointer, wide, wide, pointer])
        self._equal = _function(library.cuvee_equal, wide, [pointer, wide, ctypes.c_uint32])
        self._settle = _function(
            library.cuvee_settle, None, [pointer, pointer, wide, pointer, ctypes.c_uint32, wide]
        )
        self._add = _function(library.cuvee_add, None, [pointer, pointer, wide])
        self._bad = _function(library.cuvee_not_finite, whole, [pointer, wide, whole, ctypes.c_uint64])

    def run(
        self,
        ops: Any,
        count: int,
        inputs: Any,
        out: int,
        first: int,
        elements: int,
        registers: int,
        every: int = 1,
    ) -> int:
        """Run a program on elements [first, first + elements), or on one of `every` tiles of them.

        Addresses are integers. Bits of the result: 1 where an input, 2 where an output is NaN or infinite.
        """
        flags = int(self._run(ops, count, inputs, out, first, elements, every, registers))
        if flags & 4:
            raise ValueError("a program holds an operation that the library does not know")
        return flags

    def stream(
        self,
        ops: Any,
        inputs: Any,
        out: int,
        size: int,
        span: tuple[int, int],
        step: int,
        every: int,
        registers: int,
    ) -> tuple[int, float]:
        """Run a program on (first, count) elements of `inputs` (`Input`), reading `step` at a time of those in files.

        `size`: bytes of an element of the output. The flags are those of `run`, 8 where a file cannot be read; and the
        seconds that reading took.
        """
        spent = ctypes.c_int64(0)
        flags = int(
            self._stream(
                ops,
                len(ops),
                inputs,
                len(inputs),
                out,
                size,
                *span,
                step,
                every,
                registers,
                ctypes.byref(spent),
            )
        )
        if flags & 4:
            raise ValueError("a program holds an operation that the library does not know")
        return flags, spent.value * 1e-9

    def find(self, table: Any, goal: int) -> tuple[int, int, int] | None:
        """(bin, values in lower bins, values in it) of the bin that holds position `goal`; None past the end."""
        found = (ctypes.c_int64 * 3)()
        if self._find(table, len(table), goal, found):
            return None
        return found[0], found[1], found[2]

    def select(self, keys: Any, count: int, goal: int) -> tuple[int, int, int] | None:
        """(key, less, equal) of the key at position `goal` of the sorted keys; None past the end."""
        return self.selected(keys, count, [goal])[0]

    def selected(self, keys: Any, count: int, goals: Sequence[int]) -> list[tuple[int, int, int] | None]:
        """As `select`, for several positions in less time."""
        found = (ctypes.c_int64 * (3 * len(goals)))()
        if self._select(keys, count, (ctypes.c_int64 * len(goals))(*goals), len(goals), found):
            raise MemoryError("keys to be sorted")
        threes = zip(found[::3], found[1::3], found[2::3], strict=True)
        return [None if three[0] < 0 else three for three in threes]

    def equal(self, keys: Any, key: int) -> int:
        """How many of the keys are this one."""
        return int(self._equal(keys, len(keys), key))

    def less(self, keys: Any, key: int, length: int) -> tuple[int, int]:
        """Of each whole run of `length` keys, how many are less than one: the sum of these counts, and of squares."""
        found = (ctypes.c_int64 * 2)()
        self._less(keys, len(keys), length, key, found)
        return found[0], found[1]

    def settle(self, sure: int, open: int, tiles: int, keys: Any, cut: int, ties: int) -> None:
        """Set those bits of `sure` that are set in `open` and whose key is above the cut, or among the first ties.

        Addresses are integers; keys are in the order of the bits that are open.
        """
        self._settle(sure, open, tiles * (TILE // 64), keys, cut, ties)

    def total(self, *parts: Any) -> float:
        """The sum of float64 numbers in arrays, rounded once, as `math.fsum` has it, in a twentieth of its time.

        Raises OverflowError or ValueError where it is not finite.
        """
        digits = (ctypes.c_int64 * _DIGITS)()
        if any(self._exact(values, len(values), digits) for values in parts):
            raise ValueError("a value is not finite")
        whole = sum(digit << (32 * place) for place, digit in enumerate(digits) if digit)
        return float(whole / _UNIT)

    def joined(self, parts: Sequence[Any]) -> Any:
        """Keys one after the other; the part itself where there is only one."""
        if len(parts) == 1:
            return parts[0]
        whole = (ctypes.c_uint32 * sum(map(len, parts)))()
        at = ctypes.addressof(whole)
        for part in parts:
            ctypes.memmove(at, part, ctypes.sizeof(part))
            at += ctypes.sizeof(part)
        return whole

    def add(self, to: Any, part: Any, bins: int) -> None:
        """Add 32-bit counts to 64-bit ones."""
        self._add(to, part, bins)

    def not_finite(self, address: int, elements: int, size: int, mask: int) -> bool:
        """Whether any element has all bits of `mask` set."""
        return bool(self._bad(address, elements, size, mask))


_DIGITS, _UNIT = 67, 1 << 1074  # of sums of float64, and what the last bit of the smallest is worth


def kernels() -> Kernels | None:
    """The kernels, loaded and tested once for each process; None where they are off or cannot be had."""
    if native.off():
        return None
    with _LOCK:
        return _load()[0]


def state() -> State:
    """What `cuvee doctor` says of them."""
    if native.off():
        return State(False, "switched off by CUVEE_KERNELS")
    with _LOCK:
        return _load()[1]


@functools.cache
def _load() -> tuple[Kernels | None, State]:
    if sys.byteorder != "little":
        return None, State(False, "this machine is big-endian")
    tried = State(False, "no C compiler was found and the package holds no library for this machine")
    reasons: list[str] = []
    for finder in (prebuilt, lambda: built(reasons.append)):
        try:
            path = finder()
            if path is None:
                tried = State(False, reasons[0], failed=True) if reasons else tried
                continue
            loaded = Kernels(path)
        except (OSError, AttributeError) as error:
            tried = State(False, f"the library cannot be loaded: {error}", failed=True)
            continue
        if wrong := _wrong(loaded, path):
            message = (
                f"the kernels in {path} differ from the reference ({', '.join(wrong)}); they are not used"
            )
            warnings.warn(message, RuntimeWarning, stacklevel=4)
            tried = State(False, message, path, failed=True)
            continue
        return loaded, State(True, "tested against the reference", path)
    return None, tried


def _wrong(loaded: Kernels, path: Path) -> Sequence[str]:
    """The vectors that a library gets wrong; it is tested unless the cache says that it passed."""
    record = record_of(path)
    if record is not None and passed(record):
        return ()
    from cuvee.engine.kernels.selftest import failures

    wrong = failures(loaded)
    if record is not None and not wrong:
        remember(record, path)
    return wrong


def _function(function: Any, result: Any, arguments: list[Any]) -> Any:
    function.restype, function.argtypes = result, arguments
    return function


__all__ = ["Kernels", "Op", "State", "kernels", "state"]
