"""Ask MergeKit what rows it gives each model under the zoo's recipes; writes one small JSON file.

Run with an interpreter that has mergekit 0.1.5:  python make_reference.py reference.json
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from mergekit.tokenizer.embed import PermutedVocabulary
from tokenizer_zoo import MODELS, RECIPES, value, write_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

WIDTH = 16


def main(target: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for model in MODELS:
            write_model(root / model, model)
        reference = {name: run(root, name, recipe) for name, recipe in RECIPES.items()}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(found)}" for name, found in reference.items())
    Path(target).write_text("{\n" + lines + "\n}\n")


def write_model(folder: Path, model: str) -> None:
    rows = MODELS[model][2]
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    network = LlamaForCausalLM(config)
    table = torch.zeros(rows, WIDTH)
    table[:, :2] = torch.tensor([value(model, row) for row in range(rows)])
    with torch.no_grad():
        network.model.embed_tokens.weight.copy_(table)
        network.lm_head.weight.copy_(table + 0.5)
    network.save_pretrained(folder)
    write_tokenizer(folder, model)


def run(root: Path, name: str, recipe: dict[str, Any]) -> dict[str, Any]:
    """Vocabulary and, for each model, the first two columns of its realigned embedding."""
    seen: dict[str, Any] = {}
    original = PermutedVocabulary.execute

    def spy(self: Any, tokenizer_info: Any, tensors: Any) -> Any:
        found = original(self, tokenizer_info, tensors)
        weight = next(iter(self.gather_tensors.weight_info.values())).name
        if weight == "model.embed_tokens.weight":
            seen["vocab"] = dict(sorted(tokenizer_info.tokenizer.get_vocab().items(), key=lambda i: i[1]))
            seen["rows"] = {Path(m.model.path).name: t[:, :2].float().tolist() for m, t in found.items()}
        return found

    PermutedVocabulary.execute = spy
    try:
        config = MergeConfiguration.model_validate(yaml.safe_load(yaml.safe_dump(with_paths(root, recipe))))
        run_merge(config, str(root / f"out-{name}"), MergeOptions(quiet=True, write_model_card=False))
    finally:
        PermutedVocabulary.execute = original
    written = json.loads((root / f"out-{name}" / "config.json").read_text())
    return {"vocab_size": written["vocab_size"], **seen}


def with_paths(root: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe as MergeKit reads it: a linear merge of folders."""

    def path(model: str) -> str:
        return str(root / model) if model in MODELS else model

    def rule(found: Any) -> Any:
        if isinstance(found, dict) and "model" in found:
            return {**found, "model": path(found["model"])}
        return path(found) if isinstance(found, str) else found

    tokenizer = dict(recipe["tokenizer"])
    tokenizer["source"] = path(tokenizer["source"]) if tokenizer["source"] != "base" else "base"
    if "tokens" in tokenizer:
        tokenizer["tokens"] = {
            token: {**found, **({"source": rule(found["source"])} if "source" in found else {})}
            for token, found in tokenizer["tokens"].items()
        }
    out: dict[str, Any] = {
        "merge_method": "linear",
        "dtype": "float32",
        "models": [{"model": path(m), "parameters": {"weight": 1.0}} for m in recipe["models"]],
        "tokenizer": tokenizer,
    }
    if "base_model" in recipe:
        out["base_model"] = path(recipe["base_model"])
    return out


def in_recipe_order(self: MergeConfiguration) -> list[Any]:
    """The models without MergeKit's detour over a set, so that its answers do not depend on the hash seed."""
    slices = [s for module in (self.modules or {}).values() for s in module.slices or []]
    parts = [*(self.models or []), *(source for s in slices for source in s.sources)]
    return list(dict.fromkeys([*([self.base_model] if self.base_model else []), *(p.model for p in parts)]))


if __name__ == "__main__":
    MergeConfiguration.referenced_models = in_recipe_order
    main(sys.argv[1])
