"""`cuvee package`: several models as one artefact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cuvee.cli.options import (
    is_offline,
    output_options,
    paranoid_option,
    run_choices,
    run_options,
    shard_bytes,
)


@click.command("package")
@click.argument("method")
@click.argument("models", nargs=-1, required=True)
@click.option("--base", required=True, help="The common ancestor of the models.")
@click.option(
    "-p",
    "--param",
    "parameters",
    multiple=True,
    metavar="NAME=VALUE",
    help="A parameter; a list is one value for each model.",
)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder of the package.")
@click.option("--include-base", is_flag=True, help="Put the base into the package too.")
@click.option("--dtype", default=None, metavar="DTYPE", help="Type of what is stored beside masks and signs.")
@click.option("--shard-size", default="5GB", metavar="SIZE", help="Largest weight file.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output, atomically.")
@click.option("--no-resume", is_flag=True, help="Discard what an interrupted run left.")
@click.option("--dry-run", is_flag=True, help="Show recipe and plan, and stop.")
@click.option("--offline", is_flag=True, help="Never touch the network.")
@run_options
@paranoid_option
@output_options
def command(method: str, models: tuple[str, ...], base: str, out: Path, **given: Any) -> int:
    """Write several models as one package, from which each comes back as `PACKAGE#TASK`.

    METHOD is tall_masks, emr, tsv_c, reversible_merging or onebit.

    \b
    Examples:
      cuvee package emr ./math ./code ./chat --base ./base -o ./pack
      cuvee package tall_masks ./math ./code --base ./base -p strength=0.3 -o ./pack --include-base
      cuvee materialise ./pack --task math -o ./math-again
    """
    from cuvee.api.blend import Blend
    from cuvee.cli.commands.plan import show
    from cuvee.cli.render import stderr
    from cuvee.cli.running import Manner, merge_into
    from cuvee.recipe.load import parse_recipe
    from cuvee.recipe.quick import quick_text

    shard_bytes(given["shard_size"])
    output = {
        "kind": "package",
        "include_base": given["include_base"] or None,
        "dtype": given["dtype"],
        "shard_size": given["shard_size"],
    }
    text = quick_text(method, list(models), base, list(given["parameters"]), output)
    if not given["quiet"] and not given["as_json"]:
        stderr(text)
    blend = Blend(parse_recipe(text), offline=is_offline(given["offline"]))
    run = run_choices(given)
    if given["dry_run"]:
        return show(blend, as_json=given["as_json"], quiet=given["quiet"], target=out, options=run)
    keys = ("overwrite", "as_json", "quiet")
    manner = Manner(resume=not given["no_resume"], **{key: given[key] for key in keys})
    return merge_into(blend, out, run, manner)
