"""`cuvee catalog`: one look at base and experts that merges and budgets are made easier by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cuvee.cli.options import is_offline, output_options


@click.command("catalog")
@click.argument("experts", nargs=-1, required=True)
@click.option("--base", required=True, metavar="BASE", help="The model they were trained from.")
@click.option("--offline", is_flag=True, help="Never touch the network.")
@output_options
def command(experts: tuple[str, ...], base: str, offline: bool, **given: Any) -> int:
    """Read BASE and EXPERTS and keep, for every block, what changed and by how much.

    Every merge of these models reads less with it, without changing a byte; `--read-budget` and `--max-deviation`
    choose by it. It holds as long as no file changes, budgets for these experts together.

    \b
    Examples:
      cuvee catalog ./math ./code --base ./base
      cuvee merge recipe.yaml -o ./blend --read-budget 50%
    """
    from cuvee.api.budget import make_catalogue
    from cuvee.cli.render import print_json, stdout

    found = make_catalogue(list(experts), base, anchor=Path(), offline=is_offline(offline))
    if given["as_json"]:
        print_json({"schema": "cuvee.catalog/1", **found})
    elif not given["quiet"]:
        for row in found["experts"]:
            stdout(f"{row['expert']}  {row['identical']} of {row['blocks']} blocks equal the base")
    return 0
