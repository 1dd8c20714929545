"""What is found on the way to a threshold, for the passes after it: a bit for each element, whether it is above.

The pass that gathers the magnitudes near a threshold leaves a bit for each element that is surely above, and one for
each that is gathered; once the threshold is known these are settled. Owns such bits of `sce`, whose magnitudes are
variances, which take longer to make than bits to keep. Must not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from cuvee.engine.fused.builder import Builder, Figures, Value
from cuvee.engine.fused.chosen import Chosen
from cuvee.engine.fused.selection import Probe, Window
from cuvee.engine.kernels.library import kernels
from cuvee.engine.kernels.operations import TILE, Code
from cuvee.plan.nodes import Apply


@dataclass(frozen=True, slots=True)
class Sifted:
    """Bits of this many tiles from an address on, and behind them those of what lies within the bounds; its keys."""

    address: int
    tiles: int
    bounds: tuple[int, int]
    keys: Any


def sifting(probe: Probe, node: Apply, figures: Figures) -> bool:
    """Whether a probe gathers what lies near a threshold that is looked at again, and there is room for bits."""
    return node.stage == "sce" and probe.kind == "pick" and len(probe.windows) == 2 and "room" in figures


def sift(
    builder: Builder, probe: Probe, figures: Figures, value: Value, tiles: int, *, data: int, room: int
) -> None:
    """Emit the operation; `room` keys go to `data` (`Picked`)."""
    low, high = _inner(probe)
    behind = (figures["room"] - data) % (1 << 64)
    op = builder.emit(Code.SIFT, None, value, bits=low, key=behind, count=room, data=data)
    op.c, op.d = high, tiles


def windows(probe: Probe, figures: Any, tiles: int, found: Window) -> list[Window]:
    """What a probe asked for, of what the operation counted and gathered.

    The bounds are one less and one more than those asked for, which then lie among the keys.
    """
    low, high = _inner(probe)
    if found.keys is not None:
        figures["sifted"] = Sifted(figures["room"], tiles, (low, high), found.keys)
    zeros = found.low
    less, equal = (0, zeros) if low == 1 else (found.less, 0)
    near = Window((low - 1, high + 1), less, equal, 0, found.keys)
    return [replace(near, bounds=probe.windows[0], less=0, low=zeros, keys=None), near]


def settled(figures: Any, chosen: Chosen) -> int:
    """The address of a bit for each element, whether it is chosen; 0 where there are none."""
    found = figures.get("sifted")
    if isinstance(found, Sifted):
        low, high = found.bounds
        machine = kernels()
        if machine is None or not low <= chosen.bits <= high:
            return 0
        behind = found.address + found.tiles * TILE // 8
        machine.settle(found.address, behind, found.tiles, found.keys, chosen.bits, chosen.ties)
        figures["sifted"] = found.address
    return int(figures.get("sifted", 0))


def _inner(probe: Probe) -> tuple[int, int]:
    """The bounds of what is gathered; zeros are only counted."""
    low, high = probe.windows[1]
    return max(low, 1), high
