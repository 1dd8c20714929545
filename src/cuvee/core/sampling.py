"""A cheap digest of what a file holds: pieces of it, so chosen that values seldom change without one of them changing.

Looked at are 64 pieces of 4 KiB spread evenly over the file, and the first and last KiB of every span that is asked
for (tensors), the most regular ones where there are very many. It proves a difference, never equality: that takes
reading all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from blake3 import blake3

EVEN = 64
PIECE = 4096
END = 1024
SPANS = 4096  # of one file whose ends are looked at

Span = tuple[int, int]  # offset and number of bytes


def sample(path: Path, spans: Sequence[Span] = ()) -> str:
    """The digest of a file's size and pieces. OSError when it cannot be read."""
    with path.open("rb", buffering=0) as file:
        size = file.seek(0, 2)
        hasher = blake3(size.to_bytes(8, "little"))
        for offset, count in _pieces(size, spans):
            file.seek(offset)
            hasher.update(file.read(count))
    return hasher.hexdigest()


def _pieces(size: int, spans: Sequence[Span]) -> Iterable[Span]:
    last = max(size - PIECE, 0)
    yield from ((last * number // (EVEN - 1), PIECE) for number in range(EVEN))
    step = -(-len(spans) // SPANS) or 1
    for offset, count in sorted(spans)[::step]:
        ends = min(END, count)
        yield offset, ends
        yield offset + count - ends, ends
