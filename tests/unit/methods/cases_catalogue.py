"""A small model of several layers, and what the tests of many methods do with it."""

from __future__ import annotations

import numpy as np
import torch

from cuvee.methods.contract import Place
from cuvee.testing.stages import run_method

SHAPES = {
    "embed.weight": (40, 12),
    "layers.0.attn.weight": (12, 100),
    "layers.0.norm.weight": (12,),
    "layers.1.attn.weight": (12, 100),
    "layers.1.conv.weight": (4, 3, 5, 5),
    "layers.2.attn.weight": (30, 70),
    "layers.2.scale": (),
    "norm.weight": (1500,),
}
_ROLES = {"embed.weight": "embeddings", "norm.weight": "norm"}


def _place(name):
    layer = int(name.split(".")[1]) if name.startswith("layers.") else None
    return Place(name, _ROLES.get(name, "o"), layer, 3)


PLACES = {name: _place(name) for name in SHAPES}


def model(seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


BASE = model(0)


def experts(count, spread=0.25):
    """Experts of different strengths, whose task vectors share a part."""
    common = model(99)
    out = []
    for seed in range(1, count + 1):
        own = model(seed)
        factor = spread * (1 + seed % 3) / 2
        out.append({n: BASE[n] + factor * (own[n] + 0.5 * common[n]) for n in SHAPES})
    return out


EXPERTS = experts(3)


def wide(tensors):
    return {name: tensor.double().numpy() for name, tensor in tensors.items()}


def taus(models=EXPERTS, base=BASE):
    """Task vectors as float32 has them, in float64."""
    return [wide({n: expert[n] - base[n] for n in base}) for expert in models]


def check(method, params, wanted, *, models=EXPERTS, base=BASE, tolerance=3e-6):
    """The merge of the whole model equals the oracle's, for each cut into blocks; returns it."""
    merged = {}
    for block in (1024, 4096, None):
        merged = run_method(method, models, base, params, block=block, places=PLACES)
        for name in SHAPES:
            found = merged[name].double().numpy()
            size = max(np.abs(wanted[name]).max(initial=0.0), 1e-30)
            np.testing.assert_allclose(found, wanted[name], rtol=0, atol=tolerance * size, err_msg=name)
    return merged


def plus(vector, base=BASE):
    """Base and a task vector, both dictionaries."""
    return {name: x + vector[name] for name, x in wide(base).items()}


def merged_of(method, vectors, params=None, **how):
    """Merge task vectors over a base of zeros; lists of numbers in and out."""
    tensors = [torch.tensor(v, dtype=torch.float32) for v in vectors]
    return run_method(method, tensors, torch.zeros_like(tensors[0]), params, **how).tolist()
