"""Small models whose experts differ from their base in several ways, plans that merge them, and what is left out of
those.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from cuvee.api import budget_sample
from cuvee.api.blend import Blend
from cuvee.plan import pages
from cuvee.recipe.load import parse_recipe
from cuvee.sources import catalogue as catalogues

PAGE = 64
SHAPES = {"a.weight": (40, 64), "b.weight": (100, 33), "c.bias": (77,), "d.weight": (64, 64)}


def shrink(monkeypatch, cache):
    """Blocks and pages as small as these models need, and a cache of their own."""
    monkeypatch.setattr(catalogues, "BLOCK", 1024)
    monkeypatch.setattr(pages, "PAGE", PAGE)
    monkeypatch.setattr(budget_sample, "PAGE", PAGE)
    monkeypatch.setenv("CUVEE_CACHE", str(cache))


def save(folder, tensors):
    folder.mkdir(exist_ok=True)
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")


def base_of(random):
    return {n: torch.from_numpy(random.standard_normal(s).astype("f4")) for n, s in SHAPES.items()}


def one_tensor(random, base, number):
    return {n: t + (torch.randn(t.shape) if n == "b.weight" else 0) for n, t in base.items()}


def heavy(random, base, number):
    return {
        n: t + torch.from_numpy((random.standard_cauchy(t.shape) ** 3 * 1e-6).astype("f4"))
        for n, t in base.items()
    }


def flipped(random, base, number):
    """Task vectors that cancel but for a little."""
    fixed = np.random.default_rng(1)
    noise = {n: torch.from_numpy(fixed.standard_normal(t.shape).astype("f4")) for n, t in base.items()}
    return {n: t + (noise[n] if number % 2 else -noise[n] * 1.0001) * 1e-2 for n, t in base.items()}


def sparse(random, base, number):
    found = {n: t.clone() for n, t in base.items()}
    found["d.weight"].view(-1)[number * 300] += 1e4
    found["a.weight"].view(-1)[5] += 1e-3
    return found


def smooth(random, base, number):
    return {
        n: t + torch.from_numpy((random.standard_normal(t.shape) * 1e-3).astype("f4"))
        for n, t in base.items()
    }


def plan_of(folder, weights, lam=1.0, method="task_arithmetic", dtype="out_dtype: float32", density=None):
    models = "".join(f"  - {{model: e{k}, parameters: {{weight: {w!r}}}}}\n" for k, w in enumerate(weights))
    shared = f"lambda: {lam!r}" if density is None else f"density: {density}"
    shared = "select_topk: 0.5" if method == "sce" else shared
    text = f"merge_method: {method}\nbase_model: base\nmodels:\n{models}parameters: {{{shared}}}\n{dtype}\n"
    return Blend(parse_recipe(text), folder, True).build()


def exact(base, experts, weights, lam):
    """The merged update, in float64."""
    return {
        n: lam * sum(w * (e[n].double() - t.double()) for w, e in zip(weights, experts, strict=True))
        for n, t in base.items()
    }


def left_out(base, experts, weights, lam, spared):
    """What the blocks that are not read would have added, in float64."""
    lost = {n: torch.zeros(t.numel(), dtype=torch.float64) for n, t in base.items()}
    for k, (weight, expert) in enumerate(zip(weights, experts, strict=True)):
        for n, blocks in spared[f"e{k}"].items():
            moved = (expert[n].double() - base[n].double()).flatten()
            for b in blocks:
                lost[n][b * 256 : b * 256 + 256] += lam * weight * moved[b * 256 : b * 256 + 256]
    return lost


def norm(tensors):
    return sum(float((t.double() ** 2).sum()) for t in tensors) ** 0.5


def votes_of(folder: Path):
    text = (
        "version: 1\nbase: ./base\nexperts: {a: ./e0, b: ./e1, c: ./e2}\n"
        "merge: {method: ties, density: 1, scope: tensor}\n"
    )
    return Blend(parse_recipe(text), folder).build()
