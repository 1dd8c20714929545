"""`cuvee schema`: the JSON Schema of a recipe language, for editors."""

from __future__ import annotations

from typing import Any

import click

from cuvee.cli.options import output_options


@click.command("schema")
@click.argument("language", type=click.Choice(["recipe", "mergekit"]), default="recipe")
@output_options
def command(language: str, **given: Any) -> int:
    """Print the JSON Schema of Cuvée's recipes or of MergeKit's.

    \b
    Examples:
      cuvee schema > recipe.schema.json
      cuvee schema mergekit
    """
    from cuvee.cli.render import print_json
    from cuvee.recipe.json_schema import mergekit_schema, native_schema

    print_json(native_schema() if language == "recipe" else mergekit_schema())
    return 0
