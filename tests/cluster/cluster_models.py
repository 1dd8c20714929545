"""Tiny models and recipes for runs on a cluster."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

RECIPES = {
    "linear": "{method: linear}",
    "ties": "{method: ties, density: 0.4}",
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
