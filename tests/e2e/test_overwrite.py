"""`--overwrite` replaces a model, and nothing else: sources, their parents and strangers' folders are never touched."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import cuvee
from cuvee.errors import OutputBusy


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        (tmp_path / "models" / name).mkdir(parents=True)
        save_file({"w": torch.ones(4)}, tmp_path / "models" / name / "model.safetensors")
        (tmp_path / "models" / name / "config.json").write_text("{}")
    return tmp_path


def blend(models: Path) -> cuvee.Blend:
    return cuvee.merge([models / "models" / "a", models / "models" / "b"], method="linear")


@pytest.mark.parametrize("out", ["models/a", "models", "."])
def test_a_source_or_a_parent_of_one_is_never_replaced(models: Path, out: str) -> None:
    before = sorted(models.rglob("*"))
    with pytest.raises(OutputBusy):
        blend(models).save(models / out, overwrite=True)
    assert sorted(models.rglob("*")) == before


@pytest.mark.parametrize("inside", ["notes.txt", "mine/notes.txt"])
def test_a_folder_of_other_things_is_never_replaced(models: Path, inside: str) -> None:
    note = models / "out" / inside
    note.parent.mkdir(parents=True)
    note.write_text("keep me")
    with pytest.raises(OutputBusy):
        blend(models).save(models / "out", overwrite=True)
    assert note.read_text() == "keep me"


def test_a_model_is_replaced_when_asked(models: Path) -> None:
    blend(models).save(models / "out")
    with pytest.raises(OutputBusy):
        blend(models).save(models / "out")
    blend(models).save(models / "out", overwrite=True)
    assert cuvee.verify(models / "out") == []
