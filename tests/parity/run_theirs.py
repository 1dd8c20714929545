"""Run every recipe with MergeKit: `python run_theirs.py INPUTS OUT [NAME ...]`, in an environment that has it.

One process for all of them, since importing it takes seconds. Where MergeKit takes models from a set (so that its
donor of config and tokenizer depends on the hash seed) they are given in the order of the recipe.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import torch
from click.testing import CliRunner
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.scripts import merge_raw_pytorch, multimerge, run_yaml
from recipe_files import RecipeFile, recipe_files

COMMANDS = {"yaml": run_yaml.main, "pytorch": merge_raw_pytorch.main, "multi": multimerge.main}


def in_recipe_order(self: MergeConfiguration) -> list[Any]:
    """The models of a recipe, the base first."""
    slices = [s for module in (self.modules or {}).values() for s in module.slices or []] + (
        self.slices or []
    )
    parts = [*(self.models or []), *(m for x in (self.modules or {}).values() for m in x.models or [])]
    parts += [source for s in slices for source in s.sources]
    return list(dict.fromkeys([*([self.base_model] if self.base_model else []), *(p.model for p in parts)]))


def run(recipe: RecipeFile, out: Path) -> str | None:
    """The message of what went wrong, or None."""
    LoaderCache.loaders.clear()  # it keeps adapters merged for an earlier recipe, in whatever type that asked for
    arguments = [str(recipe.path.resolve()), *([] if recipe.command == "multi" else [str(out)])]
    if recipe.command == "multi":
        arguments += ["--out-path", str(out), "-I", f"{out}.parts"]
    arguments += ["--lora-merge-cache", f"{out}.lora", "--random-seed", "1", "--quiet", *recipe.theirs]
    result = CliRunner().invoke(COMMANDS[recipe.command], arguments)
    if result.exception is None:
        return None
    trace = "".join(traceback.format_exception(*result.exc_info)) if result.exc_info else result.output
    return trace + result.output


def main(inputs: Path, out: Path, only: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    MergeConfiguration.referenced_models = in_recipe_order
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
