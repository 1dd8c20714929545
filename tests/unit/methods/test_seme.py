"""The computable core of SeMe: maps between latent spaces, and what merging in the pivot's space means."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cuvee.methods.combine.seme import alignment
from cuvee.methods.contract import Place
from cuvee.testing.stages import run_method

torch.set_num_threads(1)
WIDTH, INNER, WORDS = 12, 20, 50
ROLES = {
    "embed": ("embeddings", None, (WORDS, WIDTH)),
    "head": ("head", None, (WORDS, WIDTH)),
    "layers.0.down": ("down", 0, (WIDTH, INNER)),
    "layers.0.down_bias": ("down", 0, (WIDTH,)),
    "layers.0.inner": ("other", 0, (INNER, INNER)),
    "layers.0.up": ("up", 0, (INNER, WIDTH)),
    "norm": ("norm", None, (WIDTH,)),
}
PLACES = {name: Place(name, role, layer, 1) for name, (role, layer, _) in ROLES.items()}


def model(seed):
    generator = torch.Generator().manual_seed(seed)
    made = {
        n: torch.randn(shape, generator=generator, dtype=torch.float64) for n, (*_, shape) in ROLES.items()
    }
    return {**made, "norm": torch.ones(WIDTH, dtype=torch.float64)}


def rotation(seed=5):
    drawn = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(drawn)[0]


def turned(model, r):
    """The same model in other coordinates: latents h become h @ r."""
    return {
        **model,
        "embed": model["embed"] @ r,
        "head": model["head"] @ r,
        "layers.0.up": model["layers.0.up"] @ r,
        "layers.0.down": r.T @ model["layers.0.down"],
        "layers.0.down_bias": model["layers.0.down_bias"] @ r,
    }


def test_maps_between_latent_spaces():
    generator = np.random.default_rng(0)
    head, other = generator.normal(size=(2, WORDS, WIDTH))
    mix = generator.normal(size=(WIDTH, WIDTH))
    tensors = [torch.from_numpy(x) for x in (head, head, head @ mix.T, other)]
    same, mixed, foreign = alignment(tensors)
    torch.testing.assert_close(same.there, torch.eye(WIDTH, dtype=torch.float64))
    torch.testing.assert_close(mixed.there, torch.from_numpy(mix))  # W_A = R W_B gives T = R
    wanted = other.T @ np.linalg.pinv(head.T)
    np.testing.assert_allclose(foreign.there.numpy(), wanted, atol=1e-10)
    latents = generator.normal(size=(7, WIDTH))
    np.testing.assert_allclose(latents @ mix @ head.T, latents @ (head @ mix.T).T, atol=1e-10)
    torch.testing.assert_close(mixed.there @ mixed.back, torch.eye(WIDTH, dtype=torch.float64))
    gain = torch.from_numpy(generator.normal(size=WIDTH) + 3)
    (folded,) = alignment(tensors[:2], [gain, torch.ones(WIDTH)])
    torch.testing.assert_close(folded.there, torch.diag(1 / gain))


def test_a_turned_copy_of_the_pivot_is_the_pivot():
    pivot = model(0)
    merged = run_method("seme", [turned(pivot, rotation())], pivot, {"select_topk": 1.0}, places=PLACES)
    for name in ROLES:
        torch.testing.assert_close(merged[name], pivot[name])


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_turning_an_expert_changes_nothing(share):
    pivot = model(0)
    experts = [
        {n: x if n in ("norm", "head") else x + 0.1 * model(s)[n] for n, x in pivot.items()} for s in (1, 2)
    ]
    plain = run_method("sce", experts, pivot, {"select_topk": share}, places=PLACES)
    moved = [turned(expert, rotation(seed)) for seed, expert in enumerate(experts)]
    merged = run_method("seme", moved, pivot, {"select_topk": share}, places=PLACES)
    for name in ROLES:
        torch.testing.assert_close(merged[name], plain[name])
    assert not torch.allclose(
        run_method("sce", moved, pivot, {"select_topk": share})["layers.0.up"], plain["layers.0.up"]
    )


def test_tied_embeddings_stand_for_the_head():
    pivot = {name: x for name, x in model(0).items() if name != "head"}
    copy = {name: x for name, x in turned(model(0), rotation()).items() if name != "head"}
    merged = run_method("seme", [copy], pivot, {"select_topk": 1.0}, places=PLACES)
    for name in pivot:
        torch.testing.assert_close(merged[name], pivot[name])


def test_degenerate_heads():
    pivot = model(0)
    for broken in (torch.zeros(WORDS, WIDTH), torch.ones(WORDS, WIDTH)):
        expert = {**model(1), "head": broken.double()}
        for base, other in ((pivot, expert), (expert, pivot), (expert, expert)):
            merged = run_method("seme", [other], base, {"select_topk": 1.0}, places=PLACES)
            assert all(x.isfinite().all() for x in merged.values())
    unknown = run_method("seme", [model(1)], pivot, {"select_topk": 1.0})  # no places: taken as aligned
    plain = run_method("sce", [model(1)], pivot, {"select_topk": 1.0})
    assert all(torch.allclose(unknown[n], plain[n]) for n in ROLES)
