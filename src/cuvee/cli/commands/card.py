"""`cuvee card`: the model card of an output, written anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cuvee.cli.options import EXISTING, is_offline, output_options


@click.command("card")
@click.argument("recipe", type=EXISTING)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), default=None, help="Write here instead of printing."
)
@click.option("--name", default=None, help="The model's name (default: the recipe's file name).")
@click.option("--offline", is_flag=True, help="Never touch the network.")
@output_options
def command(
    recipe: Path, out: Path | None, name: str | None, offline: bool, as_json: bool, **given: Any
) -> int:
    """Write the model card a recipe's output gets: front matter, sources, method, citation, how to reproduce.

    \b
    Examples:
      cuvee card recipe.yaml
      cuvee card recipe.yaml --name my-blend -o README.md
    """
    from cuvee.api.card import card_text
    from cuvee.cli.render import print_json, stdout
    from cuvee.cli.saved import blend_of
    from cuvee.core.disk import write_file
    from cuvee.plan.build import PlanOptions

    plan = blend_of(recipe, is_offline(offline), PlanOptions()).build()
    plan.close()
    text = card_text(plan, name or recipe.name.split(".")[0])
    if out is not None:
        write_file(out, text.encode())
    if as_json:
        print_json({"schema": "cuvee.card/1", "card": text})
    elif out is None:
        stdout(text)
    return 0
