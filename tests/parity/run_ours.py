"""Run every recipe with Cuvée: `python run_ours.py INPUTS OUT [NAME ...]`. One process for all of them."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
from pathlib import Path

from recipe_files import RecipeFile, recipe_files

from cuvee.cli.app import app
from cuvee.cli.failure import run_guarded


def run(recipe: RecipeFile, out: Path) -> str | None:
    """What was said where the exit code is not 0, or None."""
    path = str(recipe.path.resolve())
    if recipe.command == "yaml":
        arguments = ["mergekit-yaml", path, str(out), "--random-seed", "1", "--offline", *recipe.ours]
    else:
        arguments = ["merge", path, "-o", str(out), "--offline", *recipe.ours]
    shutil.rmtree(out, ignore_errors=True)
    said = io.StringIO()
    before, sys.argv = sys.argv, ["cuvee", *arguments]
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            code = run_guarded(app)
    finally:
        sys.argv = before
    return f"exit code {code}\n{said.getvalue()}" if code else None


def main(inputs: Path, out: Path, only: tuple[str, ...]) -> None:
    out = out.resolve()
    recipes = recipe_files(only)
    os.chdir(inputs)
    for recipe in recipes:
        problem = run(recipe, out / recipe.name)
        (out / f"{recipe.name}.error").unlink(missing_ok=True)
        if problem:
            (out / f"{recipe.name}.error").write_text(problem)
        sys.stdout.write(f"{'refused' if problem else 'merged'} {recipe.name}\n")


if __name__ == "__main__":
    Path(sys.argv[2]).mkdir(parents=True, exist_ok=True)
    main(Path(sys.argv[1]), Path(sys.argv[2]), tuple(sys.argv[3:]))
