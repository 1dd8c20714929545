"""The random words: published test vectors, an independent scalar Philox, every promise about ranges."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cuvee.core.random import TILE, Stream, keep, key_of, philox

KEY = 0x0123456789ABCDEF

# Random123's kat_vectors, "philox4x32 10": counter, key, expected.
VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def scalar_philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 in plain integers, written from the paper."""
    x, k = list(counter), list(key)
    for _ in range(10):
        left, right = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [
            (right >> 32) ^ x[1] ^ k[0],
            right % 2**32,
            (left >> 32) ^ x[3] ^ k[1],
            left % 2**32,
        ]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return x


def word_of(element: int, key: int) -> int:
    tile, inside = divmod(element, 1024)
    number = tile * 256 + inside % 256
    return scalar_philox([number % 2**32, number >> 32, 0, 0], [key % 2**32, key >> 32])[inside // 256]


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_published_vectors(counter, key, expected):
    arrays = tuple(np.array([word], dtype=np.uint64) for word in counter)
    found = philox(arrays, key[0] | key[1] << 32)
    assert tuple(int(word[0]) for word in found) == expected
    assert scalar_philox(list(counter), list(key)) == list(expected)  # the oracle below is right too


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**44), st.integers(0, 2**64 - 1))
def test_each_element_takes_the_documented_counter_and_word(element, key):
    assert Stream(key).words(element, element + 1).tolist() == [word_of(element, key)]


def test_whole_tiles_agree_with_the_scalar_generator():
    found = Stream(KEY).words(0, 3 * TILE).tolist()
    assert found == [word_of(e, KEY) for e in range(3 * TILE)]


def test_known_words_never_change():
    """Recorded: a change here would change every random merge ever published with this version's scheme."""
    assert Stream(KEY).words(0, 3).tolist() == GOLDEN_WORDS
    assert key_of(0, "drop", "math", "model.layers.0.mlp.up_proj.weight") == GOLDEN_KEY


GOLDEN_WORDS = [3092259374, 2915701862, 4157483423]
GOLDEN_KEY = 9691380058532348203


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 100_000), st.integers(0, 3_000), st.integers(0, 3_000))
def test_any_range_equals_the_same_part_of_the_whole(start, before, length):
    stream = Stream(KEY)
    whole = stream.words(max(0, start - before), start + length + 17)
    part = stream.words(start, start + length)
    offset = start - max(0, start - before)
    assert torch.equal(part, whole[offset : offset + length])


def test_ranges_cut_at_internal_chunks_join():
    stream, n = Stream(7), 200_000
    whole = stream.words(0, n)
    for size in (1, 255, 256, 1000, 1024, 32 * 1024, 32 * 1024 + 1, 65_536):
        stop = min(n, 5 * size)
        cut = torch.cat([stream.words(s, min(s + size, stop)) for s in range(0, stop, size)])
        assert torch.equal(cut, whole[:stop]), size


def test_shape_dtype_and_range():
    words = Stream(KEY).words(5, 40_005)
    assert words.shape == (40_000,)
    assert words.dtype == torch.int64
    assert int(words.min()) >= 0
    assert int(words.max()) < 2**32
    assert Stream(KEY).words(12, 12).shape == (0,)


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (4, 3)])
def test_ranges_must_make_sense(start, stop):
    with pytest.raises(ValueError, match="start"):
        Stream(KEY).words(start, stop)


@pytest.mark.parametrize("key", [-1, 2**64])
def test_keys_have_64_bits(key):
    with pytest.raises(ValueError, match="key"):
        Stream(key)


def test_words_are_uniform():
    """Chi-square over 256 bins of the high and of the low byte; limits are six standard deviations out."""
    n = 1 << 20
    words = Stream(99).words(0, n)
    for byte in (words >> 24, words & 255, (words >> 12) & 255):
        counts = torch.bincount(byte, minlength=256).double()
        statistic = float(((counts - n / 256) ** 2 / (n / 256)).sum())
        assert abs(statistic - 255) < 6 * (2 * 255) ** 0.5


def test_streams_of_different_keys_are_independent():
    n = 1 << 20
    uniforms = [Stream(key).words(0, n).double() / 2**32 - 0.5 for key in (1, 2, 1 << 32, 1 << 63)]
    for i, a in enumerate(uniforms):
        for b in uniforms[i + 1 :]:
            assert abs(float((a * b).mean()) * 12) < 6 / n**0.5
    lagged = uniforms[0]
    for lag in (1, 256, 1024):  # neighbours, words of one counter, neighbouring tiles
        assert abs(float((lagged[lag:] * lagged[:-lag]).mean()) * 12) < 6 / (n - lag) ** 0.5


def test_no_word_is_handed_out_twice():
    """All 2²⁰ words distinct would be a miracle; the number of repeats must be that of a random function."""
    n = 1 << 20
    repeats = n - Stream(3).words(0, n).unique().numel()
    expected = n * (n - 1) / 2 / 2**32  # 128
    assert abs(repeats - expected) < 6 * expected**0.5


@settings(deadline=None)
@given(st.integers(-(2**70), 2**70), st.text(max_size=8), st.text(max_size=8), st.text(max_size=8))
def test_keys_are_64_bits_and_repeatable(seed, stage, expert, tensor):
    key = key_of(seed, stage, expert, tensor)
    assert 0 <= key < 2**64
    assert key == key_of(seed, stage, expert, tensor)


def test_keys_differ_where_any_part_differs_and_parts_do_not_run_together():
    parts = [
        (0, "drop", "a", "w"),
        (1, "drop", "a", "w"),
        (0, "dropa", "", "w"),
        (0, "drop", "", "aw"),
        (0, "drop", "aw", ""),
        (0, "", "dropa", "w"),
        (0, "drop", "a", "w "),
        (0, "drop", "w", "a"),
        (-1, "drop", "a", "w"),
        (10, "drop", "a", "w"),
        (0, "drop", "a\x00", "w"),
    ]
    assert len({key_of(*p) for p in parts}) == len(parts)


def test_keep_is_a_comparison_with_the_rounded_threshold():
    words = torch.tensor([0, 2**31 - 1, 2**31, 2**32 - 1])
    assert keep(words, 0.5).tolist() == [True, True, False, False]
    assert keep(words, 0.0).tolist() == [False] * 4
    assert keep(words, 1.0).tolist() == [True] * 4
    assert keep(words, 2.0**-32).tolist() == [True, False, False, False]
    assert keep(words, 2.0**-34).tolist() == [False] * 4
    assert keep(words, 1 - 2.0**-32).tolist() == [True, True, True, False]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=64))
def test_keep_with_one_probability_for_each_word(probabilities):
    words = Stream(KEY).words(0, len(probabilities))
    together = keep(words, torch.tensor(probabilities, dtype=torch.float32))
    apart = [bool(keep(words[i : i + 1], p)) for i, p in enumerate(probabilities)]
    assert together.tolist() == apart
    assert keep(words, torch.tensor(probabilities[0])).tolist() == keep(words, probabilities[0]).tolist()


@pytest.mark.parametrize("probability", [0.01, 0.2, 0.5, 0.9])
def test_share_kept_is_the_probability(probability):
    n = 1 << 20
    kept = int(keep(Stream(11).words(0, n), probability).sum())
    assert abs(kept - n * probability) < 6 * (n * probability * (1 - probability)) ** 0.5


def test_importing_it_imports_neither_torch_nor_numpy():
    code = "import sys, cuvee.core.random; sys.exit(int('torch' in sys.modules or 'numpy' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
