"""`cuvee import mergekit`: what a MergeKit file means here, and every difference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cuvee.cli.options import EXISTING, output_options


@click.group("import")
def command() -> None:
    """Translate a recipe of another tool.

    \b
    Examples:
      cuvee import mergekit config.yml
      cuvee import mergekit config.yml -o recipe.cuvee.yaml
    """


@command.command("mergekit")
@click.argument("file", type=EXISTING)
@click.option("-o", "--out", type=click.Path(path_type=Path), default=None, help="Write Cuvée's recipe here.")
@output_options
def mergekit(file: Path, out: Path | None, as_json: bool, quiet: bool, **given: Any) -> int:
    """Translate a MergeKit file; reports every difference in meaning.

    \b
    Examples:
      cuvee import mergekit config.yml
      cuvee import mergekit config.yml -o recipe.cuvee.yaml
    """
    from cuvee.cli.render import notes, print_json, stderr, stdout
    from cuvee.core.disk import write_file
    from cuvee.recipe.export import native_text
    from cuvee.recipe.load import load_recipe

    recipe = load_recipe(file)
    text, more = native_text(recipe)
    every = (*recipe.notes, *more)
    if out is not None:
        write_file(out, text.encode())
    if as_json:
        print_json({"schema": "cuvee.import/1", "recipe": text, "diagnostics": [d.as_dict() for d in every]})
        return 0
    if out is None:
        stdout(text)
    else:
        stderr(f"wrote {out}")
    notes(every, quiet)
    return 0
