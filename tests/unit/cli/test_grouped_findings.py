"""Mistakes about many tensors on the screen: one block with the count and the remedy; all of them in JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

LINEAR = "version: 1\nexperts: {math: ./math, odd: ./odd}\nmerge: {method: linear}\n"


@pytest.fixture
def odd(here: Path) -> Path:
    """`odd`: as `math`, to be changed."""
    (here / "odd").mkdir()
    (here / "odd" / "config.json").write_bytes((here / "math" / "config.json").read_bytes())
    (here / "r.yaml").write_text(LINEAR)
    return here


def change(folder: Path, edit: Any) -> None:
    tensors = {n: t for n, t in ((n, edit(n, t)) for n, t in _math(folder).items()) if t is not None}
    save_file(tensors, folder / "odd" / "model.safetensors", metadata={"format": "pt"})


def _math(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "math" / "model.safetensors")


def test_missing_tensors_are_one_block_that_names_the_remedy(odd: Path, cli: Any) -> None:
    change(odd, lambda name, tensor: None if "mlp" in name else tensor)
    outcome = cli("check", "r.yaml")
    assert outcome.code == 2
    assert outcome.err.count("error[CV-P036]") == 1
    assert "= 6 tensors: `model.layers.0.mlp." in outcome.err
    assert " and 3 more" in outcome.err
    assert "--tensor-intersection" in outcome.err.split("hint: ")[1]
    assert "--tensor-union" in outcome.err.split("hint: ")[1]
    assert "6 errors in r.yaml; nothing was read or written\nhint: `cuvee explain CV-P036`\n" in outcome.err
    found = cli("check", "r.yaml", "--json").json["diagnostics"]
    assert len({d["where"]["tensor"] for d in found if d["code"] == "CV-P036"}) == 6
    for remedy in ("--tensor-union", "--tensor-intersection"):  # the hint tells the truth
        assert cli("check", "r.yaml", remedy).code == 0
    plan = cli("plan", "r.yaml", "--tensor-union")
    assert plan.out.count("note[CV-P037]") == 1
    assert "= 6 tensors: " in plan.out
    error = json.loads(cli("plan", "r.yaml", "--json").err)
    assert len(error["diagnostics"]) == 6


def test_shapes_that_differ_are_one_block(odd: Path, cli: Any) -> None:
    change(odd, lambda name, tensor: torch.zeros(4, 8) if "_proj" in name else tensor)
    err = cli("plan", "r.yaml").err
    assert err.count("error[CV-P038]") == 1
    assert "= 14 tensors: " in err
    assert "14 errors" in err


def test_a_run_that_comes_out_differently_names_the_tensors_once(here: Path, cli: Any) -> None:
    assert cli("quick", "linear", "./math", "./code", "-o", "out", "-q").code == 0
    manifest = here / "out" / "cuvee.yaml"
    manifest.write_text(manifest.read_text().replace("./code", "./chat"))
    outcome = cli("reproduce", "out")
    assert outcome.code == 3
    assert outcome.err.count("CV-V030") == 1
    assert "= 21 tensors: " in outcome.err
    assert len(cli("reproduce", "out", "--json").json["diagnostics"]) == 21
