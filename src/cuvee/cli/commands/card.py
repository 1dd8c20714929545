"""`cuvee card`: the model card of an output, written anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cuvee.cli.options import EXISTING, existing_output, is_offline, output_options


@click.command("card")
@click.argument("recipe", type=EXISTING, metavar="RECIPE|OUTPUT")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), default=None, help="Write here instead of printing."
)
@click.option("--name", default=None, help="The model's name (default: the file's or folder's).")
@click.option("--offline", is_flag=True, help="Never touch the network.")
@output_options
def command(
    recipe: Path, out: Path | None, name: str | None, offline: bool, as_json: bool, **given: Any
) -> int:
    """Write the model card of a recipe's output, or of an output that is there, with sources, method and citation.

    \b
    Examples:
      cuvee card recipe.yaml --name my-blend -o README.md
      cuvee card ./blend
    """
    from cuvee.api.card import card_of_output, card_text
    from cuvee.cli.render import print_json, stdout
    from cuvee.cli.saved import blend_of
    from cuvee.core.disk import write_file
    from cuvee.plan.build import PlanOptions

    existing_output(recipe)
    name = name or recipe.resolve().name.split(".")[0]
    if recipe.is_dir() or recipe.suffix == ".safetensors":
        text = card_of_output(recipe, name)
    else:
        plan = blend_of(recipe, is_offline(offline), PlanOptions()).build()
        plan.close()
        text = card_text(plan, name)
    if out is not None:
        write_file(out, text.encode())
    if as_json:
        print_json({"schema": "cuvee.card/1", "card": text})
    elif out is None:
        stdout(text)
    return 0
