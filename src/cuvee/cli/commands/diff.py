"""`cuvee diff`: two checkpoints, tensor by tensor."""

from __future__ import annotations

from typing import Any

import click

from cuvee.cli.options import output_options


@click.command("diff")
@click.argument("a")
@click.argument("b")
@click.option("--structure", is_flag=True, help="Names, shapes and dtypes only; reads no weight.")
@click.option("--all", "everything", is_flag=True, help="List equal tensors too.")
@output_options
def command(
    a: str, b: str, structure: bool, everything: bool, as_json: bool, quiet: bool, **given: Any
) -> int:
    """Compare two checkpoints: norms, cosines and largest change of every tensor. Exit code 3 when they differ.

    \b
    Examples:
      cuvee diff ./base ./blend
      cuvee diff ./a ./b --structure --json
    """
    from cuvee.api.compare import compare
    from cuvee.cli.render import print_json, stdout
    from cuvee.cli.shown import diff_text

    found = compare(a, b, values=not structure)
    if as_json:
        print_json(found.as_json())
    elif not quiet:
        stdout(diff_text(found, everything=everything))
    return 0 if found.same else 3
