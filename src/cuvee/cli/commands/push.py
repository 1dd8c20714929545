"""`cuvee push`: upload an output in one commit, after verifying it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cuvee.cli.options import EXISTING, existing_output, output_options


@click.command("push")
@click.argument("output", type=EXISTING)
@click.argument("repository", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Create the repository as private.")
@click.option("--revision", default=None, help="Branch to commit to (default: main).")
@click.option("--message", default="Upload a merge made with cuvee", help="Commit message.")
@click.option("--no-verify", is_flag=True, help="Do not check the output first.")
@output_options
def command(output: Path, repository: str, **given: Any) -> int:
    """Upload an output to the hub in one commit; it is verified first, and weights of an earlier model are removed.

    \b
    Examples:
      cuvee push ./blend me/blend
      cuvee push ./blend me/blend --private
    """
    from cuvee.api.push import push
    from cuvee.cli.render import print_json, stderr, stdout
    from cuvee.core.names import printable
    from cuvee.plan.explain import size

    existing_output(output)
    if not given["quiet"] and not given["as_json"]:
        files = output.rglob("*") if output.is_dir() else [output]
        stderr(f"uploading {size(sum(f.stat().st_size for f in files if f.is_file()))} to {repository}")
    made = push(
        output,
        repository,
        private=given["private"],
        revision=given["revision"],
        message=given["message"],
        verify=not given["no_verify"],
    )
    if given["as_json"]:
        print_json({"schema": "cuvee.push/1", "url": made.url, "removed": list(made.removed)})
        return 0
    if made.removed:
        shown = ", ".join(f"`{printable(name)}`" for name in made.removed)
        stderr(f"removed weights of an earlier model: {shown}")
    stdout(made.url)
    return 0
