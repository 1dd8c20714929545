"""Methods that restore one expert of several: the cards' definitions in float64 NumPy, worked examples, properties."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch

from cuvee.methods import registry
from cuvee.methods.combine.tsv_c import kept_rank
from cuvee.methods.contract import Factors
from cuvee.methods.reversible import factor_bases, restored
from cuvee.testing.stages import run_stage


def _drawn(count: int, shape: tuple[int, ...], seed: int = 0) -> list[Any]:
    draw = numpy.random.default_rng(seed)
    return [draw.normal(size=shape) for _ in range(count)]


def _restored(name: str, deltas: list[Any], number: int, **values: Any) -> Any:
    flags = [i == number for i in range(len(deltas))]
    tensors = [torch.from_numpy(numpy.asarray(delta, dtype=numpy.float64)) for delta in deltas]
    return run_stage(registry.stage(name), tensors, {"restore": flags, **values}).numpy()


@pytest.mark.parametrize("strength", [0.0, 0.2, 0.4, 3.0])
def test_tall_masks_is_the_cards_formula(strength: float) -> None:
    deltas = _drawn(4, (30, 7))
    total = sum(deltas)
    for number, delta in enumerate(deltas):
        mask = numpy.abs(delta) > strength * numpy.abs(total - delta)
        found = _restored("tall_masks", deltas, number, strength=strength)
        assert numpy.allclose(found, mask * total, rtol=1e-13, atol=0)
        if strength:
            error = numpy.abs(found - delta)[mask]
            assert (error <= numpy.abs(delta)[mask] / strength * (1 + 1e-12)).all()


def test_tall_masks_worked_example() -> None:
    """τ = (2, 1, 0), (−1, 1, 3): T = (1, 2, 3); at 0.5: |2| > .5, |1| > .5, 0 > 1.5; |−1| > 1 no, |1| > .5, |3| > 0."""
    deltas = [[2.0, 1.0, 0.0], [-1.0, 1.0, 3.0]]
    assert _restored("tall_masks", deltas, 0, strength=0.5).tolist() == [1.0, 2.0, 0.0]
    assert _restored("tall_masks", deltas, 1, strength=0.5).tolist() == [0.0, 2.0, 3.0]


@pytest.mark.parametrize("strength", [0.0, 0.4, 50.0])
def test_experts_that_change_different_weights_come_back(strength: float) -> None:
    deltas = [numpy.where(numpy.arange(12) % 3 == i, x, 0) for i, x in enumerate(_drawn(3, (12,)))]
    for name in ("tall_masks", "emr_expert"):
        values = {"strength": strength} if name == "tall_masks" else {}
        for number, delta in enumerate(deltas):
            assert numpy.allclose(_restored(name, deltas, number, **values), delta, rtol=1e-13)


@pytest.mark.parametrize(
    "name", ["tall_masks", "emr_expert", "tsv_c", "reversible_merging", "restore_expert"]
)
def test_one_expert_comes_back_exactly(name: str) -> None:
    (delta,) = _drawn(1, (9, 6))
    assert numpy.array_equal(_restored(name, [delta], 0), delta)


def test_tsv_c_is_the_nearest_matrix_of_its_rank() -> None:
    deltas = _drawn(3, (20, 14))
    u, s, vh = numpy.linalg.svd(deltas[1], full_matrices=False)
    rank = 14 // 3
    found = _restored("tsv_c", deltas, 1)
    assert numpy.allclose(found, (u[:, :rank] * s[:rank]) @ vh[:rank], atol=1e-12)
    assert numpy.isclose(((found - deltas[1]) ** 2).sum(), (s[rank:] ** 2).sum())


@pytest.mark.parametrize(
    ("shape", "count", "share", "rank"),
    [
        ((20, 14), 3, None, 4),
        ((12, 12), 2, None, 6),  # as large as the matrix: still cut, as the paper does
        ((12, 12), 1, None, None),  # twice as large
        ((5, 40), 9, None, None),  # no triplet would be left
        ((64,), 3, None, None),
        ((4, 3, 3, 3), 2, None, None),
        ((20, 14), 3, 0.1, 1),
        ((20, 14), 3, 0.9, None),
    ],
)
def test_which_tensors_tsv_c_cuts(
    shape: tuple[int, ...], count: int, share: float | None, rank: int | None
) -> None:
    assert kept_rank(shape, count, share) == rank


@pytest.mark.parametrize("basis", [1, 2, 3, 4])
def test_a_basis_leaves_out_the_least(basis: int) -> None:
    deltas = _drawn(4, (8, 5))
    spectrum = numpy.linalg.svd(numpy.stack([d.reshape(-1) for d in deltas]), compute_uv=False)
    found = [_restored("reversible_merging", deltas, i, basis=basis) for i in range(4)]
    error = sum(((f - d) ** 2).sum() for f, d in zip(found, deltas, strict=True))
    assert numpy.isclose(error, (spectrum[basis:] ** 2).sum(), atol=1e-12)
    if basis == 4:
        assert all(numpy.array_equal(f, d) for f, d in zip(found, deltas, strict=True))


def test_equal_experts_need_one_basis_tensor() -> None:
    (delta,) = _drawn(1, (8, 5))
    for number in range(3):
        assert numpy.allclose(
            _restored("reversible_merging", [delta] * 3, number, basis=1), delta, rtol=1e-12
        )


def _factors(seed: int, mix: Any = None) -> Factors:
    draw = numpy.random.default_rng(seed)
    left, right = draw.normal(size=(9, 2)), draw.normal(size=(2, 7))
    if mix is not None:
        left, right = left @ mix, numpy.linalg.inv(mix) @ right
    return Factors(torch.from_numpy(left), torch.from_numpy(right))


def test_bases_of_factors_do_not_see_how_products_are_split() -> None:
    mix = numpy.array([[2.0, 1.0], [0.5, -1.0]])
    plain = factor_bases([_factors(1), _factors(2), _factors(3)], 2)
    mixed = factor_bases([_factors(1, mix), _factors(2), _factors(3, mix.T)], 2)
    for number in range(3):
        one = restored(plain[0], number) @ restored(plain[1], number)
        other = restored(mixed[0], number) @ restored(mixed[1], number)
        assert torch.allclose(one, other, atol=1e-9)
    for number in range(3):  # singular vectors come with either sign: one is chosen
        left = restored(factor_bases([_factors(1), _factors(2), _factors(3)], 3)[0], number)
        assert (left.gather(0, left.abs().argmax(dim=0, keepdim=True)) > 0).all()
    whole = factor_bases([_factors(1), _factors(2)], 2)
    for number, model in enumerate((_factors(1), _factors(2))):
        product = restored(whole[0], number) @ restored(whole[1], number)
        assert torch.allclose(product, model.left @ model.right, atol=1e-10)


def test_the_stage_takes_bases_of_factors_where_there_are_some() -> None:
    models = [_factors(1), _factors(2), _factors(3)]
    deltas = [m.left @ m.right for m in models]
    stage = registry.stage("reversible_merging").function
    from cuvee.methods.decompositions import Plain

    flags = [False, True, False]
    found = stage(deltas, restore=flags, basis=2, decompose=Plain(), factors=models)
    left, right = factor_bases(models, 2)
    assert torch.allclose(found, restored(left, 1) @ restored(right, 1))
    plain = stage(deltas, restore=flags, basis=2, decompose=Plain(), factors=[None, None, None])
    assert not torch.allclose(found, plain)
