"""Thresholds over a whole model: which tensors they span, in trees of recipes too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import cuvee
from cuvee.engine.options import RunOptions
from cuvee.plan.plan import Plan

SHAPES = {"layers.0.w": (40, 30), "layers.1.w": (40, 30), "layers.2.w": (40, 30), "norm": (50,)}


def model(seed: int, start: dict[str, Tensor] | None = None, scale: float = 0.1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    noise = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    # layers change by very different amounts, so that a threshold shows what it spans
    sizes = {name: scale * 10**i for i, name in enumerate(SHAPES)}
    return noise if start is None else {n: start[n] + sizes[n] * x for n, x in noise.items()}


BASE = model(0)
A, B, C = (model(seed, BASE) for seed in (1, 2, 3))
KERNELS = [RunOptions(), RunOptions(kernels=False, block=1024, threads=2)]


def trimmed(expert: dict[str, Tensor], density: float, names: list[str]) -> dict[str, Tensor]:
    """TIES of one expert: the largest changes of all the tensors together."""
    changes = torch.cat([(expert[n] - BASE[n]).flatten() for n in names])
    kept = changes.abs().topk(int(density * changes.numel())).values.min()
    return {n: torch.where((d := expert[n] - BASE[n]).abs() >= kept, d, 0.0) + BASE[n] for n in names}


def notes(plan: Plan) -> list[str]:
    return [note.message for note in plan.notes if note.code == "CV-P043"]


@pytest.mark.parametrize("options", KERNELS, ids=["kernels", "generic"])
def test_the_threshold_spans_the_model(options: RunOptions) -> None:
    blend = cuvee.merge([A], base=BASE, method="ties", density=0.25)
    assert notes(blend.build()) == []
    found = blend.load(options)
    for name, value in trimmed(A, 0.25, list(SHAPES)).items():
        torch.testing.assert_close(found[name], value)


@pytest.mark.parametrize("options", KERNELS, ids=["kernels", "generic"])
def test_tensors_of_different_densities_are_taken_apart_and_the_plan_says_so(options: RunOptions) -> None:
    density = {"layers.2.w": 0.5, "default": 0.25}
    blend = cuvee.merge([A], base=BASE, method="ties", density=density)
    (said,) = notes(blend.build())
    assert "`trim`" in said
    assert "`density`" in said
    assert "2 sets" in said
    rest = [n for n in SHAPES if n != "layers.2.w"]
    expected = {**trimmed(A, 0.25, rest), **trimmed(A, 0.5, ["layers.2.w"])}
    found = blend.load(options)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_experts_of_different_densities_are_no_reason_for_a_note() -> None:
    blend = cuvee.merge([A, B], base=BASE, method="ties", density=[0.2, 0.4])
    assert notes(blend.build()) == []


@pytest.mark.parametrize("options", KERNELS, ids=["kernels", "generic"])
def test_two_nested_recipes_of_equal_words_have_thresholds_of_their_own(options: RunOptions) -> None:
    inner = [
        cuvee.merge({"x": x, "y": y}, base=BASE, method="ties", density=0.3)
        for x, y in ((A, B), ({n: 20 * t for n, t in C.items()}, A))
    ]
    steps = cuvee.merge({"p": inner[0].load(), "q": inner[1].load()}).load()
    tree = cuvee.merge({"p": inner[0], "q": inner[1]}).load(options)
    assert all(torch.equal(tree[name], value) for name, value in steps.items())


@pytest.mark.parametrize("options", KERNELS, ids=["kernels", "generic"])
@pytest.mark.parametrize("layers", [[(0, 1)], [(0, 2), (1, 3)], [(0, 3), (0, 3)]])
def test_a_nested_threshold_spans_its_output_whatever_is_taken_of_it(
    layers: list[tuple[int, int]], options: RunOptions
) -> None:
    """Some layers of a nested merge, or some of them twice: as if it had been written out first."""
    from cuvee.recipe.model import Input, ModuleRecipe, Slice

    inner = cuvee.merge({"x": A, "y": B}, base=BASE, method="ties", density=0.3)
    slices = {"*": ModuleRecipe(tuple(Slice((Input("in", part),)) for part in layers))}
    found = [
        cuvee.merge({"in": source}, method="passthrough").with_(modules=slices).load(options)
        for source in (inner, inner.load())
    ]
    assert len(found[0]) == sum(end - first for first, end in layers) + 1
    assert all(torch.equal(found[0][name], value) for name, value in found[1].items())


def test_the_digest_knows_no_folder_and_tells_streams_apart() -> None:
    from pathlib import Path

    from cuvee.recipe.model import Input, ModuleRecipe, Slice

    inner = cuvee.merge({"x": A}, base=BASE, method="dare_linear", density=0.5)
    doubled = inner.with_(
        modules={"*": ModuleRecipe((Slice((Input("x", (0, 1)), Input("base", (0, 1)))),) * 2)}
    )
    plans = []
    for first in (0, 1):
        part = {"*": ModuleRecipe((Slice((Input("in", (first, first + 1)),)),))}
        plans.append(cuvee.merge({"in": doubled}, method="passthrough").with_(modules=part))
    values = [plan.load()["layers.0.w"] for plan in plans]
    assert not torch.equal(*values)  # the same reads, but another stream
    assert plans[0].build().digest != plans[1].build().digest
    moved = cuvee.merge({"in": inner.with_(file=str(Path("/elsewhere/r.yaml")))}, method="passthrough")
    here = cuvee.merge({"in": inner}, method="passthrough")
    assert moved.build().digest == here.build().digest
