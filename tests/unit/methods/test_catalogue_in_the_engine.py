"""Every method of the catalogue through plan and engine, against its plain meaning on tensors in memory."""

from __future__ import annotations

import pytest
import torch
from test_catalogue_edges import EVERY, TRAJECTORIES

import cuvee
from cuvee.methods.contract import Place
from cuvee.testing.stages import run_method

torch.set_num_threads(1)
SHAPES = {
    "model.embed_tokens.weight": (64, 48),
    "model.norm.weight": (48,),
    "lm_head.weight": (64, 48),
    **{f"model.layers.{i}.self_attn.q_proj.weight": (48, 48) for i in range(3)},
    **{f"model.layers.{i}.mlp.down_proj.weight": (48, 1500) for i in range(3)},
    **{f"model.layers.{i}.input_layernorm.weight": (48,) for i in range(3)},
}


_ROLES = {"embed": "embeddings", "norm": "norm", "lm_head": "head", "q_proj": "q", "down_proj": "down"}


def place(name):
    layer = int(name.split(".")[2]) if ".layers." in name else None
    role = next(role for part, role in _ROLES.items() if part in name)
    return Place(name, role, layer, 3)


PLACES = {name: place(name) for name in SHAPES}


def model(seed, base=None):
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    return {name: base[name] + 0.2 * x for name, x in drawn.items()} if base else drawn


BASE = model(0)
EXPERTS = [model(seed, BASE) for seed in (1, 2, 3)]


@pytest.mark.parametrize("method", EVERY)
def test_the_engine_does_what_the_method_means(method):
    params = EVERY[method](3)
    if method == "lines":
        params = {"beta": 0.5}
    base = None if method in TRAJECTORIES else BASE
    wanted = run_method(method, EXPERTS, base, params, places=PLACES)
    python = {"lam" if name == "lambda" else name: value for name, value in params.items()}
    merged = cuvee.merge(EXPERTS, base=base, method=method, **python).load()
    for name in SHAPES:
        assert merged[name].equal(wanted[name]), name


@pytest.mark.parametrize("row", [37, 1000, 1500])
def test_groups_of_entries_stay_whole_beside_a_stage_of_rows(row):
    """A stage of rows cuts a tensor at rows; groups of 256 entries are still counted from the tensor's start."""
    generator = torch.Generator().manual_seed(0)
    base = {"x": torch.zeros(300, row)}
    models = [{"x": torch.randn(300, row, generator=generator)} for _ in range(2)]
    chain = [("magprune", {"density": 1.0}), ("cabs", {"n": 16, "m": 256})]
    merged = cuvee.merge(models, base=base, method=chain).load()
    wanted = run_method("cabs", models, base, {"n": 16, "m": 256})
    assert merged["x"].equal(wanted["x"])
    assert int(merged["x"].count_nonzero()) == 2 * (
        300 * row // 256 * 16 + round(16 * (300 * row % 256) / 256)
    )
