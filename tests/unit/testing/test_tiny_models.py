"""The builder of tiny models: sizes, seeds, options, perturbed copies, strict loading, sensitive outputs."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from cuvee.testing.tiny_models import FAMILIES, expert_of, load, logits, tiny

pytestmark = pytest.mark.transformers


def tensors(folder):
    return {n: t for p in sorted(folder.glob("*.safetensors")) for n, t in load_file(p).items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_builds_small_runs_and_hears_every_weight_change(name, tmp_path):
    base = tiny(name, folder=tmp_path / "base")
    assert 10_000 <= sum(math.prod(t.shape) for t in tensors(base).values()) <= 300_000
    out = logits(base)
    assert out.dtype == torch.float32 and out.isfinite().all() and out.numel() > 1
    assert torch.equal(out, logits(base))
    moved = logits(expert_of(base, tmp_path / "expert", seed=1, scale=0.05))
    assert moved.shape == out.shape and (moved - out).abs().max() > 1e-3
    still = logits(expert_of(base, tmp_path / "same", seed=1, scale=0.0))
    assert torch.equal(still, out)


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    one, two, other = (tiny("llama", seed=s, folder=tmp_path / n) for s, n in ((3, "a"), (3, "b"), (4, "c")))
    file = "model.safetensors"
    assert (one / file).read_bytes() == (two / file).read_bytes() != (other / file).read_bytes()


def test_the_callers_random_state_and_threads_are_left_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    logits(tiny("gpt2", folder=tmp_path / "m"))
    assert torch.equal(torch.rand(3), expected) and torch.get_num_threads() == threads


def test_options(tmp_path):
    made = tiny("qwen2", folder=tmp_path / "m", vocab=40, layers=3, dtype="bfloat16", tied=True, shards=3)
    config = json.loads((made / "config.json").read_text())
    assert (config["vocab_size"], config["num_hidden_layers"], config["dtype"]) == (40, 3, "bfloat16")
    found = tensors(made)
    assert "lm_head.weight" not in found and found["model.embed_tokens.weight"].shape == (40, 32)
    assert {t.dtype for t in found.values()} == {torch.bfloat16}
    assert (
        len(list(made.glob("model-*.safetensors"))) >= 2 and (made / "model.safetensors.index.json").exists()
    )
    assert logits(made).shape == (1, 9, 40)
    untied = tiny("gemma3", folder=tmp_path / "u", tied=False, config={"text_config.head_dim": 4})
    assert "language_model.lm_head.weight" in tensors(untied)
    classes = tiny("bert", folder=tmp_path / "c", architecture="BertForSequenceClassification")
    assert logits(classes).shape == (1, 2)
    bare = tiny("llama", folder=tmp_path / "b", architecture="LlamaModel")
    assert logits(bare).shape == (1, 9, 32)


def test_an_expert_is_its_base_plus_noise_of_the_asked_size(tmp_path):
    base = tiny("llama", folder=tmp_path / "base", shards=2)
    a, b, again = (
        tensors(expert_of(base, tmp_path / str(i), seed=s, scale=0.5)) for i, s in enumerate((1, 2, 1))
    )
    before = tensors(base)
    assert set(a) == set(before)
    noise = torch.cat([(a[n] - before[n]).flatten() for n in before])
    assert abs(float(noise.std()) - 0.5) < 0.02 and abs(float(noise.mean())) < 0.02
    assert all(torch.equal(a[n], again[n]) and not torch.equal(a[n], b[n]) for n in before)


@pytest.mark.parametrize("damage", ["missing", "unexpected", "shape"])
def test_loading_is_strict(damage, tmp_path):
    folder = tiny("llama", folder=tmp_path / "m")
    found = tensors(folder)
    name = "model.layers.1.mlp.up_proj.weight"
    if damage == "missing":
        del found[name]
    elif damage == "unexpected":
        found["model.layers.9.mlp.up_proj.weight"] = found[name].clone()
    else:
        found[name] = found[name][:-1].clone()
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="reports"):
        load(folder)
