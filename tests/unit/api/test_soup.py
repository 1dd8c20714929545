"""Greedy soups: the selection against a plain one, the candidates against plain means, and the card's properties."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

import cuvee
from cuvee.api.soup import select
from cuvee.errors import UsageError

Tensors = dict[str, Tensor]


def plain(scores: dict[frozenset[int], float], count: int) -> tuple[int, ...]:
    """The soup by the card: ranked, each tried once, kept on a tie."""
    ranked = sorted(range(count), key=lambda i: (-scores[frozenset({i})], i))
    soup = [ranked[0]]
    for one in ranked[1:]:
        if scores[frozenset({*soup, one})] >= scores[frozenset(soup)]:
            soup.append(one)
    return tuple(soup)


@given(st.data())
def test_selection_is_that_of_the_card(data: Any) -> None:
    count = data.draw(st.integers(1, 5))
    subsets = [frozenset(i for i in range(count) if bits >> i & 1) for bits in range(1, 1 << count)]
    scores = {subset: data.draw(st.integers(0, 3)) / 2 for subset in subsets}
    asked: list[frozenset[int]] = []

    def score(members: tuple[str, ...]) -> float:
        asked.append(frozenset(map(int, members)))
        return scores[asked[-1]]

    trials = select([str(i) for i in range(count)], score)
    kept = [trial for trial in trials if trial.kept]
    assert tuple(map(int, kept[-1].members)) == plain(scores, count)
    assert len(asked) == len(set(asked)) <= 2 * count - 1
    assert kept[-1].score >= max(trial.score for trial in trials if len(trial.members) == 1)
    assert [trial.score for trial in kept] == sorted(trial.score for trial in kept)


def near(target: Tensors) -> Any:
    """A score: how near a candidate is to `target`."""
    return lambda found: (
        -math.sqrt(sum(float((found[n].double() - t.double()).square().sum()) for n, t in target.items()))
    )


def models(count: int, dtype: torch.dtype = torch.float32) -> list[Tensors]:
    draw = torch.Generator().manual_seed(1)
    shapes = {"a.weight": (5, 3), "b.bias": (7,)}
    made = [{n: torch.randn(s, generator=draw).to(dtype) for n, s in shapes.items()} for _ in range(count)]
    return [{**one, "steps": torch.tensor([3])} for one in made]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_soup_is_the_mean_of_the_chosen_and_candidates_are_means(dtype: torch.dtype) -> None:
    parts = models(5, dtype)
    target = {n: (parts[0][n] + parts[3][n] + parts[4][n]) / 3 for n in ("a.weight", "b.bias")}
    seen: list[Tensors] = []

    def score(found: Tensors) -> float:
        seen.append({n: t.clone() for n, t in found.items()})
        return float(near(target)(found))

    soup = cuvee.greedy_soup({f"m{i}": part for i, part in enumerate(parts)}, score=score)
    assert {"m0", "m3", "m4"} <= set(soup.members)
    assert len(seen) == len(soup.trials) == 9
    for trial, found in zip(soup.trials, seen, strict=True):
        chosen = [parts[int(name[1:])] for name in trial.members]
        for name in target:
            mean = torch.stack([one[name].double() for one in chosen]).mean(0)
            room = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float64: 1e-14}[dtype]
            torch.testing.assert_close(found[name].double(), mean, rtol=room, atol=room)
            assert found[name].dtype == dtype
        assert torch.equal(found["steps"], torch.tensor([3]))
    merged, scored = soup.blend.load(), seen[[t.members for t in soup.trials].index(soup.members)]
    for name in target:
        torch.testing.assert_close(merged[name], scored[name])
    assert soup.score >= max(trial.score for trial in soup.trials[:5])


def test_a_constant_score_takes_every_model_and_equal_models_stay_themselves() -> None:
    parts = models(4)
    everyone = cuvee.greedy_soup(parts, score=lambda found: 1.0)
    assert everyone.members == ("expert_1", "expert_2", "expert_3", "expert_4")
    whole = cuvee.merge(parts, method="uniform_soup").load()
    assert all(torch.equal(t, whole[n]) for n, t in everyone.blend.load().items())
    same = cuvee.greedy_soup([parts[0]] * 3, score=near(whole))
    torch.testing.assert_close(same.blend.load(), parts[0])
    alone = cuvee.greedy_soup([parts[2]], score=lambda found: 0.0)
    assert (alone.members, len(alone.trials)) == (("expert_1",), 1)


def test_folders_with_a_base_for_config_and_an_ordinary_output(here: Path) -> None:
    target = load_file(here / "math" / "model.safetensors")
    soup = cuvee.greedy_soup([here / "code", here / "math"], score=near(target), base=here / "base")
    assert soup.members == ("math",)
    soup.blend.save(here / "out")
    assert all(torch.equal(t, target[n]) for n, t in load_file(here / "out" / "model.safetensors").items())
    assert cuvee.verify(here / "out") == []


@pytest.mark.parametrize("value", [math.nan, None, "good"])
def test_a_score_that_is_no_number(value: Any) -> None:
    with pytest.raises(UsageError, match="not a number") as caught:
        cuvee.greedy_soup(models(2), score=lambda found: value)
    assert caught.value.diagnostics[0].code == "CV-U110"
