"""`cuvee mergekit-yaml`: the drop-in for MergeKit's command; every flag is taken, those without effect say so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from cuvee.cli.options import EXISTING, device_of, is_offline, output_options

F = TypeVar("F", bound=Callable[..., Any])

# flag → why it has no effect here
_WITHOUT_EFFECT = {
    "transformers_cache": "the hub's own cache is used; set HF_HOME to move it",
    "lora_merge_cache": "adapters are applied on the fly, no merged copy is written",
    "lora_merge_dtype": "adapters are applied in float32",
    "low_cpu_memory": "memory is bounded anyway; see `cuvee merge --memory`",
    "clone_tensors": "tensors are never shared in the output",
    "trust_remote_code": "no code of a model is ever run",
    "lazy_unpickle": "pickles are never loaded, only parsed",
    "read_to_gpu": "blocks go to the device as they are needed",
    "multi_gpu": "one device is used",
    "async_write": "writes are positional and need no queue",
    "write_threads": "each worker writes what it computed",
}


def _sized(ctx: click.Context, parameter: Any, value: str | None) -> int | None:
    """MergeKit's sizes: a number with k, m or b for thousands, millions, billions (of bytes, in effect)."""
    if value is None:
        return None
    units = {"k": 10**3, "m": 10**6, "b": 10**9}
    text = value.strip().lower()
    digits, unit = (text[:-1], text[-1]) if text and text[-1] in units else (text, "")
    try:
        return int(digits) * units.get(unit, 1)
    except ValueError:
        raise click.BadParameter(f"`{value}` is not a size such as 5B, 500M or 1000000") from None


def _switch(name: str, text: str, default: bool = False) -> Callable[[F], F]:
    return click.option(f"--{name}/--no-{name}", default=default, help=text)


@click.command("mergekit-yaml")
@click.argument("config_file", type=EXISTING)
@click.argument("out_path", type=click.Path(path_type=Path))
@_switch("allow-crimes", "Mix architectures.")
@_switch("unsafe-truncate-embeddings", "Cut vocabularies to their common rows; the config says so.")
@click.option("--transformers-cache", default=None, help="No effect.")
@click.option("--lora-merge-cache", default=None, help="No effect.")
@click.option("--lora-merge-dtype", default=None, help="No effect.")
@_switch("cuda", "Compute on the GPU.")
@click.option("--device", default=None, help="Device of the arithmetic.")
@_switch("low-cpu-memory", "No effect.")
@click.option(
    "--out-shard-size", callback=_sized, default="5B", help="Largest weight file in bytes: 5B, 500M."
)
@_switch("copy-tokenizer", "Write the tokenizer.", True)
@_switch("clone-tensors", "No effect.")
@_switch("trust-remote-code", "No effect.")
@click.option("--random-seed", type=int, default=None, help="Seed of random masks.")
@_switch("lazy-unpickle", "No effect.")
@_switch("write-model-card", "Write README.md.", True)
@_switch("safe-serialization", "Must stay on: weights are always written as safetensors.", True)
@_switch("read-to-gpu", "No effect.")
@_switch("multi-gpu", "No effect.")
@click.option("-j", "--num-threads", type=click.IntRange(1), default=None, help="Worker threads.")
@click.option("--gpu-rich", is_flag=True, help="The same as --cuda here.")
@_switch("async-write", "No effect.")
@click.option("--write-threads", type=int, default=1, help="No effect.")
@click.option("--no-quiet", "loud", is_flag=True, hidden=True)
@click.option("--verbosity", "verbosity", count=True, hidden=True)
@click.option("--overwrite", is_flag=True, help="Replace an existing output (MergeKit always does).")
@click.option("--no-resume", is_flag=True, help="Discard what an interrupted run left.")
@click.option("--offline", is_flag=True, help="Never touch the network.")
@output_options
@click.pass_context
def command(ctx: click.Context, /, config_file: Path, out_path: Path, **given: Any) -> int:
    """Run a MergeKit configuration with MergeKit's flags.

    \b
    Examples:
      cuvee mergekit-yaml config.yml ./merged
      cuvee mergekit-yaml config.yml ./merged --out-shard-size 1B --no-write-model-card
    """
    from cuvee.api.blend import Blend
    from cuvee.cli.render import stderr
    from cuvee.cli.running import Manner, merge_into
    from cuvee.engine.options import RunOptions
    from cuvee.errors import UsageError
    from cuvee.plan.build import PlanOptions
    from cuvee.recipe.load import load_recipe
    from cuvee.recipe.override import adjusted

    if not given["safe_serialization"]:
        raise UsageError(
            "CV-U007", "weights are always written as safetensors; leave `--no-safe-serialization` out"
        )
    if not given["quiet"]:
        for flag, reason in _WITHOUT_EFFECT.items():
            if ctx.get_parameter_source(flag) is click.core.ParameterSource.COMMANDLINE:
                stderr(f"note: `--{flag.replace('_', '-')}` has no effect: {reason}")
    changes = {
        "seed": given["random_seed"],
        "unsafe_truncate_embeddings": given["unsafe_truncate_embeddings"],
        "shard_size": given["out_shard_size"],
    }
    recipe = adjusted(load_recipe(config_file), changes)
    output = replace(recipe.output, card=given["write_model_card"], tokenizer=given["copy_tokenizer"])
    recipe = replace(recipe, output=output)
    wanted = "cuda" if given["cuda"] or given["gpu_rich"] else given["device"] or "cpu"
    options = RunOptions.from_settings(threads=given["num_threads"], device=device_of(wanted))
    plan_options = PlanOptions(allow_mixed=given["allow_crimes"])
    # MergeKit resolves relative paths against the working folder, not the recipe's.
    blend = Blend(recipe, Path(), is_offline(given["offline"]), plan_options, elsewhere=True)
    manner = Manner(
        overwrite=given["overwrite"],
        resume=not given["no_resume"],
        as_json=given["as_json"],
        quiet=given["quiet"],
    )
    return merge_into(blend, out_path, options, manner)
