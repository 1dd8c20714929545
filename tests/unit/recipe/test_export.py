"""Translations that would change a merge are refused, not written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

LINEAR = (
    "merge_method: linear\nbase_model: ./base\nmodels:\n"
    "  - {model: ./math, parameters: {weight: 0.5}}\n  - {model: ./code, parameters: {weight: 0.5}}\n"
)


def test_a_model_without_a_demanded_value_is_refused_like_the_recipe_itself(tmp_path: Path, cli: Any) -> None:
    recipe = tmp_path / "r.yml"
    recipe.write_text(LINEAR)
    outcome = cli("import", "mergekit", str(recipe), "-o", str(tmp_path / "out.yaml"))
    assert outcome.code == 2
    assert "CV-R113" in outcome.err
    assert "`weight` of `./base`" in outcome.err
    assert not (tmp_path / "out.yaml").exists()


def test_a_value_for_all_covers_the_base_too(tmp_path: Path, cli: Any) -> None:
    recipe = tmp_path / "r.yml"
    recipe.write_text(LINEAR + "parameters: {weight: 1.0}\n")
    outcome = cli("import", "mergekit", str(recipe))
    assert outcome.code == 0
    assert "./base" in outcome.out


def test_a_base_apart_needs_no_value(tmp_path: Path, cli: Any) -> None:
    recipe = tmp_path / "r.yml"
    recipe.write_text(LINEAR.replace("linear", "task_arithmetic"))
    assert cli("import", "mergekit", str(recipe)).code == 0
