"""`cuvee convert`: another format, dtype or shard size; a recipe like any other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from cuvee.cli.options import is_offline, output_options, run_choices, run_options, shard_bytes


@click.command("convert")
@click.argument("source")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder, FILE.safetensors or FILE.gguf.",
)
@click.option(
    "--dtype",
    default=None,
    metavar="DTYPE",
    help="float32, float16, bfloat16; for GGUF f16, bf16, f32 or q8_0.",
)
@click.option("--shard-size", default="5GB", metavar="SIZE", help="Largest weight file.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output, atomically.")
@click.option("--no-resume", is_flag=True, help="Discard what an interrupted run left.")
@click.option("--offline", is_flag=True, help="Never touch the network.")
@run_options
@output_options
def command(source: str, out: Path, dtype: str | None, shard_size: str, **given: Any) -> int:
    """Change the format, dtype or shard size of a checkpoint (adapters in SOURCE are applied).

    \b
    Examples:
      cuvee convert ./model.gguf -o ./model --dtype bfloat16
      cuvee convert ./model -o model.gguf --dtype q8_0
    """
    from cuvee.api.blend import Blend
    from cuvee.api.python_recipe import recipe_from
    from cuvee.cli.running import Manner, merge_into

    if out.suffix == ".gguf":
        from cuvee.api.gguf_out import convert_to_gguf
        from cuvee.cli.render import notes, print_json, stdout

        saved = convert_to_gguf(
            source,
            out,
            dtype or "f16",
            overwrite=given["overwrite"],
            offline=is_offline(given["offline"]),
            resume=not given["no_resume"],
        )
        if given["as_json"]:
            told = [note.as_dict() for note in saved.notes]
            print_json({"schema": "cuvee.convert/1", "output": str(out), "diagnostics": told})
            return 0
        notes(saved.notes, given["quiet"])
        stdout(str(out))
        return 0
    recipe = recipe_from([source], None, "passthrough", {}, {"out_dtype": dtype})
    recipe = replace(recipe, output=replace(recipe.output, shard_bytes=shard_bytes(shard_size)))
    options = run_choices(given)
    manner = Manner(
        overwrite=given["overwrite"],
        resume=not given["no_resume"],
        as_json=given["as_json"],
        quiet=given["quiet"],
    )
    return merge_into(Blend(recipe, offline=is_offline(given["offline"])), out, options, manner)
