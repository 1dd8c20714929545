"""`cuvee reproduce`: run an output's recipe again and compare every tensor digest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cuvee.cli.options import EXISTING, existing_output, is_offline, output_options, run_choices, run_options


@click.command("reproduce")
@click.argument("output", type=EXISTING)
@click.option(
    "--from",
    "anchor",
    type=EXISTING,
    default=None,
    metavar="FOLDER",
    help="Folder the recipe's paths are relative to.",
)
@click.option("--offline", is_flag=True, help="Never touch the network.")
@run_options
@output_options
def command(output: Path, anchor: Path | None, **given: Any) -> int:
    """Run the recipe kept in an output again and compare with the manifest. Exit code 3 on a difference.

    \b
    Examples:
      cuvee reproduce ./blend
      cuvee reproduce ./blend --from ~/models
    """
    from cuvee.api.again import again
    from cuvee.cli.progress import listener
    from cuvee.cli.render import grouped_texts, print_json, stderr, stdout

    existing_output(output)
    options = run_choices(given)
    talk = listener(as_json=False, quiet=given["quiet"] or given["as_json"])
    found = again(output, anchor or Path(), options, offline=is_offline(given["offline"]), listener=talk)
    if given["as_json"]:
        print_json(
            {"schema": "cuvee.reproduce/1", "ok": not found, "diagnostics": [d.as_dict() for d in found]}
        )
        return 3 if found else 0
    for text in grouped_texts(found):
        stderr(text)
    if not found and not given["quiet"]:
        stdout(f"{output}: made again, every tensor has the same bytes")
    return 3 if found else 0
