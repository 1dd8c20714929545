"""`cuvee plan`: everything a merge would do, before a weight is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cuvee.cli.options import (
    EXISTING,
    is_offline,
    output_options,
    plan_choices,
    plan_options,
    reading_of,
    reading_options,
)
from cuvee.errors import UsageError

if TYPE_CHECKING:
    from cuvee.api.ways import Reading
    from cuvee.engine.options import RunOptions


@click.command("plan")
@click.argument("recipe", type=EXISTING)
@click.option(
    "--tensor",
    "pattern",
    metavar="GLOB",
    default=None,
    help="Values of each matching tensor and where they came from.",
)
@click.option(
    "--graph", is_flag=True, help="The expression of the first tensor (or those of --tensor) as a tree."
)
@click.option("--dot", is_flag=True, help="With --graph: in Graphviz's language.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), default=None, help="Save the plan; `cuvee merge` runs it."
)
@reading_options
@plan_options
@output_options
def command(recipe: Path, pattern: str | None, graph: bool, dot: bool, out: Path | None, **given: Any) -> int:
    """Show what a recipe would read, compute and write.

    \b
    Examples:
      cuvee plan recipe.yaml
      cuvee plan recipe.yaml --tensor 'model.layers.7.*'
    """
    from cuvee.cli.saved import blend_of, save_plan
    from cuvee.recipe.override import adjusted

    reading = reading_of(given)
    if (reading.is_within or reading.is_again) and out is not None:
        raise UsageError(
            "CV-U001",
            "a saved plan holds no budget and no earlier output",
            hint="give it to `cuvee merge` instead, with the saved plan",
        )
    blend = blend_of(
        recipe, is_offline(given["offline"]), plan_choices(given["rules_off"], given["allow_crimes"])
    )
    blend = replace(blend, recipe=adjusted(blend.recipe, given))
    if out is not None:
        plan = blend.build()
        plan.close()
        keys = (
            "shard_size",
            "out_dtype",
            "tensor_union",
            "tensor_intersection",
            "unsafe_truncate_embeddings",
            "seed",
            "changes",
        )
        save_plan(plan, blend, out, {k: given[k] for k in keys})
    asked: dict[str, Any] = {"pattern": pattern, "graph": graph, "dot": dot, "reading": reading}
    return show(blend, as_json=given["as_json"], quiet=given["quiet"], **asked)


def show(
    blend: Any,
    *,
    as_json: bool,
    quiet: bool,
    pattern: str | None = None,
    graph: bool = False,
    dot: bool = False,
    target: Path | None = None,
    options: RunOptions | None = None,
    reading: Reading | None = None,
) -> int:
    """Print a plan in the form asked for, as a run with `options` goes about it; the exit code."""
    from cuvee.api.ways import PLAINLY
    from cuvee.cli.render import notes, print_json, stdout
    from cuvee.engine.options import RunOptions
    from cuvee.errors import PlanError
    from cuvee.plan import explain

    with blend.way(options or RunOptions.from_settings(), reading or PLAINLY) as found:
        plan, ahead, digest = found.less, found.outlook(target), found.plan.digest
    chosen = explain.selected(plan, pattern) if pattern else []
    if pattern and not chosen:
        raise PlanError("CV-P021", f"no output tensor matches `{pattern}`")
    if as_json:
        content = {"schema": "cuvee.plan/1", **_figures(plan, ahead), "digest": digest}
        content |= {"tensors": [explain.tensor_json(t) for t in chosen]} if pattern else plan.as_json()
        print_json(content)
        return 0
    if graph:
        for tensor in chosen or plan.tensors[:1]:
            stdout(
                explain.dot(tensor.node)
                if dot
                else "\n".join([tensor.meta.name, *explain.graph(tensor.node, 1)])
            )
        return 0
    if pattern:
        for tensor in chosen:
            stdout(f"{tensor.meta.name}   {tensor.action}   {tensor.meta.dtype} {list(tensor.meta.shape)}")
            for name, value, origin in explain.tensor_rows(tensor):
                stdout(f"  {name} = {value}   ← {origin}")
        return 0
    stdout(explain.explain_text(plan, ahead, notes=not quiet))
    if quiet:
        notes((n for n in plan.notes if n.severity == "warning"), quiet)
    return 0


def _figures(plan: Any, ahead: Any) -> dict[str, Any]:
    """Cost, prediction and notes of a plan, as plain data."""
    from cuvee.plan.cost import cost

    def plain(record: Any) -> dict[str, Any]:
        return {name: getattr(record, name) for name in record.__slots__}

    rates = {"bytes_per_second": ahead.rates.bytes_per_second, "rate_measured": ahead.rates.measured}
    floor = ahead.prediction.passing / ahead.rates.bytes_per_second
    return {
        "cost": plain(cost(plan)),
        "prediction": {**plain(ahead.prediction), **rates, "floor": floor, "free_disk": ahead.free},
        "notes": [note.as_dict() for note in plan.notes],
    }
