"""Counter-based random numbers: Philox4x32-10 addressed by element, keyed by what the numbers are for.

Owns the generator and the map from (key, element) to a 32-bit word, which a C or CUDA kernel must repeat
exactly. There is no state and no global seed: any range of elements can be asked for at any time, in any
order, by any thread, and always equals the same part of the whole. Must not know what the numbers decide.

Generator: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from blake3 import blake3

from cuvee.core.lazy import numpy as np
from cuvee.core.lazy import torch

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    Words = npt.NDArray[np.uint64]  # values below 2³², held in 64 bits so that products are exact

TILE = 1024  # elements that share 256 counters of 4 words
_COUNTERS = 256
_CHUNK = 32  # tiles worked on at once: 64 KiB per array, so that a round stays in the second-level cache
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF
_ROUNDS = 10
_DOMAIN = b"cuvee.random/1"  # keys of this scheme never meet hashes made elsewhere


@dataclass(frozen=True, slots=True)
class Stream:
    """Independent uniform 32-bit words, one for each element of a tensor; `key` has 64 bits."""

    key: int

    def __post_init__(self) -> None:
        if not 0 <= self.key < 1 << 64:
            raise ValueError(f"a key is a whole number below 2**64, got {self.key}")

    def words(self, start: int, stop: int) -> Tensor:
        """Words of the elements [start, stop): int64, shape (stop − start,), values in [0, 2³²).

        Element e takes word (e >> 8) & 3 of counter (e >> 10) · 256 + (e & 255): a bijection on each run of
        1024 elements in which neighbours take neighbouring counters, so that kernels work on vectors.
        """
        if not 0 <= start <= stop:
            raise ValueError(f"elements must satisfy 0 <= start <= stop, got {start} and {stop}")
        first, last = start // TILE, -(-stop // TILE)
        tiles = np.empty((last - first, 4, _COUNTERS), dtype=np.uint64)
        for low in range(first, last, _CHUNK):
            high = min(low + _CHUNK, last)
            numbers = np.arange(low * _COUNTERS, high * _COUNTERS, dtype=np.uint64)
            zeros = np.zeros_like(numbers)
            counter = (numbers & np.uint64(_LOW), numbers >> np.uint64(32), zeros, zeros)
            for position, word in enumerate(philox(counter, self.key)):
                tiles[low - first : high - first, position] = word.reshape(-1, _COUNTERS)
        flat = tiles.reshape(-1)[start - first * TILE : stop - first * TILE]
        return torch.from_numpy(flat.view(np.int64))


def philox(counter: tuple[Words, Words, Words, Words], key: int) -> tuple[Words, Words, Words, Words]:
    """Philox4x32-10 of many counters at once: four equally long arrays in, four out; `key` has 64 bits."""
    a, b, c, d = (part.copy() for part in counter)
    p, q = np.empty_like(a), np.empty_like(a)
    low, half = np.uint64(_LOW), np.uint64(32)
    key_0, key_1 = key & _LOW, key >> 32
    for _ in range(_ROUNDS):
        np.multiply(a, np.uint64(_MULTIPLIERS[0]), out=p)
        np.multiply(c, np.uint64(_MULTIPLIERS[1]), out=q)
        np.right_shift(q, half, out=a)
        a ^= b
        a ^= np.uint64(key_0)
        np.right_shift(p, half, out=c)
        c ^= d
        c ^= np.uint64(key_1)
        np.bitwise_and(q, low, out=b)
        np.bitwise_and(p, low, out=d)
        key_0, key_1 = (key_0 + _WEYL[0]) & _LOW, (key_1 + _WEYL[1]) & _LOW
    return a, b, c, d


def key_of(seed: int, stage: str, expert: str, tensor: str) -> int:
    """The 64-bit key of one use of randomness: the first 8 bytes of a BLAKE3 over its four parts.

    Each part is preceded by its length in bytes, so that no two quadruples are hashed as the same bytes.
    `expert` is the expert's name in the recipe, else its digest; `tensor` is the name of the output tensor.
    """
    hasher = blake3(_DOMAIN)
    for part in (str(int(seed)), stage, expert, tensor):
        data = part.encode("utf-8", "surrogatepass")
        hasher.update(len(data).to_bytes(8, "little"))
        hasher.update(data)
    return int.from_bytes(hasher.digest(length=8), "little")


def keep(words: Tensor, probability: float | Tensor) -> Tensor:
    """Boolean mask that is true where a word is below round(probability · 2³²); probabilities in [0, 1].

    A tensor of probabilities (one per word, or one for all) is taken in float64, where the product is exact.
    0 keeps nothing and 1 everything; the expected share is within 2⁻³³ of the probability.
    """
    share = torch.as_tensor(probability, dtype=torch.float64)
    return words < (share * 2.0**32).round().to(torch.int64)
