"""Which partner costs more: what of the opposition no sum of one number for each expert gives."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cuvee import analyze
from cuvee.analyze.forecast import Forecast, forecast
from cuvee.core.additive import OwnParts


def of(pairs: np.ndarray) -> Forecast:
    sums: Any = SimpleNamespace(opposition=pairs)
    return forecast(sums)


def sums_of(own: np.ndarray) -> np.ndarray:
    pairs: np.ndarray = np.add.outer(own, own)
    np.fill_diagonal(pairs, math.nan)
    return pairs


def test_what_experts_bring_to_all_their_pairs_is_taken_out() -> None:
    own = np.random.default_rng(0).random(6) / 2
    nothing = of(sums_of(own))
    assert (nothing.beyond[~np.eye(6, dtype=bool)] == 0).all() and nothing.extremes() is None
    for sign, place in ((1, 0), (-1, 1)):
        pairs = sums_of(own)
        pairs[1, 4] = pairs[4, 1] = pairs[1, 4] + sign * 0.2
        found = of(pairs)
        extremes = found.extremes()
        assert extremes is not None and extremes[place] == (1, 4)
        # Of six experts: three fifths of a pair's own value are left, and of any expert nothing on average.
        assert found.beyond[1, 4] == pytest.approx(sign * 0.12)
        np.testing.assert_allclose(np.nansum(found.beyond, 0), 0, atol=1e-12)
    np.testing.assert_array_equal(found.beyond, found.beyond.T)


def test_it_is_the_residual_of_least_squares_over_the_pairs_that_are_known() -> None:
    random = np.random.default_rng(1)
    pairs = random.random((7, 7))
    pairs += pairs.T
    pairs[2] = pairs[:, 2] = math.nan  # an expert that did not change
    found = of(pairs).beyond
    known = [at for at in itertools.combinations(range(7), 2) if 2 not in at]
    members = np.array([[float(i in at) for i in range(7)] for at in known])
    values = np.array([pairs[at] for at in known])
    expected = values - members @ np.linalg.lstsq(members, values, rcond=None)[0]
    np.testing.assert_allclose([found[at] for at in known], expected, atol=1e-12)
    assert np.isnan(found[2]).all() and np.isnan(found.diagonal()).all()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_of_fewer_than_four_experts_nothing_can_be_told(count: int) -> None:
    found = of(sums_of(np.arange(count, dtype=float)))
    assert np.isnan(found.beyond).all() and found.extremes() is None


def test_of_four_experts_two_pairs_stand_equally_far_off() -> None:
    pairs = sums_of(np.arange(4.0))
    pairs[0, 1] = pairs[1, 0] = 7.0
    found = of(pairs)
    assert found.beyond[0, 1] == pytest.approx(found.beyond[2, 3]) and found.beyond[0, 1] > 0
    assert found.extremes() is None


def test_one_row_of_numbers_that_are_none_spoils_no_other() -> None:
    sets = list(itertools.combinations(range(5), 2))
    values = np.random.default_rng(2).random((3, 10))
    values[1, 4] = math.nan
    left = OwnParts(sets, 5).taken_out(values)
    assert np.isnan(left[1]).any() and np.isfinite(left[[0, 2]]).all()
    np.testing.assert_allclose(left[0], OwnParts(sets, 5).taken_out(values[0]))


def test_a_pair_that_can_be_fitted_whatever_it_is_has_no_figure() -> None:
    pairs = np.full((5, 5), math.nan)
    for i, j in itertools.combinations(range(4), 2):
        pairs[i, j] = pairs[j, i] = 0.1 * i + 0.01 * j * j
    pairs[3, 4] = pairs[4, 3] = 0.9  # the only pair of the fifth expert
    found = of(pairs)
    assert math.isnan(found.beyond[3, 4]) and np.isfinite(found.beyond[0, 1])


def test_the_analysis_and_the_command_name_the_pair(tmp_path: Path, cli: Any) -> None:
    draw = torch.Generator().manual_seed(0)
    base = torch.randn(80, 80, generator=draw)
    changes = {name: 0.05 * torch.randn(80, 80, generator=draw) for name in "abcde"}
    changes["b"] = 0.05 * torch.randn(80, 80, generator=draw) - changes["d"]
    paths = []
    for name, change in {"base": torch.zeros(80, 80), **changes}.items():
        (tmp_path / name).mkdir()
        save_file({"w": base + change}, tmp_path / name / "model.safetensors")
        paths.append(str(tmp_path / name))
    found = analyze.models(paths[0], paths[1:])
    (said,) = [one for one in found.advice if one.rule == "opposed_pair"]
    assert said.kind == "suggest" and "keep `b` and `d` apart" in said.text
    told = cli("analyze", *paths)
    assert "beyond their own     most b + d (+0." in told.out
    assert told.out.count("keep `b` and `d` apart") == 1
    data = cli("analyze", *paths, "--json").json["forecast"]["beyond"]
    assert data[1][3] == pytest.approx(found.forecast.beyond[1, 3]) and data[0][0] is None
    assert "Mergeability forecast" in found.html()
    advised = cli("advise", *paths)
    assert "note: if only some of these are merged, keep `b` and `d` apart" in advised.out
    assert len(cli("advise", *paths, "--json").json["notes"]) == 1
    few = cli("analyze", *paths[:5])
    assert "beyond their own" not in few.out and "keep `" not in few.out
