"""A saved plan is known by what is in it, whatever its name."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

RECIPE = (
    "version: 1\nbase: ./base\nexperts: {math: ./math, code: ./code}\nmerge: {method: ties, density: 0.5}\n"
)


@pytest.mark.parametrize("name", ["p.json", "p.plan", "p.yaml", "p"])
def test_a_plan_of_any_name_is_merged(name: str, here: Path, cli: Any) -> None:
    (here / "r.yaml").write_text(RECIPE)
    assert cli("plan", "r.yaml", "--set", "density=0.25", "-o", name).code == 0
    outcome = cli("merge", name, "-o", "planned", "-q")
    assert outcome.code == 0, outcome.err
    assert cli("merge", "r.yaml", "--set", "density=0.25", "-o", "direct", "-q").code == 0
    weights = [(here / out / "model.safetensors").read_bytes() for out in ("planned", "direct")]
    assert weights[0] == weights[1]


def test_a_plan_of_another_name_is_held_to(here: Path, cli: Any) -> None:
    (here / "r.yaml").write_text(RECIPE)
    assert cli("plan", "r.yaml", "-o", "p.plan").code == 0
    (here / "math").unlink()
    (here / "math").symlink_to(here / "base")
    outcome = cli("merge", "p.plan", "-o", "out", "-q")
    assert outcome.code == 2
    assert "CV-P050" in outcome.err


@pytest.mark.parametrize(
    "text",
    ['{"schema": "cuvee.plan/1"}', '\n {"schema":"cuvee.plan/9", "recipe": {}}', '{"schema": "cuvee.plan/1"'],
)
def test_a_plan_that_is_not_whole_is_no_recipe(text: str, here: Path, cli: Any) -> None:
    (here / "p.plan").write_text(text)
    outcome = cli("check", "p.plan")
    assert outcome.code != 0
    assert "CV-R" not in outcome.err


def test_a_recipe_that_speaks_of_plans_is_a_recipe(here: Path, cli: Any) -> None:
    (here / "r").write_text(f'# {{"schema": "cuvee.plan/1"}}\n{RECIPE}')
    assert cli("check", "r").code == 0


def test_a_recipe_in_a_pipe_is_read_once(here: Path, cli: Any) -> None:
    os.mkfifo(here / "pipe")
    writer = threading.Thread(target=(here / "pipe").write_text, args=(RECIPE,), daemon=True)
    writer.start()
    assert cli("plan", "pipe").code == 0
    writer.join(5)
    assert not writer.is_alive()
