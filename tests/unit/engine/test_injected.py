"""What a stage is handed besides its inputs: places, decompositions, inputs one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

import cuvee
from cuvee.methods import registry
from cuvee.methods.contract import Block, Decomposer, Method, Step, stage

SEEN: list[tuple[str, str, int | None, int]] = []


@stage("lazy_mean", role="combine", access="tensor", lazy=True)
def lazy_mean(deltas: Sequence[Tensor], *, block: Block, decompose: Decomposer) -> Tensor:
    """The mean, one input at a time; sees that a matrix comes back from its decomposition."""
    SEEN.append((type(deltas).__name__, block.place.name, block.place.layer, block.place.layers))
    total = torch.zeros(block.shape)
    for delta in deltas:
        if delta.dim() == 2:
            u, s, vh = decompose.svd(delta)
            delta = u @ torch.diag(s) @ vh
        total = total + delta
    return total / len(deltas)


@pytest.fixture
def method() -> Iterator[str]:
    steps = (Step("lazy_mean"),)
    undo = [
        registry.register(lazy_mean),
        registry.register(Method("lm", steps, "required", (1, None), "", "")),
    ]
    SEEN.clear()
    yield "lm"
    for take_back in undo:
        take_back()


def test_a_lazy_stage_sees_each_input_and_where_it_stands(method: str) -> None:
    names = {
        "model.layers.0.mlp.up_proj.weight": (8, 6),
        "model.layers.1.mlp.up_proj.weight": (8, 6),
        "x": (3,),
    }
    base = {name: torch.randn(shape) for name, shape in names.items()}
    experts = [{name: t + torch.randn_like(t) for name, t in base.items()} for _ in range(3)]
    merged = cuvee.merge(experts, base=base, method=method).load()
    for name in names:
        expected = torch.stack([expert[name].double() for expert in experts]).mean(0)
        torch.testing.assert_close(merged[name].double(), expected, rtol=1e-5, atol=1e-6)
    assert {row[0] for row in SEEN} == {"LazyInputs"}
    places = {name: (layer, layers) for _, name, layer, layers in SEEN}
    assert places["model.layers.1.mlp.up_proj.weight"] == (1, 2)
    assert places["x"][0] is None
