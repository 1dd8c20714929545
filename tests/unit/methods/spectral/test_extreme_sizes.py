"""Matrices whose squares are beyond float32: a power of two times the inputs is that power times the result."""

from __future__ import annotations

from typing import Any

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


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("iso_c", "rank_tol"),
        ("iso_cts", "rank_tol"),
        ("tsv_m", "rank_tol"),
        ("stf", "rank_tol"),
        ("drm_h", "rank_cut"),
        (["weighted_sum", ("isotropise", {})], "rank_tol"),
    ],
    ids=str,
)
def test_no_tolerance_leaves_out_the_largest_direction(method: Any, name: str) -> None:
    """Once the mean of no values: NaN from finite weights."""

    def blend(value: float) -> cuvee.Blend:
        base = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
        draw = torch.Generator().manual_seed(0)
        expert = {n: torch.randn(s, generator=draw) for n, s in SHAPES.items()}
        if isinstance(method, str):
            return cuvee.merge([expert], base=base, method=method, **{name: value})
        return cuvee.merge([expert], base=base, method=[method[0], (method[1][0], {name: value})])

    with pytest.raises(cuvee.CuveeError, match=f"`{name}` must be at least 0 and less than 1"):
        blend(1.0).plan()
    for tensor in blend(1 - 2.0**-40).load().values():
        assert tensor.isfinite().all()
        assert tensor.any()
