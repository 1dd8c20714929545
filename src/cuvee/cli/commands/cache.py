"""`cuvee cache`: what cuvee keeps of its own; downloads stay in the hub's cache."""

from __future__ import annotations

from typing import Any

import click

from cuvee.cli.options import output_options


@click.command("cache")
@click.argument("action", type=click.Choice(["ls", "prune"]), default="ls")
@click.option(
    "--older-than",
    "days",
    type=float,
    default=0.0,
    metavar="DAYS",
    help="Prune only what was not used for so long.",
)
@output_options
def command(action: str, days: float, as_json: bool, quiet: bool, **given: Any) -> int:
    """List or prune cuvee's own cache.

    \b
    Examples:
      cuvee cache ls
      cuvee cache prune --older-than 30
    """
    from cuvee.cli.render import print_json, stdout, table
    from cuvee.core.cache import entries, folder, prune
    from cuvee.plan.explain import size

    found = prune(days) if action == "prune" else entries()
    total = sum(e.bytes for e in found)
    if as_json:
        listed = [{"name": e.name, "bytes": e.bytes, "age_days": e.age_days} for e in found]
        print_json({"schema": "cuvee.cache/1", "folder": str(folder()), "action": action, "entries": listed})
        return 0
    if found and not quiet:
        stdout(
            table(["entry", "size", "days"], [[e.name, size(e.bytes), f"{e.age_days:.1f}"] for e in found])
        )
    stdout(f"{folder()}: {'removed' if action == 'prune' else 'holds'} {len(found)} entries, {size(total)}")
    return 0
