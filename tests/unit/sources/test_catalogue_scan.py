"""The scan of catalogues in C is used only where it finds what its NumPy reference finds."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from cuvee.sources import bits, catalogue_store
from cuvee.sources import catalogue_look as scan
from cuvee.sources.open import open_source

ERRORS = {
    "counts of changes": ("own->moved += moved;", "own->moved += 1 + moved;"),
    "half floats": ("elements, FLOAT16, rows", "elements, BFLOAT16, rows"),
    "products": ("products[places[m] * count + i] +=", "products[places[m] * count + i] -="),
    "what is not finite": ("double none = 0 * (", "double none = 0; (void)("),
    "zeros": ("(uint32_t)(here - many - others)", "(uint32_t)(here - many)"),
    "coarse magnitudes": ("(uint64_t)i << 16", "(uint64_t)i << 17"),
    "finer ones": ("(i - PLAIN + FIRST) << 12", "(i - PLAIN + FIRST) << 13"),
    "magnitudes far apart": ("    entry->count++;", "    entry->count += 2;"),
    "the last tile": ("from, size * (size_t)here)", "from, size * (size_t)(here - 1))"),
    "a table that grows": (
        "*found(table, before[i].key) = before[i];",
        "*found(table, before[i].key) = before[0];",
    ),
}
pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


def test_the_c_of_the_package_agrees() -> None:
    assert isinstance(scan.scanner(), scan.Native)


@pytest.mark.parametrize("error", ERRORS)
def test_a_scan_that_errs_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str) -> None:
    text = scan.SOURCE.read_text()
    wrong = text.replace(*ERRORS[error])
    assert wrong != text
    broken = tmp_path / scan.SOURCE.name
    broken.write_text(wrong)
    monkeypatch.setattr(scan, "SOURCE", broken)
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "cache"))
    assert scan.scanner() is scan.Reference


def test_the_switch_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUVEE_KERNELS", "off")
    assert scan.scanner() is scan.Reference


def expected(base: np.ndarray, tuned: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    wide = [(bits.astype("<u4") << 16).view("<f4") for bits in (base, tuned)]
    return np.unique(np.abs(wide[1] - wide[0]).view("<u4"), return_counts=True)


@pytest.mark.parametrize("machine", [scan.scanner, lambda: scan.Reference], ids=["c", "reference"])
def test_a_table_counts_one_tensor_after_the_other(machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many magnitudes, too many, and few again, in pieces that are no whole tiles."""
    monkeypatch.setattr(scan, "MOST", 4096)
    table = machine().table()
    random = np.random.default_rng(5)
    for spread, lost in ((1 << 8, False), (1 << 12, True), (1 << 7, False), (1, False)):
        base = random.integers(0x3C00, 0x3C00 + spread, 20_001).astype("<u2")
        tuned = random.integers(0x3D00, 0x3D00 + spread, 20_001).astype("<u2")
        table.begin(len(base))
        looked = scan.Looked(1)
        for first in range(0, len(base), 7001):
            piece = slice(first, first + 7001)
            machine().look(base[piece], [tuned[piece]], "bfloat16", [table], looked)
        found, (keys, counts) = table.found(), expected(base, tuned)
        assert (found is None) == (np.count_nonzero(keys & 0xFFFF) > 4096) == lost
        if found is not None:
            assert np.array_equal(found[0], keys)
            assert np.array_equal(found[1], counts)


@pytest.mark.parametrize("machine", [scan.scanner, lambda: scan.Reference], ids=["c", "reference"])
@pytest.mark.parametrize(("few", "lost"), [(0, True), (1000, True), (1100, False)])
def test_a_large_tensor_is_given_up_early(machine, few: int, lost: bool) -> None:
    """Where of the first 8,192 magnitudes 7,169 are different and fine; what is small or coarse is counted on."""
    random = np.random.default_rng(6)
    tuned = np.arange(0x3F800001, 0x3F800001 + 2 * 8192, 2, dtype="<u4")  # odd bits: none is coarse
    random.shuffle(tuned)
    tuned[:few] = tuned[few]
    for numel, told in ((scan.MOST + 1, not lost), (scan.MOST, True)):
        table, looked = machine().table(), scan.Looked(1)
        table.begin(numel)
        for first in range(0, len(tuned), 1024):
            piece = tuned[first : first + 1024]
            machine().look(np.zeros_like(piece), [piece], "float32", [table], looked)
        assert (table.found() is not None) == told


@pytest.mark.parametrize("shift", [0, 12, 16])
def test_counts_come_back_as_they_were(shift: int) -> None:
    random = np.random.default_rng(shift)
    for many, most in ((0, 1), (1, 1), (300, 200), (5000, 1 << 33)):
        keys = np.unique(random.integers(0, 1 << (31 - shift), many)).astype(np.uint32) << np.uint32(shift)
        counts = random.integers(0, most, len(keys), endpoint=True)
        told = catalogue_store.unpacked(catalogue_store.packed(keys, counts))
        assert np.array_equal(told[0], keys)
        assert np.array_equal(told[1], counts)
        assert (told[0].dtype, told[1].dtype) == (np.uint32, np.int64)


def test_counts_are_kept_in_few_bytes() -> None:
    """A few large steps and counts among many small ones do not make all of them long."""
    keys = np.cumsum(np.r_[1 << 30, np.full(5000, 3 << 8), 1 << 29]).astype(np.uint32)
    counts = np.r_[1 << 40, np.full(5000, 200), 7]
    data = catalogue_store.packed(keys, counts)
    assert len(data) < 2.1 * len(keys)
    assert all(map(np.array_equal, catalogue_store.unpacked(data), (keys, counts)))


@pytest.mark.parametrize(
    "numbers",
    [[], [1, 0, 1], [1, 40, 1, 1], [1, 0, 3, 1], [1, 0, 1, 1], [1, 0, 1 << 4 | 1, 1, 0xFF000007, 0, 0, 0]],
    ids=str,
)
def test_counts_that_are_none_are_refused(numbers: list[int]) -> None:
    data = np.array(numbers, "<u4").view(np.uint8)
    for tail in (0, 1, 2):  # bytes: of some, two would be right
        if numbers == [1, 0, 1, 1] and tail == 2:
            continue
        with pytest.raises(catalogue_store.Broken):
            catalogue_store.unpacked(np.append(data, np.zeros(tail, np.uint8)))


def test_without_wide_vectors_the_same_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built for any processor of the kind, the loops that have no vectors of their own are used."""
    copy = tmp_path / scan.SOURCE.name
    copy.write_text(scan.SOURCE.read_text())
    monkeypatch.setattr(scan, "SOURCE", copy)
    monkeypatch.setattr(scan.native, "NATIVE", ("-mtune=generic",))
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "cache"))
    assert isinstance(scan.scanner(), scan.Native)


def test_only_so_many_files_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in others is read all the same, and an open one is read without being opened again."""
    monkeypatch.setattr(bits, "MOST_OPEN", 1)
    expected, files = np.arange(100, dtype="<u4"), {}
    for name in "ab":
        save_file({"x": expected.view("<f4")}, tmp_path / f"{name}.safetensors")
        source = open_source(str(tmp_path / f"{name}.safetensors"), anchor=tmp_path)
        found = bits.reading_of(source, "x", files)(10, 60, np.empty(4 * 100, np.uint8))
        assert np.array_equal(found, expected[10:60])
        (tmp_path / f"{name}.safetensors").unlink()
    assert [path.name for path in files] == ["a.safetensors"]
    first = next(iter(files.values()))
    assert first.bytes_at(first.size - 4, 4) == expected[-1:].tobytes()
