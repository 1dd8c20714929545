"""Locks and saved plans hold a recipe to what its sources were: also where only values changed, in any kind of file."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from safetensors.torch import save_file

from cuvee.core.sampling import END, EVEN, PIECE, sample

RECIPE = "version: 1\nbase: ./base\nexperts: {math: ./math, tuned: ./base + ./lora}\nmerge: {method: ties}\n"


def poke(path: Path, offset: int) -> None:
    """Change one byte and nothing that a header or a clock tells."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        old = file.read(1)
        file.seek(offset)
        file.write(bytes([old[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def folder(here: Path) -> Path:
    """Models with an adapter, copied since tests change them, and a recipe of all of them."""
    for model in list(here.iterdir()):
        whole = model.resolve()
        model.unlink()
        shutil.copytree(whole, model)
    lora = here / "lora"
    lora.mkdir()
    factors = {"lora_A": torch.randn(2, 8), "lora_B": torch.randn(8, 2)}
    at = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file({f"{at}.{n}.weight": t for n, t in factors.items()}, lora / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    (lora / "adapter_config.json").write_text(json.dumps(config))
    (here / "r.yaml").write_text(RECIPE)
    return here


@pytest.mark.parametrize("file", ["math/model.safetensors", "lora/adapter_model.safetensors"])
def test_a_changed_value_is_seen(file: str, folder: Path, cli: Any) -> None:
    assert cli("lock", "r.yaml").code == 0
    assert cli("plan", "r.yaml", "-o", "plan.json").code == 0
    assert cli("lock", "r.yaml", "--check").code == 0
    poke(folder / file, (folder / file).stat().st_size - 3)
    stale = cli("lock", "r.yaml", "--check")
    assert (stale.code, "samples" in stale.err) == (3, True)
    assert cli("merge", "r.yaml", "--locked", "cuvee.lock", "-o", "out").code == 3
    refused = cli("merge", "plan.json", "-o", "out")
    assert (refused.code, "CV-P050" in refused.err) == (2, True)
    assert not (folder / "out").exists()


def test_the_lock_of_an_output_holds_the_recipe_to_its_inputs(folder: Path, cli: Any) -> None:
    assert cli("merge", "r.yaml", "-o", "out", "-q").code == 0
    assert cli("lock", "r.yaml", "--check", "-o", "out/cuvee.lock").code == 0
    poke(folder / "base" / "model.safetensors", (folder / "base" / "model.safetensors").stat().st_size - 1)
    assert cli("lock", "r.yaml", "--check", "-o", "out/cuvee.lock").code == 3


def test_sha256_reads_every_file_adapters_and_packed_ones_too(folder: Path, cli: Any) -> None:
    assert cli("lock", "r.yaml", "--sha256").code == 0
    locked = json.loads((folder / "cuvee.lock").read_text())["sources"]
    assert set(locked["tuned"]["sha256"]) == {"model.safetensors", "adapter_model.safetensors"}
    writer = GGUFWriter(str(folder / "packed.gguf"), "llama")
    packed = quants.quantize(np.random.default_rng(0).normal(size=(64, 64)), GGMLQuantizationType.Q8_0)
    writer.add_tensor("token_embd.weight", packed, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (folder / "g.yaml").write_text("version: 1\nexperts: {a: ./packed.gguf}\nmerge: {method: passthrough}\n")
    assert cli("lock", "g.yaml", "-o", "g.lock", "--sha256").code == 0
    entry = json.loads((folder / "g.lock").read_text())["sources"]["a"]
    assert (list(entry["sha256"]), [s["name"] for s in entry["samples"]]) == (
        ["packed.gguf"],
        ["packed.gguf"],
    )
    poke(folder / "packed.gguf", (folder / "packed.gguf").stat().st_size // 2)
    assert cli("lock", "g.yaml", "-o", "g.lock", "--check").code == 3


def test_which_changes_a_sample_is_sure_to_see(tmp_path: Path) -> None:
    path, size = tmp_path / "x", 4 << 20
    path.write_bytes(bytes(size))
    spans = [(1_000_000, 70_000), (2_000_003, 500)]
    whole = sample(path, spans)
    sure = [0, PIECE - 1, size - 1, 1_000_000, 1_000_000 + END - 1, 1_069_999, 2_000_003, 2_000_502]
    assert {offset: sample_after(path, offset, spans) != whole for offset in sure} == dict.fromkeys(
        sure, True
    )
    between = (size - PIECE) // (EVEN - 1) // 2
    assert sample_after(path, between, spans) == whole  # what `--sha256` is for
    path.write_bytes(bytes(size + 1))
    assert sample(path, spans) != whole


def sample_after(path: Path, offset: int, spans: list[tuple[int, int]]) -> str:
    poke(path, offset)
    found = sample(path, spans)
    poke(path, offset)
    return found
