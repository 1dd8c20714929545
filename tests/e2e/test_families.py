"""A tiny model of every family: merged, reloaded by transformers with no missing or unexpected key, expected logits."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import cuvee
from cuvee.testing.tiny_models import FAMILIES, expert_of, logits, tiny

pytestmark = pytest.mark.transformers

STACKED = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "phi3",
    "gpt2",
    "gpt_neox",
    "mixtral",
    "bert",
    "vit",
)


def family(name: str, folder: Path) -> tuple[Path, Path, Path]:
    """Base and two experts of a family."""
    base = tiny(name, seed=0, folder=folder / "base")
    experts = [expert_of(base, folder / f"expert_{i}", seed=i, scale=0.02) for i in (1, 2)]
    return base, *experts


def averaged(a: Path, b: Path, out: Path, share: float) -> Path:
    """An independent weighted average with plain torch, file by file, in float64."""
    shutil.copytree(a, out)
    for file in out.glob("*.safetensors"):
        first, second = load_file(file), load_file(b / file.name)
        mixed = {
            name: (share * x.double() + (1 - share) * second[name].double()).to(x.dtype)
            if x.is_floating_point()
            else x
            for name, x in first.items()
        }
        save_file(mixed, file, {"format": "pt"})
    return out


@pytest.mark.parametrize("name", FAMILIES)
def test_merge_reloads_with_the_expected_logits(name: str, tmp_path: Path) -> None:
    _, a, b = family(name, tmp_path)
    cuvee.merge([a, b], method="linear", weight=[0.25, 0.75]).save(tmp_path / "out")
    merged = logits(tmp_path / "out")
    expected = logits(averaged(a, b, tmp_path / "reference", 0.25))
    assert torch.allclose(merged, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(merged, logits(a), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_base_alone_comes_back_through_a_task_vector_method(name: str, tmp_path: Path) -> None:
    base, a, b = family(name, tmp_path)
    blend = cuvee.merge([a, b], base=base, method="ties", density=cuvee.curve([0.2, 0.8]), lam=0.0)
    blend.save(tmp_path / "out")
    assert torch.equal(logits(tmp_path / "out"), logits(base))


@pytest.mark.parametrize("name", STACKED)
def test_stacked_layers_reload_and_the_seam_is_where_it_should_be(name: str, tmp_path: Path) -> None:
    base = tiny(name, seed=0, folder=tmp_path / "base")
    recipe = tmp_path / "stack.cuvee.yaml"
    recipe.write_text(
        "version: 1\nexperts: {a: ./base}\nmerge: {method: passthrough}\n"
        "layers:\n  - {from: a, range: [0, 2]}\n  - {from: a, range: [1, 2]}\n  - {from: a, range: [0, 1]}\n"
    )
    cuvee.load(recipe).save(tmp_path / "out")
    out, source = cuvee.open(tmp_path / "out"), cuvee.open(base)
    for tensor, meta in out.source.tensors.items():
        place = out.family.place(tensor)
        origin = tensor if place.layer is None else source.family.rename(tensor, (0, 1, 1, 0)[place.layer])
        assert torch.equal(out.tensor(tensor), source.tensor(origin)), meta.name
    assert out.family.layer_count(out.source.tensors) == 4
    assert logits(tmp_path / "out").isfinite().all()
