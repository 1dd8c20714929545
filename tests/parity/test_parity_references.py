"""Recipes against the answers MergeKit 0.1.5 gave to them, stored in `references/` (see store_references.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import write_bare, write_stored
from outputs import differences, tensors_of
from recipe_files import HERE, RecipeFile, recipe_files
from run_ours import run

STORED = {path.stem: path for path in sorted((HERE / "references").glob("*.safetensors"))}
RECIPES = [recipe for recipe in recipe_files() if recipe.name in STORED]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    write_stored(root)
    write_bare(root)
    return root


def test_every_reference_has_its_recipe() -> None:
    assert {recipe.name for recipe in RECIPES} == STORED.keys()
    assert len(RECIPES) >= 25


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_agrees_with_mergekit(
    recipe: RecipeFile, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(inputs)
    problem = run(recipe, tmp_path / "out")
    assert problem is None, problem
    found, _ = differences(tensors_of(tmp_path / "out"), tensors_of(STORED[recipe.name]))
    assert not found
