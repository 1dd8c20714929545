"""Magnitudes that a catalogue keeps by their rank, against all of them sorted."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from cuvee.sources import catalogue_bins, catalogue_look, catalogue_ranks
from cuvee.sources.catalogue import catalogue, known_of
from cuvee.sources.catalogue_ranks import Ranks
from cuvee.sources.open import open_source

ERRORS = {
    "what is too small": ("bin < LEAST ?", "bin <= LEAST ?"),
    "what is too large": ("? LEAST + BINS : bin", "? LEAST + BINS - 1 : bin"),
    "zeros": ("return key ? bin - LEAST + 2 : 0", "return bin - LEAST + 2"),
    "the sign": ("keys[i] &= 0x7FFFFFFFu", "keys[i] &= 0x7FFFFFFEu"),
    "the last tile": ("i < here; i++) counts[bins", "i < here - 1; i++) counts[bins"),
    "bins without a row": ("if (row >= 0)", "if (row > 0)"),
}


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize("error", ["none", *ERRORS])
def test_c_is_used_where_it_counts_as_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    text = catalogue_bins.SOURCE.read_text()
    if error != "none":
        assert ERRORS[error][0] in text
        text = text.replace(*ERRORS[error])
    copy = tmp_path / catalogue_bins.SOURCE.name
    copy.write_text(text)
    monkeypatch.setattr(catalogue_bins, "SOURCE", copy)
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "cache"))
    used = catalogue_bins.counter()
    assert isinstance(used, catalogue_bins.Native if error == "none" else catalogue_bins.Reference)


def asked_for(total: int) -> list[int]:
    """Places of thresholds at every per mille: shares rounded down, one fewer, and one more."""
    counts = [share * total // 1000 + more for share in range(1001) for more in (-1, 0, 1)]
    return [total - count for count in counts if 0 < count <= total]


def check(ranks: Ranks, magnitudes: np.ndarray) -> None:
    """All that `ranks` tell is so, and they tell of every place that is asked for."""
    ordered = np.sort(magnitudes)
    for place in asked_for(len(ordered)):
        bits = ordered[place]
        less, more = np.searchsorted(ordered, bits, "left"), np.searchsorted(ordered, bits, "right")
        assert ranks.at(place) == (bits, less, more - less)


def magnitudes(kind: str, size: int) -> np.ndarray:
    random = np.random.default_rng(size)
    wide = np.abs(random.standard_normal(size)) * 10.0 ** random.integers(-6, 2, size)
    spread = {
        "all different": wide,
        "a third nothing": np.where(np.arange(size) % 3, wide, 0),
        "few": random.integers(0, 50, size) * 2.0**-9,
        "steps": np.round(wide * 2**16) * 2.0**-16,
    }[kind]
    return spread.astype("<f4").view("<u4")


@pytest.mark.parametrize("size", [1, 2, 999, 70_001])
@pytest.mark.parametrize("kind", ["all different", "a third nothing", "few", "steps"])
def test_what_stands_at_a_place_is_what_stands_there_when_all_are_sorted(kind: str, size: int) -> None:
    keys = magnitudes(kind, size)
    tuned, base = keys.view("<f4"), np.zeros(size, "<f4")
    machine, bins = catalogue_bins.counter(), np.zeros(catalogue_ranks.BINNED, np.uint32)
    machine.binned(base, tuned, bins)
    asked = catalogue_ranks.wanted(bins)
    counts = np.zeros((len(asked.bins), catalogue_ranks.IN_BIN), np.uint32)
    machine.refined(base, tuned, asked.rows(), counts)
    check(catalogue_ranks.found(asked, counts, size), keys)


def test_what_is_out_of_range_is_not_known() -> None:
    """The smaller half lies below all bins; what is above the threshold there is told all the same."""
    keys = np.r_[np.arange(1, 1001), np.arange(0x3C000000, 0x3C000000 + 1000)].astype(np.uint32)
    bins = np.zeros(catalogue_ranks.BINNED, np.uint32)
    machine, base = catalogue_bins.Reference(), np.zeros(2000, "<f4")
    machine.binned(base, keys.view("<f4"), bins)
    asked = catalogue_ranks.wanted(bins)
    counts = np.zeros((len(asked.bins), catalogue_ranks.IN_BIN), np.uint32)
    machine.refined(base, keys.view("<f4"), asked.rows(), counts)
    ranks = catalogue_ranks.found(asked, counts, 2000)
    assert ranks.at(500) is None
    assert ranks.at(1500) == (0x3C000000 + 500, 1500, 1)


def test_they_come_back_as_they_were() -> None:
    random = np.random.default_rng(4)
    told: list[Ranks | None] = [None]
    for many in (0, 1, 700):
        keys = np.unique(random.integers(0, 1 << 31, many)).astype(np.uint32)
        equal = random.integers(1, 1 << random.integers(1, 40), len(keys))
        less = np.cumsum(random.integers(0, 1 << 33, len(keys)) + equal) - equal
        told.append(Ranks(keys, less, equal))
    held = dict(catalogue_ranks.rows_of(told))
    for before, after in zip(told, catalogue_ranks.ranks_of(held, len(told)), strict=True):
        assert (before is None) == (after is None)
        if before is not None and after is not None:
            for part in ("keys", "less", "equal"):
                assert np.array_equal(getattr(before, part), getattr(after, part))
    with pytest.raises(catalogue_ranks.Broken):
        catalogue_ranks.ranks_of(held, 3)
    with pytest.raises(catalogue_ranks.Broken):
        catalogue_ranks.ranks_of({**held, "rank_keys": held["rank_keys"][1:]}, len(told))


KINDS = {"a": "all different", "b": "a third nothing", "c": "steps", "d": "few"}
SIZES = {"a": 70_001, "b": 9_000, "c": 20_000, "d": 3_000}


@pytest.mark.parametrize("kernels", ["on", "off"])
@pytest.mark.parametrize("most", [64, 4096])  # powers of 2
def test_a_catalogue_keeps_them_of_tensors_and_of_the_model(
    kernels: str, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what is given up at once, or on the way (pieces have 1,024 elements); what is counted is part of the model."""
    from cuvee.sources import catalogue as catalogues
    from cuvee.sources import catalogue_scan

    catalogue_look.scanner()  # which is tried once in a process, by the true number
    monkeypatch.setattr(catalogue_look, "MOST", most)
    monkeypatch.setattr(catalogue_scan, "PIECE", 4096)
    monkeypatch.setattr(catalogues, "BLOCK", 1 << 14)
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CUVEE_KERNELS", kernels)
    expected = {name: magnitudes(kind, SIZES[name]) for name, kind in KINDS.items()}
    save_file({name: np.zeros(len(k), "<f4") for name, k in expected.items()}, tmp_path / "b.safetensors")
    save_file({name: keys.view("<f4") for name, keys in expected.items()}, tmp_path / "e.safetensors")
    base, expert = (open_source(str(tmp_path / f"{x}.safetensors"), anchor=tmp_path) for x in "be")
    catalogue(base, [expert], threads=2)
    known = known_of(base, expert)
    assert known is not None
    lost = {name for name, change in known.changes.items() if change.keys is None}
    assert lost >= ({"a", "b", "c"} if most == 64 else {"a"})
    assert "d" not in lost
    for name, change in known.changes.items():
        assert (change.ranks is None) == (name not in lost)
        if change.ranks is not None:
            check(change.ranks, expected[name])
    assert known.whole is not None
    assert known.whole.tied is not None
    check(known.whole, np.concatenate(list(expected.values())))
    for name, keys in expected.items():
        assert known.whole.tied[name].tolist() == [np.count_nonzero(keys == key) for key in known.whole.keys]
    base.close()
    expert.close()


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_finite_has_none(wrong: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue_look.scanner()
    monkeypatch.setattr(catalogue_look, "MOST", 64)
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "cache"))
    tuned = {name: magnitudes("all different", 5000 + len(name)).view("<f4") for name in ("x", "xy")}
    save_file({name: np.zeros_like(part) for name, part in tuned.items()}, tmp_path / "b.safetensors")
    tuned["x"][7] = wrong
    save_file(tuned, tmp_path / "e.safetensors")
    base, expert = (open_source(str(tmp_path / f"{x}.safetensors"), anchor=tmp_path) for x in "be")
    catalogue(base, [expert], threads=1)
    known = known_of(base, expert)
    assert known is not None
    assert known.whole is None
    assert known.changes["x"].ranks is None
    assert known.changes["xy"].ranks is not None
    base.close()
    expert.close()
