"""`cuvee quick`: a merge without a recipe file; prints the recipe it stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cuvee.cli.options import (
    is_offline,
    output_options,
    paranoid_option,
    plan_choices,
    plan_options,
    run_choices,
    run_options,
)


@click.command("quick")
@click.argument("method")
@click.argument("models", nargs=-1, required=True)
@click.option("--base", default=None, help="The common ancestor, where the method needs one.")
@click.option(
    "-p",
    "--param",
    "parameters",
    multiple=True,
    metavar="NAME=VALUE",
    help="A parameter; a list is one value for each model.",
)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, help="Output folder, or FILE.safetensors."
)
@click.option("--overwrite", is_flag=True, help="Replace an existing output, atomically.")
@click.option("--no-resume", is_flag=True, help="Discard what an interrupted run left.")
@click.option("--dry-run", is_flag=True, help="Show recipe and plan, and stop.")
@click.option("--strict", is_flag=True, help="Exit with 4 when there were warnings.")
@plan_options
@run_options
@paranoid_option
@output_options
def command(
    method: str,
    models: tuple[str, ...],
    base: str | None,
    parameters: tuple[str, ...],
    out: Path,
    **given: Any,
) -> int:
    """Merge models without writing a recipe; the equivalent recipe is printed and kept with the output.

    \b
    Examples:
      cuvee quick linear ./math ./code -o ./blend
      cuvee quick ties ./math ./code --base ./base -p density=0.3 -p weight=[0.6,0.4] -o ./blend
    """
    from cuvee.api.blend import Blend
    from cuvee.cli.commands.plan import show
    from cuvee.cli.render import stderr
    from cuvee.cli.running import Manner, merge_into
    from cuvee.recipe.load import parse_recipe
    from cuvee.recipe.override import adjusted
    from cuvee.recipe.quick import quick_text

    text = quick_text(method, list(models), base, list(parameters))
    if not given["quiet"] and not given["as_json"]:
        stderr(text)
    recipe = adjusted(parse_recipe(text), given)
    options = plan_choices(given["rules_off"], given["allow_crimes"])
    blend = Blend(recipe, Path(), is_offline(given["offline"]), options)
    run = run_choices(given)
    if given["dry_run"]:
        return show(blend, as_json=given["as_json"], quiet=given["quiet"], target=out, options=run)
    keys = ("overwrite", "as_json", "quiet", "strict")
    return merge_into(blend, out, run, Manner(resume=not given["no_resume"], **{k: given[k] for k in keys}))
