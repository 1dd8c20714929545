"""The codec of packed tensors: exact for every pattern, the same in C and NumPy, and near the entropy."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuvee.formats import packed_codec as reference
from cuvee.formats import packed_native
from cuvee.formats.packed import encode_shares, parse_shares

KINDS = list(reference.KINDS.items())


def coders():
    native = packed_native.codec()
    return [reference] if native is reference else [reference, native]


def round_trip(base, tuned, kind):
    """The body, after every coder has made the same one and read it back."""
    found = set()
    for coder in coders():
        shares = reference.frequencies(coder.counted(base, tuned, kind))
        there, back = reference.coding(shares), reference.decoding(shares)
        body = coder.encode(base, tuned, kind, there, 16 * len(base) + 1024)
        for reader in coders():
            assert np.array_equal(reader.decode([body], base[None], kind, back)[0], tuned)
        found.add(body)
    assert len(found) == 1
    return found.pop()


def pair(kind, name, count, spread, seed=0):
    random = np.random.default_rng(seed)
    base = (random.standard_normal(count) * 0.02).astype("f4")
    tuned = (base + random.standard_normal(count) * spread).astype("f4")
    if name == "bfloat16":
        return (base.view("u4") >> 16).astype("u2"), (tuned.view("u4") >> 16).astype("u2")
    if name == "float16":
        return base.astype("f2").view("u2"), tuned.astype("f2").view("u2")
    return base.view("u4"), tuned.view("u4")


def test_there_is_a_compiled_coder_where_there_is_a_compiler() -> None:
    import shutil

    assert len(coders()) == (2 if shutil.which("cc") else 1)


@pytest.mark.parametrize(("name", "kind"), KINDS)
@pytest.mark.parametrize("count", [1, 5, 31, 1000, reference.LONG - 1, reference.LONG, 65536])
def test_patterns_come_back(name: str, kind: reference.Kind, count: int) -> None:
    round_trip(*pair(kind, name, count, 1e-4), kind)
    random = np.random.default_rng(count)
    wild = [random.integers(0, 1 << 8 * kind.size, count, dtype=f"u{kind.size}") for _ in range(2)]
    round_trip(*wild, kind)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_bits_come_back(data: st.DataObject) -> None:
    _, kind = data.draw(st.sampled_from(KINDS))
    top = (1 << 8 * kind.size) - 1
    odd = [0, 1, top, top // 2, top // 2 + 1, top // 2 + 2]
    values = st.sampled_from(odd) | st.integers(0, top)
    rows = data.draw(st.lists(st.tuples(values, values), min_size=1, max_size=200))
    base, tuned = (np.array(side, dtype=f"u{kind.size}") for side in zip(*rows, strict=True))
    round_trip(base, tuned, kind)


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_bodies_decoded_together_are_those_decoded_alone(name: str, kind: reference.Kind) -> None:
    """Pairs, chunks of several lengths, and one body in a pair that is wrong."""
    counts = [65536, 65536, 65536, 16385, 16385, 700, 65536, 300]
    pairs = [pair(kind, name, count, 3e-4, seed) for seed, count in enumerate(counts)]
    shares = reference.frequencies(sum(reference.counted(*one, kind) for one in pairs))
    there, back = reference.coding(shares), reference.decoding(shares)
    bodies = [reference.encode(*one, kind, there, 16 * len(one[0]) + 1024) for one in pairs]

    def parts(wrong: int | None = None) -> list[reference.Part]:
        found = []
        for number, (body, (base, _)) in enumerate(zip(bodies, pairs, strict=True)):
            held = np.frombuffer(body + bytes(packed_native.PADDING), "u1").copy()
            if number == wrong:
                held[200:260] ^= 0x5A
            found.append((held, len(body), base, np.empty_like(base)))
        return found

    for coder in coders():
        together = parts()
        coder.decode_into(together, kind, back)
        for (_, _, _, out), (_, tuned) in zip(together, pairs, strict=True):
            assert np.array_equal(out, tuned)
        for wrong in (1, 4):
            damaged = parts(wrong)
            with pytest.raises(ValueError, match=r"not decode|do not end"):
                coder.decode_into(damaged, kind, back)


def test_differences_count_the_floats_between() -> None:
    """An oracle that knows only how floats are ordered: step from one to the next by struct."""
    kind = reference.KINDS["float32"]

    def following(bits: int) -> int:
        value = struct.unpack("<f", struct.pack("<I", bits))[0]
        if bits == 0x80000000:  # -0 comes right before +0
            return 0
        return bits - 1 if value < 0 else bits + 1

    for start in (0x80000003, 0x3F7FFFFE, 0x80800002, 0x007FFFFD):
        there, base = start, np.array([start], "u4")
        for steps in range(6):
            assert reference._folded(base, np.array([there], "u4"), kind)[0] == 2 * steps
            assert reference._folded(np.array([there], "u4"), base, kind)[0] == max(2 * steps - 1, 0)
            there = following(there)


def ordered(bits, kind):
    """Signed integers in the order of the values, from sign and magnitude."""
    wide, sign = bits.astype("i8"), 1 << 8 * kind.size - 1
    return np.where(wide & sign, -(wide & (sign - 1)), wide)


SPREADS = [("bfloat16", 3e-4), ("bfloat16", 1e-5), ("float16", 1e-4), ("float32", 1e-4)]


@pytest.mark.parametrize(("name", "spread"), SPREADS)
def test_bodies_are_within_a_tenth_of_the_entropy(name: str, spread: float) -> None:
    kind = reference.KINDS[name]
    base, tuned = pair(kind, name, 65536, spread)
    body = round_trip(base, tuned, kind)
    steps = ordered(tuned, kind) - ordered(base, kind)
    exponents = base >> kind.shift & kind.mask
    bits = 0.0
    if name == "float32":  # too many values to count: their size is, and the bits below it count whole
        size = np.floor(np.log2(np.abs(steps) + 1) * 4)
        bits = float(np.maximum(0, np.log2(np.abs(steps) + 1) - 2).sum())
        steps = np.sign(steps) * size
    for exponent in np.unique(exponents):
        _, counts = np.unique(steps[exponents == exponent], return_counts=True)
        bits -= float((counts * np.log2(counts / counts.sum())).sum())
    # Besides 32 states, which matter where next to nothing has changed.
    assert 8 * (len(body) - 132) < 1.1 * bits + 2000


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_hostile_bodies_are_refused_or_decode_to_something(name: str, kind: reference.Kind) -> None:
    random = np.random.default_rng(3)
    for count in (50, reference.LONG + 3):
        base, tuned = pair(kind, name, count, 1e-3)
        shares = reference.frequencies(reference.counted(base, tuned, kind))
        body = reference.encode(base, tuned, kind, reference.coding(shares), 16 * count)
        back = reference.decoding(shares)
        assert body is not None
        for trial in range(120 if count < 100 else 25):
            cut = bytearray(body[: random.integers(0, len(body) + 1)] if trial % 3 == 0 else body)
            for _ in range(random.integers(1, 4)):
                if cut:
                    cut[random.integers(0, len(cut) if trial % 2 else min(len(cut), 12))] = random.integers(
                        0, 256
                    )
            results = []
            for coder in coders():
                try:
                    results.append(coder.decode([bytes(cut)], base[None], kind, back)[0].tobytes())
                except ValueError:
                    results.append(None)
            assert len(set(results)) == 1


def test_shares_keep_what_was_seen_and_travel_as_bytes(tmp_path) -> None:
    random = np.random.default_rng(0)
    counts = np.zeros((reference.CONTEXTS, reference.TOKENS), np.int64)
    counts[3] = random.integers(0, 3, reference.TOKENS)
    counts[4, 7] = 1
    counts[5] = (random.pareto(0.3, reference.TOKENS)).astype(np.int64) + 1
    shares = reference.frequencies(counts)
    assert ((shares > 0) == (counts > 0)).all()
    assert set(shares.sum(1, dtype=np.int64).tolist()) == {0, reference.SLOTS}
    assert np.array_equal(parse_shares(encode_shares(shares), tmp_path, "t"), shares)


@pytest.mark.parametrize(
    "error",
    [
        ("(4u + ((token - DIRECT) & 3u)) << extra", "(5u + ((token - DIRECT) & 3u)) << extra"),
        ("*state = *state << 16 | next;", "*state = *state << 15 | next;"),
    ],
)
def test_a_coder_that_errs_is_not_used(
    error: tuple[str, str], tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = packed_native.SOURCE
    broken = tmp_path / source.name
    text = source.read_text()
    assert "folded(base" not in text
    broken.write_text(text.replace(*error))
    assert broken.read_text() != text
    monkeypatch.setattr(packed_native, "SOURCE", broken)
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "cache"))
    assert packed_native.codec() is reference


def test_the_switch_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUVEE_KERNELS", "off")
    assert packed_native.codec() is reference
