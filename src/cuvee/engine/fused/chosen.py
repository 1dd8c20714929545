"""The largest magnitudes of a tensor, as a threshold says them, and the operation that keeps or drops them."""

from __future__ import annotations

from dataclasses import dataclass

from cuvee.engine.fused.builder import Builder, Value
from cuvee.engine.kernels.operations import Code

ALL = 1 << 62  # more ties than there can be


@dataclass(frozen=True, slots=True)
class Chosen:
    """Of `total` magnitudes the `kept` largest: those whose bits exceed `bits`, and the first `ties` equal to it."""

    kept: int
    total: int
    bits: int = 0
    ties: int = 0


def cut(builder: Builder, chosen: Chosen, by: Value, value: Value, *, drop: bool = False) -> Value:
    """`value` where |by| is among the chosen (or not among them), else 0; both are released."""
    if chosen.kept <= 0 or chosen.kept >= chosen.total:
        if by is not value:
            builder.release(by)
        if (chosen.kept > 0) != drop:
            return value
        builder.release(value)
        return builder.filled(0.0)
    to = builder.new()
    op = builder.emit(Code.TRIM, to, by, value, bits=chosen.bits, count=chosen.ties)
    op.c = int(drop)
    builder.release(value)
    if by is not value:
        builder.release(by)
    return to
