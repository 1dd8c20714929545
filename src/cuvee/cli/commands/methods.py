"""`cuvee methods`: the catalogue, or one method in full."""

from __future__ import annotations

from typing import Any

import click

from cuvee.cli.options import output_options


@click.command("methods")
@click.argument("name", required=False)
@click.option("--stages", is_flag=True, help="List the stages that chains are made of, by role.")
@output_options
def command(name: str | None, stages: bool, as_json: bool, **given: Any) -> int:
    """List merge methods and stages, or explain one.

    \b
    Examples:
      cuvee methods
      cuvee methods ties
    """
    from cuvee.cli.catalogue import (
        layout_data,
        layout_text,
        method_data,
        method_text,
        stage_data,
        stage_text,
    )
    from cuvee.cli.render import print_json, stdout, table
    from cuvee.methods import registry
    from cuvee.recipe.layouts import LAYOUTS

    if name is not None:
        if name in registry.stages() and (stages or name not in registry.names()):
            found = registry.stage(name)
            print_json(stage_data(found)) if as_json else stdout(stage_text(found))
        elif name in LAYOUTS:
            layout = LAYOUTS[name]
            print_json(layout_data(layout)) if as_json else stdout(layout_text(layout))
        else:
            method = registry.get(name)
            print_json(method_data(method)) if as_json else stdout(method_text(method))
        return 0
    if stages:
        items = sorted(
            (registry.stage(s) for s in registry.stages()),
            key=lambda s: ("condition", "space", "combine", "rescale", "leave").index(s.role),
        )
        if as_json:
            print_json({"schema": "cuvee.stages/1", "stages": [stage_data(s) for s in items]})
        else:
            ours = registry.reconstructed_stages()
            rows = [[s.name, s.role, s.takes, s.doc.strip().splitlines()[0]] for s in items]
            for row in rows:
                row[-1] += " Reconstructed." if row[0] in ours else ""
            stdout(table(["stage", "role", "takes", "effect"], rows))
        return 0
    every = [registry.get(m) for m in registry.names()]
    if as_json:
        every_data = [*map(method_data, every), *map(layout_data, LAYOUTS.values())]
        print_json({"schema": "cuvee.methods/1", "methods": every_data})
        return 0
    rows = [[m.name, m.base, m.status, m.summary] for m in every]
    rows += [[a.name, "ordinary", "exact", a.summary] for a in LAYOUTS.values()]
    stdout(table(["method", "base", "status", "what it does"], sorted(rows)))
    return 0
