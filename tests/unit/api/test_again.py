"""Adapters and packages are reproduced by their own writers, and nothing is left beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import cuvee
from cuvee.api.again import again
from cuvee.engine.options import RunOptions

SHAPES = {"model.layers.0.self_attn.q_proj.weight": (24, 16), "model.layers.0.mlp.up_proj.weight": (32, 16)}
FORMS = {
    "adapter": ("task_arithmetic", "{kind: adapter, rank: 3}"),
    "package": ("emr", "{kind: package}"),
    "package with its base": ("emr", "{kind: package, include_base: true}"),
}


def _write(folder: Path, seed: int, scale: float = 0.1) -> None:
    folder.mkdir(exist_ok=True)
    base, change = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(shape, generator=base) + scale * torch.randn(shape, generator=change)
        for name, shape in SHAPES.items()
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture(params=FORMS)
def output(request: Any, tmp_path: Path) -> Path:
    """An output of each kind, of two experts over a base, in a folder with its sources."""
    method, form = FORMS[request.param]
    for number, name in enumerate(("base", "a", "b")):
        _write(tmp_path / name, number, 0.1 if number else 0.0)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"version: 1\nbase: ./base\nexperts: {{a: ./a, b: ./b}}\nmerge: {{method: {method}}}\noutput: {form}\n"
    )
    cuvee.load(recipe).save(tmp_path / "out")
    return tmp_path / "out"


def _listing(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_output_is_reproduced_and_nothing_else_is_there(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _listing(output.parent)
    assert again(output, output.parent, RunOptions()) == []
    monkeypatch.chdir(output)
    assert again(Path(), output.parent, RunOptions()) == []  # named by a path that ends in no name
    assert _listing(output.parent) == before
    assert sorted(path.name for path in output.parent.iterdir()) == ["a", "b", "base", "out", "r.yaml"]


def test_a_changed_source_is_told(output: Path) -> None:
    _write(output.parent / "a", 9)
    found = again(output, output.parent, RunOptions())
    assert found
    assert {one.code for one in found} == {"CV-V030"}
    assert any("mlp.up_proj" in one.message for one in found)


def test_a_run_that_fails_leaves_nothing(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(event: Any) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        again(output, output.parent, RunOptions(), listener=fail)
    assert sorted(path.name for path in output.parent.iterdir()) == ["a", "b", "base", "out", "r.yaml"]


def test_the_card_tells_what_the_command_line_changed_and_how_the_output_is_made_again(
    here: Path, cli: Any
) -> None:
    Path("r.yaml").write_text(
        "version: 1\nbase: ./base\nexperts: {math: ./math, code: ./code}\nmerge: {method: ties, density: 0.3}\n"
    )
    assert cli("merge", "r.yaml", "-o", "out", "--set", "density=0.6", "--dtype", "float16", "-q").code == 0
    card = Path("out/README.md").read_text()
    assert "`--dtype float16 --set density=0.6`" in card
    assert "`--dtype float16 --set density=0.6`" in cli("card", "out").out
    line = next(line for line in card.splitlines() if line.startswith("cuvee reproduce ."))
    assert cli(*line.replace(" .", " out").replace("FOLDER", ".").split()[1:]).code == 0
