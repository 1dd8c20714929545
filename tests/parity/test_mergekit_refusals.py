"""Recipes that MergeKit 0.1.5 refuses (run.sh holds it to that) are refused by us, before anything is written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from checkpoints import write_bare, write_refused, write_stored
from recipe_files import RecipeFile, recipe_files
from run_ours import run

RECIPES = recipe_files(folders=("refused",))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    write_stored(root)
    write_bare(root)
    write_refused(root)
    return root


def test_there_are_many() -> None:
    assert len(RECIPES) >= 80


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.path.stem)
def test_is_refused(
    recipe: RecipeFile, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(inputs)
    said = run(recipe, tmp_path / "out")
    assert said is not None, "merged"
    assert re.match(r"exit code [12]\n", said), said
    assert re.search(r"error\[CV-[RPSTE]\d+\]: ", said), said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()
