"""`cuvee inspect`: what a checkpoint holds, from headers alone."""

from __future__ import annotations

from typing import Any

import click

from cuvee.cli.options import is_offline, output_options


@click.command("inspect")
@click.argument("source")
@click.option("--tensor", "pattern", metavar="GLOB", default=None, help="Only tensors whose names fit.")
@click.option(
    "--all", "everything", is_flag=True, help="List every tensor, not one line for each layer template."
)
@click.option("--offline", is_flag=True, help="Never touch the network.")
@output_options
def command(
    source: str, pattern: str | None, everything: bool, offline: bool, as_json: bool, **given: Any
) -> int:
    """Show tensors, dtypes, sizes, architecture, side files and oddities of a checkpoint; tasks and sizes of a package.

    \b
    Examples:
      cuvee inspect ./model
      cuvee inspect ./base+./lora --tensor '*.q_proj.weight'
    """
    import fnmatch

    from cuvee.api.checkpoint import Checkpoint
    from cuvee.api.package import package_summary
    from cuvee.cli.render import print_json, stdout
    from cuvee.cli.shown import inspect_text, package_text

    package = package_summary(source)
    if package is not None:
        if as_json:
            print_json(package)
        else:
            stdout(package_text(package))
        return 0
    with Checkpoint.opened(source, offline=is_offline(offline)) as checkpoint:
        summary = checkpoint.summary()
    if pattern:
        summary["tensors"] = [t for t in summary["tensors"] if fnmatch.fnmatchcase(t["name"], pattern)]
    if as_json:
        print_json(summary)
    else:
        stdout(inspect_text(summary, everything=everything or bool(pattern)))
    return 0
