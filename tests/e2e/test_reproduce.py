"""`reproduce` gives the same bytes, also where the command line changed the recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from cuvee.cli.app import app

CHANGES: dict[str, list[str]] = {
    "as written": [],
    "another type": ["--dtype", "float32"],
    "another seed": ["--seed", "7"],
    "a parameter": ["--set", "density=0.25"],
    "smaller files": ["--shard-size", "2kB"],
}


def recipe(folder: Path) -> Path:
    """A random merge of two experts over a base, in folders."""
    torch.manual_seed(0)
    base = torch.randn(40, 30)
    for name, x in (("base", base), ("a", base + 0.1 * torch.randn(40, 30)), ("b", base + 0.1)):
        (folder / name).mkdir()
        tensors = {"layers.0.w": x.bfloat16(), "layers.1.w": (2 * x).bfloat16()}
        save_file(tensors, folder / name / "model.safetensors", {"format": "pt"})
    path = folder / "r.cuvee.yaml"
    path.write_text(
        "version: 1\nbase: ./base\nexperts: {a: ./a, b: ./b}\nmerge: {method: dare_ties, density: 0.5}\n"
    )
    return path


@pytest.mark.parametrize("change", CHANGES)
def test_an_output_is_reproduced(change: str, tmp_path: Path) -> None:
    path, out = recipe(tmp_path), tmp_path / "out"
    made = CliRunner().invoke(app, ["merge", str(path), "-o", str(out), "-q", *CHANGES[change]])
    assert made.exit_code == 0, made.output
    again = CliRunner().invoke(app, ["reproduce", str(out), "--from", str(tmp_path)], standalone_mode=False)
    assert again.return_value == 0, again.output


def test_a_changed_source_is_not_reproduced(tmp_path: Path) -> None:
    path, out = recipe(tmp_path), tmp_path / "out"
    assert CliRunner().invoke(app, ["merge", str(path), "-o", str(out), "-q"]).exit_code == 0
    changed = {"layers.0.w": torch.zeros(40, 30).bfloat16(), "layers.1.w": torch.zeros(40, 30).bfloat16()}
    save_file(changed, tmp_path / "a" / "model.safetensors", {"format": "pt"})
    again = CliRunner().invoke(app, ["reproduce", str(out), "--from", str(tmp_path)], standalone_mode=False)
    assert again.return_value == 3
    assert "layers.0.w" in again.output
