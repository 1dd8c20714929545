"""`cuvee merge`: run a recipe, or exactly a saved plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from cuvee.cli.options import (
    EXISTING,
    cluster_choices,
    cluster_options,
    is_offline,
    output_options,
    plan_choices,
    plan_options,
    run_choices,
    run_options,
)


@click.command("merge")
@click.argument("recipe", type=EXISTING)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, help="Output folder, or FILE.safetensors."
)
@click.option("--overwrite", is_flag=True, help="Replace an existing output, atomically.")
@click.option("--no-resume", is_flag=True, help="Discard what an interrupted run left.")
@click.option("--dry-run", is_flag=True, help="Show the plan and stop.")
@click.option("--profile", is_flag=True, help="End with where the time went, by method and tensor.")
@click.option("--strict", is_flag=True, help="Exit with 4 when there were warnings.")
@click.option(
    "--locked", type=EXISTING, default=None, metavar="LOCK", help="Fail unless the sources are as locked."
)
@plan_options
@run_options
@cluster_options
@output_options
def command(recipe: Path, out: Path, **given: Any) -> int:
    """Run a recipe (Cuvée's or MergeKit's YAML) or a saved plan.

    \b
    Examples:
      cuvee merge recipe.yaml -o ./blend
      cuvee merge recipe.yaml -o ./blend --memory 512MiB --overwrite

    An interrupted run is resumed by the same command. Nothing appears at OUT before it is complete.
    """
    from cuvee.cli.commands.plan import show
    from cuvee.cli.running import Manner, merge_into
    from cuvee.cli.saved import blend_of, check_lock
    from cuvee.recipe.override import adjusted

    blend = blend_of(
        recipe, is_offline(given["offline"]), plan_choices(given["rules_off"], given["allow_crimes"])
    )
    blend = replace(blend, recipe=adjusted(blend.recipe, given))
    if given["locked"]:
        check_lock(blend, given["locked"])
    if given["dry_run"]:
        return show(blend, as_json=given["as_json"], quiet=given["quiet"], target=out)
    options = run_choices(given)
    manner = Manner(
        overwrite=given["overwrite"],
        resume=not given["no_resume"],
        as_json=given["as_json"],
        quiet=given["quiet"],
        strict=given["strict"],
    )
    return merge_into(blend, out, options, manner, cluster_choices(given))
