"""`cuvee convert`: another format, dtype or shard size; a recipe like any other."""

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

# What is said of a run and means nothing where one worker writes one file and stops at what is not finite.
_NOT_FOR_GGUF = ("shard_size", "non_finite", "device", "threads", "memory")


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
@click.option(
    "--like",
    default=None,
    metavar="PIPELINE",
    help="For a diffusion model in one file: the diffusers folder that gives configurations and tokenizers.",
)
@click.option("--shard-size", default="5GB", metavar="SIZE", help="Largest weight file.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output, atomically.")
@click.option("--no-resume", is_flag=True, help="Discard what an interrupted run left.")
@click.option("--offline", is_flag=True, help="Never touch the network.")
@run_options
@paranoid_option
@output_options
def command(
    source: str, out: Path, dtype: str | None, like: str | None, shard_size: str, **given: Any
) -> int:
    """Change the format, dtype or shard size of a checkpoint (adapters in SOURCE are applied).

    \b
    Examples:
      cuvee convert ./model.gguf -o ./model --dtype bfloat16
      cuvee convert ./model -o model.gguf --dtype q8_0
      cuvee convert ./pipeline -o sdxl.safetensors
      cuvee convert sdxl.safetensors --like ./pipeline -o ./folder
    """
    from cuvee.api.blend import Blend
    from cuvee.cli.running import Manner, merge_into
    from cuvee.recipe.load import parse_recipe
    from cuvee.recipe.quick import quick_text

    if out.suffix == ".gguf":
        return _to_gguf(source, out, dtype or "f16", given)
    shard_bytes(shard_size)  # said of the option, not of the recipe made of it
    output = {"dtype": _stored(dtype), "shard_size": shard_size, "like": like, "form": _form(out, like)}
    text = quick_text("passthrough", [source], None, [], output)
    recipe = parse_recipe(text)
    options = run_choices(given)
    keys = ("overwrite", "as_json", "quiet")
    manner = Manner(resume=not given["no_resume"], **{key: given[key] for key in keys})
    return merge_into(Blend(recipe, offline=is_offline(given["offline"])), out, options, manner)


def _form(out: Path, like: str | None) -> str | None:
    """One file where the output is one: pipelines then get their original names."""
    return "single_file" if out.suffix == ".safetensors" and like is None else None


def _stored(dtype: str | None) -> str | None:
    """The type's own name; UsageError when it is not a float type."""
    from cuvee.core.dtypes import parse_dtype
    from cuvee.errors import UsageError

    found = parse_dtype(dtype) if dtype else None
    if dtype and (found is None or not found.is_float):
        raise UsageError("CV-U011", f"`--dtype` must name a float type, got `{dtype}`")
    return found.name if found else None


def _to_gguf(source: str, out: Path, dtype: str, given: dict[str, Any]) -> int:
    """Write a GGUF file; the exit code."""
    from cuvee.api.gguf_out import convert_to_gguf
    from cuvee.cli.render import notes, print_json, stdout

    _refuse_without_effect(click.get_current_context())
    saved = convert_to_gguf(
        source,
        out,
        dtype,
        overwrite=given["overwrite"],
        offline=is_offline(given["offline"]),
        resume=not given["no_resume"],
        paranoid=given["paranoid"],
    )
    if given["as_json"]:
        told = [note.as_dict() for note in saved.notes]
        print_json({"schema": "cuvee.convert/1", "output": str(out), "diagnostics": told})
        return 0
    notes(saved.notes, given["quiet"])
    stdout(str(out))
    return 0


def _refuse_without_effect(context: click.Context) -> None:
    """UsageError for options that were given and mean nothing for a GGUF file."""
    from cuvee.errors import UsageError

    source = click.core.ParameterSource.COMMANDLINE
    given = [o for o in _NOT_FOR_GGUF if context.get_parameter_source(o) is source]
    if given:
        shown = ", ".join(f"`--{name.replace('_', '-')}`" for name in given)
        raise UsageError(
            "CV-U102",
            f"{shown} has no effect on a GGUF file, which is one file written by one worker",
            hint="leave it out, or write a folder of safetensors files",
        )
