"""Methods that decide entry by entry: oracles on whole models, worked examples, properties."""

from __future__ import annotations

import numpy as np
import oracles_catalogue as oracle
import oracles_elementwise as elementwise
import pytest
import torch
from cases_catalogue import BASE, EXPERTS, SHAPES, check, experts, merged_of, plus, taus, wide

from cuvee.errors import RunError
from cuvee.methods.combine import consensus, emr
from cuvee.testing.stages import run_method, run_stage
from cuvee.testing.streams import MemoryStream

torch.set_num_threads(1)
TAUS = taus()


def by_tensor(function, scale=1.0):
    return plus({name: scale * function([tau[name] for tau in TAUS]) for name in SHAPES})


def over_model(vector):
    return plus(oracle.split(vector, TAUS[0]))


# --- consensus ---


@pytest.mark.parametrize("agree", [0, 1, 2, 4])
def test_consensus(agree):
    strengths = [0.2, 0.4, 0.6]

    def wanted(parts):
        total = sum(parts)
        votes = sum(m.astype(int) for m in oracle.tall_masks(parts, total, strengths))
        return np.where(votes >= agree, total, 0.0)

    params = {"strength": strengths, "agree": agree, "lambda": 0.7}
    merged = check("consensus", params, by_tensor(wanted, 0.7))
    if agree == 0:
        addition = run_method("task_arithmetic", EXPERTS, BASE, {"lambda": 0.7})
        assert all(torch.equal(merged[n], addition[n]) for n in SHAPES)
    if agree == 4:
        assert all(torch.equal(merged[n], BASE[n]) for n in SHAPES)


def test_consensus_of_a_ties_sum_masks_with_untrimmed_task_vectors():
    vectors = [oracle.flat(tau) for tau in TAUS]
    total = elementwise.disjoint([elementwise.trim_exact(v, 0.2) for v in vectors], merge="sum")
    votes = sum(m.astype(int) for m in oracle.tall_masks(vectors, total, [0.3] * 3))
    wanted = over_model(np.where(votes >= 2, total, 0.0))
    check("consensus", {"strength": 0.3, "total": "ties"}, wanted)


def test_tall_masks():
    one, other = torch.tensor([1, 0.1, -1]), torch.tensor([0.1, 1, 1.2])
    masks = [consensus.tall_mask(x, one + other, 0.4).int().tolist() for x in (one, other)]
    assert masks == [[1, 0, 1], [0, 1, 1]]
    scaled = consensus.tall_mask(8 * one, 8 * (one + other), 0.4)
    assert scaled.int().tolist() == masks[0]
    assert not consensus.tall_mask(torch.zeros(2), torch.zeros(2), 0.2).any()
    generator = torch.Generator().manual_seed(3)
    a, b = torch.randn(2, 1000, generator=generator)
    counts = [int(consensus.tall_mask(a, a + b, s).sum()) for s in (0.2, 0.4, 0.6, 5.0)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]
    disjoint = [torch.where(torch.arange(1000) % 2 == i, a, 0.0) for i in (0, 1)]
    for x in disjoint:  # disjoint supports are restored exactly
        assert torch.equal(torch.where(consensus.tall_mask(x, sum(disjoint), 0.4), sum(disjoint), 0.0), x)
    assert torch.equal(torch.where(consensus.tall_mask(a, a, 0.4), a, 0.0), a)


# --- EMR ---


def test_emr_shares_one_vector():
    check("emr", {"lambda": 0.5}, by_tensor(lambda parts: oracle.emr(parts)[0], 0.5))
    assert merged_of("emr", [[2, -1], [1, 3]]) == [2, 3]
    assert merged_of("emr", [[1, -2, 0], [-1, 2, 0]]) == [-1, -2, 0]  # a sum of 0 elects −


@pytest.mark.parametrize("sums", ["sum", "mean"])
def test_emr_restores_an_expert(sums):
    pieces = {name: oracle.emr([tau[name] for tau in TAUS]) for name in SHAPES}
    unified = {name: piece[0] for name, piece in pieces.items()}
    for number in range(3):
        masks = {name: piece[1][number] for name, piece in pieces.items()}
        factor = oracle.emr_factor(TAUS[number], unified, masks, mean=sums == "mean")
        wanted = plus({name: factor * masks[name] * unified[name] for name in SHAPES})
        flags = [number == other for other in range(3)]
        merged = check("emr_expert", {"restore": flags, "sums": sums}, wanted)
        if sums == "sum":
            sizes = [
                sum(np.abs(wide(m)[n] - wide(BASE)[n]).sum() for n in SHAPES)
                for m in (merged, EXPERTS[number])
            ]
            assert sizes[0] == pytest.approx(sizes[1], rel=1e-5)


def test_emr_worked_example_and_degenerate_experts():
    first, second = torch.tensor([2.0, -1.0]), torch.tensor([1.0, 3.0])
    unified = emr.unified([first, second])
    assert unified.tolist() == [2, 3]
    assert [emr.mask(x, unified).int().tolist() for x in (first, second)] == [[1, 0], [1, 1]]
    tied = emr.unified([torch.tensor([1.0, -2.0]), torch.tensor([-1.0, 2.0])])
    assert tied.tolist() == [-1, -2]
    assert emr.rescalers(MemoryStream([[first, second]])) == pytest.approx([1.5, 0.8])
    assert emr.rescalers(MemoryStream([[first, torch.zeros(2)]])) == [1.0, 1.0]
    assert emr.rescalers(MemoryStream([[torch.zeros(0)]])) == [1.0]
    alone = run_method("emr_expert", EXPERTS[:1], BASE, {"restore": [True]})
    assert all(torch.allclose(alone[n], EXPERTS[0][n], atol=1e-6) for n in SHAPES)


def test_exactly_one_expert_is_restored_or_donates():
    for name, parameter in (("emr_expert", "restore"), ("donor", "take")):
        for flags in ([True, True], [False, False], True, False):
            with pytest.raises(RunError) as caught:
                run_stage(name, [torch.ones(2)] * 2, {parameter: flags})
            assert caught.value.diagnostics[0].code == "CV-E140"


# --- MagMax ---


def test_magmax():
    check("magmax", None, by_tensor(oracle.magmax, 0.5))
    assert merged_of("magmax", [[1, -2, 3], [-1, 1, 4]], {"lambda": 1.0}) == [-1, -2, 4]
    parts = [torch.randn(50, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    whole = run_stage("magmax", parts)
    fold = parts[0]
    for part in parts[1:]:
        fold = run_stage("magmax", [fold, part])
    assert torch.equal(fold, whole)
    assert torch.equal(run_stage("magmax", parts[::-1]), whole)
    assert torch.equal(run_stage("magmax", [*parts, parts[0]]), whole)
    assert torch.equal(whole.abs(), torch.stack(parts).abs().amax(0))


# --- CABS ---


@pytest.mark.parametrize(("n", "m"), [(64, 256), (3, 7), (1, 4), (16, 16)])
@pytest.mark.parametrize("trailing", ["complete", "code"])
def test_cabs(n, m, trailing):
    weights = [0.7, 1.0, 1.3]
    params = {"weight": weights, "n": n, "m": m, "trailing": trailing}
    check("cabs", params, by_tensor(lambda parts: oracle.cabs(parts, weights, n, m, trailing)))


def test_cabs_properties():
    parts = [torch.randn(1030, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    params = {"n": 64, "m": 256, "trailing": "code"}
    alone = [
        run_stage("cabs", parts, {**params, "weight": [float(i == j) for j in range(3)]}) for i in range(3)
    ]
    supports = [x != 0 for x in alone]
    assert not any((supports[i] & supports[j]).any() for i in range(3) for j in range(i))
    for support in supports:
        assert support[:1024].reshape(4, 256).sum(1).tolist() == [64] * 4
        assert not support[1024:].any()
    assert run_stage("cabs", parts[:2], {"n": 256, "m": 256})[:1024].equal(parts[0][:1024])
    assert run_stage("cabs", parts[:1], {"n": 8, "m": 8}).equal(parts[0])
    assert run_stage("block_top", parts[0], {"n": 2, "m": 4}).count_nonzero() == 515  # half, of the rest too
    assert run_stage("cabs", parts, {"n": [0, 0, 4], "m": 4}).equal(parts[2])
    equal = run_stage("block_top", torch.ones(4096), {"n": 100, "m": 1024}).reshape(4, 1024)
    assert equal[:, :100].all()
    assert not equal[:, 100:].any()


# --- Localize-and-Stitch ---


@pytest.mark.parametrize("density", [0.05, 0.3, 1.0])
def test_localize_and_stitch(density):
    wanted = over_model(oracle.localized([oracle.flat(tau) for tau in TAUS], density))
    check("localize_stitch_datafree", {"density": density}, wanted)


def test_localize_and_stitch_properties():
    assert merged_of("localize_stitch_datafree", [[1, 2, 3, 4]], {"density": 1.0}) == [0, 2, 3, 4]
    assert merged_of("localize_stitch_datafree", [[1, 3, 3, 4]], {"density": 0.5}) == [0, 0, 0, 4]  # no ties
    assert merged_of("localize_stitch_datafree", [[1, 0, 0, 9], [0, 8, 0, 2]], {"density": 0.5}) == [
        0,
        8,
        0,
        9,
    ]
    same = merged_of("localize_stitch_datafree", [[1, 2, 3, 4]] * 3, {"density": 0.75})
    assert same == [0, 0, 3, 4]
    assert merged_of("localize_stitch_datafree", [[0, 0], [0, 0]], {"density": 0.5}) == [0, 0]


# --- PCB ---


@pytest.mark.parametrize("variant", ["reference", "vision"])
@pytest.mark.parametrize(("ratio", "clamp"), [(0.1, 1e-4), (0.05, 0.01), (0.5, 0.0), (1.0, 0.2)])
def test_pcb(variant, ratio, clamp):
    weights = [1.2, 0.8, 1.0]
    vectors = [oracle.flat(tau) for tau in TAUS]
    wanted = over_model(oracle.pcb(vectors, ratio, clamp, variant, weights))
    params = {"ratio": ratio, "clamp": clamp, "variant": variant, "weight": weights}
    check("pcb", params, wanted, tolerance=1e-5)


def test_pcb_properties():
    generator = torch.Generator().manual_seed(1)
    parts = [torch.randn(2000, generator=generator, dtype=torch.float64) for _ in range(3)]
    one = run_stage("pcb", parts, {"ratio": 0.1})
    torch.testing.assert_close(run_stage("pcb", parts[::-1], {"ratio": 0.1}), one)
    torch.testing.assert_close(run_stage("pcb", parts, {"ratio": 0.1, "weight": 2.0}), 2 * one)
    alone = run_stage("pcb", parts[:1], {"ratio": 0.1, "clamp": 0.0})
    kept = alone != 0
    assert 190 <= int(kept.sum()) <= 200
    torch.testing.assert_close(alone[kept], parts[0][kept])
    constant = [torch.full((100,), 0.5), torch.randn(100, generator=generator)]
    assert run_stage("pcb", constant).isfinite().all()
    many = [torch.randn(300, generator=generator) for _ in range(120)]  # exp(120) is beyond float32
    assert run_stage("pcb", many).isfinite().all()
    assert len(experts(40)) == 40
