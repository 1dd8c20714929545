"""Pictures that are nearly another: what is shown is the same, whatever single pixels say. Knows no tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cuvee.core.lazy import numpy, torch

if TYPE_CHECKING:
    from torch import Tensor

    from cuvee.evaluate.tracks.vision.glyphs import Pixels

_BLOCK = 4  # pixels of a side that are averaged, so that edges and small moves hardly count
_AT_ONCE = 512
NEAR = 8.0  # grey levels of 255


def distances(pictures: Sequence[Pixels], others: Sequence[Pixels]) -> Tensor:
    """(n) float32: from each picture to the nearest of `others`, root mean square of 4 × 4 block means, 0 to 255.

    Beside coloured pictures grey ones count in all three colours. Infinite where there are no others.
    """
    if not pictures or not others:
        return torch.full((len(pictures),), torch.inf)
    colour = any(picture.ndim == 3 for picture in (*pictures, *others))
    seen, given = _blocks(pictures, colour), _blocks(others, colour)
    parts = [torch.cdist(seen[i : i + _AT_ONCE], given).amin(1) for i in range(0, len(seen), _AT_ONCE)]
    nearest: Tensor = torch.cat(parts) / seen.shape[1] ** 0.5
    return nearest


def near(pictures: Sequence[Pixels], others: Sequence[Pixels]) -> list[bool]:
    """Whether each picture lies within 8 grey levels of one of `others`."""
    found: list[bool] = (distances(pictures, others) < NEAR).tolist()
    return found


def _blocks(pictures: Sequence[Pixels], colour: bool) -> Tensor:
    """(n, d) float32: the block means of each picture, of all three colours where `colour`."""
    means = []
    for first in range(0, len(pictures), _AT_ONCE):
        part = [_coloured(p) if colour else p for p in pictures[first : first + _AT_ONCE]]
        stacked = torch.from_numpy(numpy.stack(part)).float()
        count, high, wide = stacked.shape[:3]
        shape = (count, high // _BLOCK, _BLOCK, wide // _BLOCK, _BLOCK, -1)
        means.append(stacked.reshape(shape).mean((2, 4)).flatten(1))
    return torch.cat(means)


def _coloured(picture: Pixels) -> Pixels:
    return picture if picture.ndim == 3 else numpy.repeat(picture[:, :, None], 3, 2)
