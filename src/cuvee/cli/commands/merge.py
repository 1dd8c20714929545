"""`cuvee merge`: run a recipe, or exactly a saved plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cuvee.cli.options import (
    EXISTING,
    cluster_choices,
    cluster_options,
    is_offline,
    output_options,
    paranoid_option,
    plan_choices,
    plan_options,
    reading_of,
    reading_options,
    run_choices,
    run_options,
)
from cuvee.errors import UsageError

if TYPE_CHECKING:
    from cuvee.engine.options import RunOptions


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
@click.option(
    "--catalog/--no-catalog",
    default=None,
    help="Catalogue what is read, for later merges. / Read everything, whatever a catalogue says.",
)
@click.option("--lineage", is_flag=True, help="Record what each tensor is made from, for a later `--from`.")
@reading_options
@plan_options
@run_options
@paranoid_option
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
    reading, cluster = reading_of(given), cluster_choices(given)
    _one_way({"a budget": reading.is_within, "`--catalog`": given["catalog"] is True})
    _one_way({"a cluster": cluster is not None, "`--catalog`": given["catalog"] is True})
    _one_way({"a budget": reading.is_within, "`--no-catalog`": given["catalog"] is False})
    options = recorded(run_choices(given), given["catalog"])
    if given["dry_run"]:
        return show(
            blend,
            as_json=given["as_json"],
            quiet=given["quiet"],
            target=out,
            options=options,
            reading=reading,
        )
    manner = Manner(
        overwrite=given["overwrite"],
        resume=not given["no_resume"],
        as_json=given["as_json"],
        quiet=given["quiet"],
        strict=given["strict"],
    )
    return merge_into(blend, out, options, manner, cluster, reading)


def recorded(options: RunOptions, catalog: bool | None) -> RunOptions:
    """The options with what `--catalog` or `--no-catalog` says; as they are where neither was given."""
    if catalog is None:
        return options
    return replace(options, catalogue=catalog, recording="on" if catalog else "off")


def _one_way(asked: Mapping[str, bool]) -> None:
    """UsageError where options ask for several ways of running, of which only one would be taken."""
    ways = [name for name, is_asked in asked.items() if is_asked]
    if len(ways) > 1:
        raise UsageError(
            "CV-U001",
            f"a merge cannot be made with {' and '.join(ways)} at once",
            hint="a budget: `--read-budget`, `--max-deviation`, chosen by a catalogue; a cluster: `--engine`",
        )
