"""`cuvee materialise`: a task of a package, or a weighted sum of tasks, as an ordinary model."""

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


@click.command("materialise")
@click.argument("package")
@click.option(
    "--task",
    "tasks",
    multiple=True,
    required=True,
    metavar="NAME[=WEIGHT]",
    help="A task; several with weights give their weighted sum.",
)
@click.option("--base", default=None, help="The base, where it is not where the package says.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, help="Output folder, or FILE.safetensors."
)
@click.option("--dtype", default=None, metavar="DTYPE", help="Type of the output (that of the base).")
@click.option("--shard-size", default="5GB", metavar="SIZE", help="Largest weight file.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output, atomically.")
@click.option("--no-resume", is_flag=True, help="Discard what an interrupted run left.")
@click.option("--offline", is_flag=True, help="Never touch the network.")
@run_options
@paranoid_option
@output_options
def command(package: str, tasks: tuple[str, ...], base: str | None, out: Path, **given: Any) -> int:
    """Write a task of a package as an ordinary model.

    \b
    Examples:
      cuvee materialise ./pack --task math -o ./math
      cuvee materialise ./pack --task math=0.5 --task code=0.5 -o ./both
    """
    from cuvee.api.blend import Blend
    from cuvee.api.package import task_reference
    from cuvee.cli.running import Manner, merge_into
    from cuvee.recipe.load import parse_recipe
    from cuvee.recipe.quick import quick_text

    shard_bytes(given["shard_size"])
    output = {"dtype": given["dtype"], "shard_size": given["shard_size"]}
    text = quick_text("passthrough", [task_reference(package, tasks, base)], None, [], output)
    keys = ("overwrite", "as_json", "quiet")
    manner = Manner(resume=not given["no_resume"], **{key: given[key] for key in keys})
    blend = Blend(parse_recipe(text), offline=is_offline(given["offline"]))
    return merge_into(blend, out, run_choices(given), manner)
