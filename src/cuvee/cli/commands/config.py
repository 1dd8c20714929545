"""`cuvee config`: every setting with its value and where it comes from."""

from __future__ import annotations

from typing import Any

import click

from cuvee.cli.options import output_options


@click.command("config")
@output_options
def command(as_json: bool, **given: Any) -> int:
    """Show the effective settings and their origin (flag > environment > default).

    \b
    Examples:
      cuvee config
      CUVEE_MEMORY=1GiB cuvee config --json
    """
    from cuvee.cli.render import print_json, stdout, table
    from cuvee.core import settings

    def shown(variable: settings.Variable) -> str:
        value = settings.get(variable.name)
        return "" if value is None else "set, not shown" if variable.secret else value

    rows = [[v.name, shown(v), settings.origin(v.name), v.effect] for v in settings.VARIABLES]
    if as_json:
        keys = ("name", "value", "origin", "effect")
        print_json({"schema": "cuvee.config/1", "settings": [dict(zip(keys, r, strict=True)) for r in rows]})
    else:
        stdout(table(["setting", "value", "origin", "effect"], rows))
    return 0
