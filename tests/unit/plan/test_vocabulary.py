"""Vocabularies brought together end to end: rows of the output against tokens looked up by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

import cuvee
from cuvee.engine.options import RunOptions

WIDTH = 6
VOCABULARIES = {
    "base": ["<unk>", "</s>", "cat", "sat", "mat"],
    "math": ["<unk>", "</s>", "sum", "cat", "mat", "sat"],
    "code": ["</s>", "<unk>", "mat", "def", "cat", "sat", "int"],
}
CUT = [RunOptions(), RunOptions(kernels=False, block=1024)]


def tokenizer(tokens: list[str]) -> Tokenizer:
    made = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    made.add_special_tokens(["<unk>", "</s>"])
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, (name, tokens) in enumerate(VOCABULARIES.items()):
        torch.manual_seed(seed)
        out = tmp_path / name
        out.mkdir()
        rows = (len(tokens), WIDTH)
        tensors = {"model.embed_tokens.weight": torch.randn(rows), "lm_head.weight": torch.randn(rows)}
        tensors |= {
            "model.norm.weight": torch.randn(WIDTH),
            "model.layers.0.mlp.up_proj.weight": torch.randn(9, WIDTH),
        }
        save_file(tensors, out / "model.safetensors")
        end = tokens.index("</s>")
        config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 1,
                  "vocab_size": len(tokens), "tie_word_embeddings": False, "eos_token_id": end}  # fmt: skip
        (out / "config.json").write_text(json.dumps(config))
        (out / "generation_config.json").write_text(json.dumps({"eos_token_id": [end]}))
        tokenizer(tokens).save(str(out / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "eos_token": "</s>"}
        (out / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path


def read(folder: Path, name: str) -> dict[str, Tensor]:
    with cuvee.open(folder / name) as model:
        return {n: model.tensor(n) for n in model.source.tensors}


def merged(folder: Path, text: str, options: RunOptions) -> Path:
    (folder / "r.yaml").write_text(f"version: 1\n{text}\n")
    cuvee.load(folder / "r.yaml").save(folder / "out", run=options)
    return folder / "out"


def output_ids(out: Path) -> dict[str, int]:
    return dict(Tokenizer.from_file(str(out / "tokenizer.json")).get_vocab())


def row(folder: Path, model: str, tensor: str, token: str) -> Tensor | None:
    tokens = VOCABULARIES[model]
    return read(folder, model)[tensor][tokens.index(token)] if token in tokens else None


@pytest.mark.parametrize("options", CUT, ids=["kernels", "generic"])
@pytest.mark.parametrize("source", ["union", "base", "code"])
def test_every_row_is_the_merge_of_the_rows_of_its_token(
    source: str, options: RunOptions, folder: Path
) -> None:
    text = f"base: ./base\nexperts: {{math: ./math, code: ./code}}\nmerge: {{method: linear}}\ntokenizer: {source}"
    out = merged(folder, text, options)
    ids, found = output_ids(out), read(folder, "out")
    wanted = (
        set(VOCABULARIES[source]) if source in VOCABULARIES else {t for v in VOCABULARIES.values() for t in v}
    )
    assert set(ids) == wanted
    for tensor in ("model.embed_tokens.weight", "lm_head.weight"):
        assert found[tensor].shape == (len(ids), WIDTH)
        for token in VOCABULARIES["math"]:
            rows = [r for model in ("math", "code") if (r := row(folder, model, tensor, token)) is not None]
            if len(rows) == 2 and token in ids:
                torch.testing.assert_close(found[tensor][ids[token]], (rows[0] + rows[1]) / 2)
    config = json.loads((out / "config.json").read_text())
    assert config["vocab_size"] == len(ids)
    assert config["eos_token_id"] == ids["</s>"]
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [ids["</s>"]]
    made = Tokenizer.from_file(str(out / "tokenizer.json"))
    words = [token for token in ("cat", "sat", "mat") if token in ids]
    assert made.encode(" ".join(words)).ids == [ids[token] for token in words]


@pytest.mark.parametrize("options", CUT, ids=["kernels", "generic"])
def test_task_vectors_of_a_token_that_the_base_lacks(options: RunOptions, folder: Path) -> None:
    """Rows that all models have are exact; the others are finite and of the output's shape."""
    text = "base: ./base\nexperts: {math: ./math, code: ./code}\ntokenizer: union\n"
    text += "merge: {method: task_arithmetic, weight: 0.5}"
    out = merged(folder, text, options)
    ids, found = output_ids(out), read(folder, "out")["model.embed_tokens.weight"]
    assert torch.isfinite(found).all()
    for token in VOCABULARIES["base"]:
        base, *experts = (
            row(folder, m, "model.embed_tokens.weight", token) for m in ("base", "math", "code")
        )
        assert base is not None
        expected = base + sum(0.5 * (e - base) for e in experts if e is not None)
        torch.testing.assert_close(found[ids[token]], expected)


@pytest.mark.parametrize("options", CUT, ids=["kernels", "generic"])
def test_a_nested_recipe_brings_its_own_vocabulary(options: RunOptions, folder: Path) -> None:
    inner = "{experts: {math: ./math, code: ./code}, merge: {method: linear}, tokenizer: union}"
    outer = "merge: {method: linear}\ntokenizer: union"
    tree = merged(
        folder,
        f"experts: {{in: {{recipe: {inner}}}, base: ./base}}".replace("base: ./base", "first: ./base")
        + f"\n{outer}",
        options,
    )
    one = {
        p.name: p.read_bytes()
        for p in tree.iterdir()
        if p.suffix == ".safetensors" or p.name == "tokenizer.json"
    }
    tree.rename(folder / "tree")
    step = merged(
        folder, "experts: {math: ./math, code: ./code}\nmerge: {method: linear}\ntokenizer: union", options
    )
    step.rename(folder / "step")
    out = merged(folder, f"experts: {{in: ./step, first: ./base}}\n{outer}", options)
    assert {name: (out / name).read_bytes() for name in one} == one


def test_padding_and_tokens_of_choice(folder: Path) -> None:
    text = ("base: ./base\nexperts: {math: ./math, code: ./code}\nmerge: {method: linear}\ntokenizer:\n"
            "  source: union\n  pad_to_multiple_of: 16\n  tokens:\n"
            "    sum: {source: math, force: true}\n    cat: {zero: true, force: true}")  # fmt: skip
    out = merged(folder, text, RunOptions())
    ids, found = output_ids(out), read(folder, "out")
    config: dict[str, Any] = json.loads((out / "config.json").read_text())
    assert config["vocab_size"] == 16
    for tensor in ("model.embed_tokens.weight", "lm_head.weight"):
        assert found[tensor].shape == (16, WIDTH)
        torch.testing.assert_close(found[tensor][ids["sum"]], row(folder, "math", tensor, "sum"))
        assert not found[tensor][ids["cat"]].any()
