"""`--paranoid` reads an output back from the device: a bit that was lost on the way ends the run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from cuvee.cli.app import app
from cuvee.core.disk import Handle, RealDisk
from cuvee.errors import RunError

COMMANDS = {
    "merge": ["merge", "r.cuvee.yaml"],
    "one file": ["merge", "r.cuvee.yaml"],
    "quick": ["quick", "linear", "a", "b"],
    "convert": ["convert", "a", "--dtype", "float16"],
    "extract": ["extract", "lora", "a", "b", "--rank", "2"],
}


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.manual_seed(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        tensors = {"model.layers.0.self_attn.q_proj.weight": torch.randn(64, 64)}
        save_file(tensors, tmp_path / name / "model.safetensors", {"format": "pt"})
    text = "version: 1\nbase: ./a\nexperts: {b: ./b}\nmerge: {method: task_arithmetic}\n"
    (tmp_path / "r.cuvee.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lose_a_bit(disk: RealDisk, handle: Handle) -> None:
    """What the device has is not what was written."""
    with handle.path.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_lost_bit_ends_the_run(kind: str, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = models / ("out.safetensors" if kind == "one file" else "out")
    monkeypatch.setattr(RealDisk, "forget", lose_a_bit)
    found = CliRunner().invoke(
        app, [*COMMANDS[kind], "-o", str(out), "--paranoid", "-q"], standalone_mode=False
    )
    assert isinstance(found.exception, RunError) and found.exception.diagnostics[0].code == "CV-E011"
    assert not out.exists()
    monkeypatch.undo()
    monkeypatch.chdir(models)
    again = CliRunner().invoke(
        app, [*COMMANDS[kind], "-o", str(out), "--paranoid", "-q"], standalone_mode=False
    )
    assert again.exception is None and out.exists(), again.output


def test_without_it_nothing_is_read_again(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RealDisk, "forget", lose_a_bit)
    found = CliRunner().invoke(app, [*COMMANDS["merge"], "-o", "out", "-q"], standalone_mode=False)
    assert found.exception is None
