"""Tiny models and recipes for runs on a cluster."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from cuvee.api.blend import Blend
from cuvee.api.ways import Reading
from cuvee.engine.cluster.job import ClusterOptions
from cuvee.engine.options import RunOptions
from cuvee.recipe.load import parse_recipe
from cuvee.sources.catalogue import catalogue
from cuvee.sources.open import open_source
from cuvee.sources.spared import SparedSource

RECIPES = {
    "linear": "{method: linear}",
    "ties": "{method: ties, density: 0.4}",
    "ties_tensor": "{method: ties, density: 0.4, scope: tensor, count: official}",
    "ties_model": "{method: ties, density: 0.4, scope: model, count: official}",
    "task_arithmetic": "{method: task_arithmetic}",
    "dare_ties": "{method: dare_ties, density: 0.5}",
    "slerp": "{method: slerp, t: 0.3}",
    "lines": "{method: lines}",
    "tsv_m": "{method: tsv_m}",
}


def models(root: Path, *, rows: int = 96, layers: int = 6, wide: int = 3000) -> None:
    """A base and two experts: a wide tensor, and some matrices; `root/base`, `root/one`, `root/two`."""
    for seed, name in enumerate(("base", "one", "two")):
        made = torch.Generator().manual_seed(0)
        noise = torch.Generator().manual_seed(seed + 1)
        tensors = {"embed.weight": torch.randn(wide, 512, generator=made)}
        for i in range(layers):
            tensors[f"layers.{i}.weight"] = torch.randn(rows, 64, generator=made)
            tensors[f"layers.{i}.bias"] = torch.randn(rows, generator=made)
        if seed:
            tensors = {n: t + 0.1 * torch.randn(t.shape, generator=noise) for n, t in tensors.items()}
        folder = root / name
        folder.mkdir(parents=True)
        save_file({n: t.bfloat16() for n, t in tensors.items()}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"model_type": "thing"}))


def recipe(root: Path | str, method: str) -> str:
    """The text of a recipe."""
    base = "" if method in ("linear", "slerp") else f"base: {root}/base\n"
    experts = f"{{one: {root}/one, two: {root}/two}}"
    return f"version: 1\n{base}experts: {experts}\nmerge: {RECIPES[method]}\noutput: {{shard_size: 2MB}}\n"


def weights(folder: Path) -> dict[str, bytes]:
    """Every weight file and its bytes."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def uneven(root: Path) -> None:
    """Make most rows of the wide tensor change little, and catalogue the models: a budget can leave blocks out."""
    base = load_file(root / "base/model.safetensors")["embed.weight"]
    for name in ("one", "two"):
        tensors = load_file(root / name / "model.safetensors")
        own = tensors["embed.weight"]
        own[len(own) // 4 :] = (base + 0.01 * (own - base))[len(own) // 4 :]
        save_file(tensors, root / name / "model.safetensors")
    opened = [open_source(f"./{name}", anchor=root) for name in ("base", "one", "two")]
    catalogue(opened[0], opened[1:])


def within(
    text: str, out: Path, cluster: ClusterOptions | None = None, *, budget: str = "60%"
) -> tuple[dict[str, bytes], object]:
    """Weights of a merge within a budget, on a cluster where one is given, and what its manifest says of the budget."""
    blend = Blend(parse_recipe(text))
    with blend.way(RunOptions(), Reading(read_budget=budget)) as found:
        assert any(isinstance(opened.source, SparedSource) for opened in found.plan.sources.values())
    figures = blend.save(out, run=RunOptions(), read_budget=budget, cluster=cluster).finished.figures
    return weights(out), figures["read_budget"]
