"""Matrices whose squares are beyond float32: a power of two times the inputs is that power times the result."""

from __future__ import annotations

import pytest
import torch

import cuvee

torch.set_num_threads(1)
SHAPES = {"model.layers.0.mlp.up_proj.weight": (6, 8), "model.layers.1.mlp.down_proj.weight": (8, 6)}


def merged(method: str, power: int) -> dict[str, torch.Tensor]:
    draw, size = torch.Generator().manual_seed(0), 2.0**power
    base = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    experts = [{n: size * torch.randn(s, generator=draw) for n, s in SHAPES.items()} for _ in range(3)]
    found = cuvee.merge(experts, base=base, method=method).load()
    return {name: tensor / size for name, tensor in found.items()}


@pytest.mark.parametrize("power", [-100, -75, 62, 100])
@pytest.mark.parametrize("method", ["drm_h", "drm_v", "star", "tsv_m", "iso_c", "iso_cts", "cart"])
def test_tiny_and_huge_matrices_merge_as_others(method: str, power: int) -> None:
    wanted = merged(method, 0)
    for name, tensor in merged(method, power).items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-4, atol=1e-4)
