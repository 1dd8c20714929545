"""Findings of a plan that a person acts on: each at its line, with the remedy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

TIES = """\
merge_method: ties
base_model: ./base
models:
  - {model: ./math, parameters: {weight: 0.5, density: 0.5}}
  - {model: ./code, parameters: {weight: 0.5, density: 0.5}}
"""


def findings(cli: Any, text: str) -> list[dict[str, Any]]:
    """What `check` finds in a recipe."""
    Path("r.yml").write_text(text)
    found: list[dict[str, Any]] = cli("check", "r.yml", "--json").json["diagnostics"]
    return found


def only(found: list[dict[str, Any]], code: str) -> dict[str, Any]:
    (one,) = [d for d in found if d["code"] == code]
    return one


def test_a_model_of_the_working_folder_is_told(here: Path, cli: Any) -> None:
    """Paths are relative to the recipe; what lies in the working folder alone is taken, and said."""
    own = (
        "version: 1\nbase: ./base\nexperts: {math: ./math, code: ./code}\nmerge: {method: task_arithmetic}\n"
    )
    for name in ("base", "math"):
        shutil.copytree(name, f"inner/{name}")
    Path("inner/r.yaml").write_text(own)
    found = cli("check", "inner/r.yaml", "--json").json["diagnostics"]
    one = only(found, "CV-P113")
    assert one["severity"] == "warning" and "`./code` does not lie beside the recipe" in one["message"]
    assert one["where"]["line"] == 3
    assert cli("check", "--strict", "inner/r.yaml").code == 4
    meant = cli("mergekit-yaml", "inner/r.yaml", "out")  # whose paths are relative to the working folder
    assert meant.code == 0 and "CV-P113" not in meant.text
    shutil.copytree("code", "inner/code")
    assert not [
        d for d in cli("check", "inner/r.yaml", "--json").json["diagnostics"] if d["code"] == "CV-P113"
    ]
    Path("r.yaml").write_text(own)
    assert not [d for d in cli("check", "r.yaml", "--json").json["diagnostics"] if d["code"] == "CV-P113"]


@pytest.mark.parametrize(
    ("written", "acts", "hint"), [("50", "1", "did you mean `0.5`?"), ("1.5", "1", None),
                                  ("-0.25", "0", None), ("500", "1", None)]
)  # fmt: skip
def test_a_density_out_of_range_is_a_warning(
    written: str, acts: str, hint: str | None, here: Path, cli: Any
) -> None:
    found = only(findings(cli, TIES.replace("density: 0.5", f"density: {written}", 1)), "CV-P100")
    assert found["severity"] == "warning"
    assert f"`density` {written} is out of range [0, 1]; it acts as {acts}" in found["message"]
    assert found.get("hint") == hint
    assert (found["where"]["line"], found["where"]["file"]) == (4, "r.yml")
    assert cli("check", "--strict", "r.yml").code == 4


@pytest.mark.parametrize("written", ["0", "1", "0.5", "[0, 1]"])
def test_a_density_within_range_is_none(written: str, here: Path, cli: Any) -> None:
    found = findings(cli, TIES.replace("density: 0.5", f"density: {written}"))
    assert not [d for d in found if d["code"] == "CV-P100"]


def test_a_density_of_50_is_that_of_1(here: Path, cli: Any) -> None:
    outputs = []
    for density in ("50", "1"):
        Path("r.yml").write_text(TIES.replace("0.5}}", density + "}}"))
        assert cli("merge", "r.yml", "-o", f"out{density}.safetensors", "-q").code == 0
        outputs.append(load_file(f"out{density}.safetensors"))
    assert all(torch.equal(outputs[0][name], outputs[1][name]) for name in outputs[1])


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (TIES + "random_seed: 3\n", "--random-seed"),
        (TIES + "seed: 3\n", "--seed"),
        ("version: 1\nexperts: {a: ./math}\nmerge: {method: linear}\nrandom_seed: 3\n", "`seed`"),
    ],
)
def test_where_seeds_go(text: str, hint: str, here: Path, cli: Any) -> None:
    found = only(findings(cli, text), "CV-R004")
    assert hint in found["hint"]


def test_a_base_that_linear_merges_too(here: Path, cli: Any) -> None:
    text = TIES.replace("merge_method: ties", "merge_method: linear").replace(", density: 0.5", "")
    assert "`linear` merges `base_model` as one model more" in only(findings(cli, text), "CV-P030")["hint"]
    weighted = text.replace("models:\n", "models:\n  - {model: ./base, parameters: {weight: 1}}\n")
    for better in (text.replace("base_model: ./base\n", ""), weighted):
        assert not [d for d in findings(cli, better) if d["severity"] == "error"]


@pytest.mark.parametrize(("template", "code"), [("chatmll", "CV-T020"), ("'{% if %}'", "CV-T021")])
@pytest.mark.parametrize("native", [True, False])
def test_chat_templates_are_placed(template: str, code: str, native: bool, here: Path, cli: Any) -> None:
    own = "version: 1\nexperts: {a: ./math}\nmerge: {method: linear}\n"
    text = own if native else TIES
    where = only(findings(cli, f"{text}chat_template: {template}\n"), code)["where"]
    assert (where["line"], where["column"]) == (text.count("\n") + 1, 16)
    assert where["path"] == "chat_template"


def test_another_architecture_is_placed_at_its_model(here: Path, cli: Any) -> None:
    config = json.loads(Path("base/config.json").read_text()) | {"model_type": "mistral"}
    Path("other").mkdir()
    Path("other/config.json").write_text(json.dumps(config | {"architectures": ["MistralForCausalLM"]}))
    Path("other/model.safetensors").write_bytes(Path("base/model.safetensors").read_bytes())
    where = only(findings(cli, TIES.replace("./code", "./other")), "CV-P005")["where"]
    assert (where["file"], where["line"]) == ("r.yml", 5)


def test_tensors_of_whole_numbers_are_told_in_one_note(here: Path, cli: Any) -> None:
    for name in ("base", "math", "code"):
        tensors = load_file(f"{name}/model.safetensors")
        tensors |= {f"model.layers.{i}.self_attn.steps": torch.arange(3) for i in range(4)}
        save_file(tensors, f"{name}.safetensors")
    text = TIES.replace("./base", "./base.safetensors")
    text = text.replace("./math", "./math.safetensors").replace("./code", "./code.safetensors")
    found = only(findings(cli, text), "CV-P101")
    assert found["message"].startswith("4 tensors of whole numbers are copied, not merged: ")
    assert found["message"].endswith(" and 1 more")
    assert not [d for d in findings(cli, TIES) if d["code"] == "CV-P101"]


def tokenizer(folder: Path, extra: list[str]) -> Path:
    """A copy of `base` with a tokenizer of its 24 rows and more tokens."""
    tensors = load_file("base/model.safetensors")
    rows = 24 + len(extra)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name], torch.zeros(len(extra), 8)])
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    config = json.loads(Path("base/config.json").read_text()) | {"vocab_size": rows}
    (folder / "config.json").write_text(json.dumps(config))
    words = {w: i for i, w in enumerate([*(f"w{i}" for i in range(24)), *extra])}
    content = {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def test_tokens_that_a_union_adds_are_told_with_the_rows_of_the_embedding(here: Path, cli: Any) -> None:
    tokenizer(here / "plain", [])
    tokenizer(here / "chatty", ["<|a|>", "<|b|>"])
    text = "merge_method: linear\nmodels:\n  - {model: ./plain, parameters: {weight: 1}}\n"
    text += "  - {model: ./chatty, parameters: {weight: 1}}\ntokenizer: {source: union}\n"
    found = only(findings(cli, text), "CV-P102")
    assert found["message"] == (
        "`./chatty` adds 2 tokens (`<|a|>`, `<|b|>`): embeddings have 26 rows instead of the 24 of `./plain` "
        "(policy `union`)"
    )
    assert not [d for d in findings(cli, text.replace("union", "base")) if d["code"] == "CV-P102"]
