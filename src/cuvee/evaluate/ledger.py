"""What an evaluation has spent: the cost side of every score.

Owns counting alone. Everything that runs a model or reads weights for the referee enters it here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

from cuvee.core.linux_calls import forget_peak
from cuvee.engine.events import peak_memory


@dataclass(slots=True)
class Ledger:
    """Running totals. `evaluations` are candidates scored on selection data; `examples` items answered.

    `forward` and `backward` are passes of batches; FLOPs count a multiply-add as two; `bytes_read` the weights that
    were handed to the method; `seconds` is wall time within `spending`; `peak_bytes` the largest resident memory of the
    process within it (where the system cannot forget earlier peaks: since the process began).
    """

    evaluations: int = 0
    examples: int = 0
    forward: int = 0
    backward: int = 0
    flops: float = 0.0
    merges: int = 0
    bytes_read: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0

    def add(self, **amounts: float) -> None:
        """Add amounts by name."""
        for name, amount in amounts.items():
            setattr(self, name, getattr(self, name) + amount)

    @contextmanager
    def spending(self) -> Iterator[Ledger]:
        """Count the wall time of the block and its peak of memory."""
        forget_peak()
        began = time.monotonic()
        try:
            yield self
        finally:
            self.seconds += time.monotonic() - began
            self.peak_bytes = max(self.peak_bytes, peak_memory())

    def since(self, before: Ledger) -> Ledger:
        """What was spent after `before` was copied from this ledger; the peak is the later one."""
        spent = {f.name: getattr(self, f.name) - getattr(before, f.name) for f in fields(self)}
        return Ledger(**{**spent, "peak_bytes": self.peak_bytes})

    def copy(self) -> Ledger:
        """The totals as they are now."""
        return Ledger(**asdict(self))

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)
