"""`cuvee check`: every mistake in a recipe, at once, without reading a weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cuvee.cli.options import EXISTING, is_offline, output_options, plan_choices, plan_options


@click.command("check")
@click.argument("recipes", type=EXISTING, nargs=-1, required=True)
@click.option("--syntax-only", is_flag=True, help="Do not open the sources.")
@click.option("--strict", is_flag=True, help="Exit with 4 when there are warnings.")
@click.option(
    "--format", "form", type=click.Choice(["text", "github"]), default="text", help="Form of the findings."
)
@plan_options
@output_options
def command(recipes: tuple[Path, ...], syntax_only: bool, strict: bool, form: str, **given: Any) -> int:
    """Find every mistake in recipes: keys, names, ranges, filters, shapes.

    \b
    Examples:
      cuvee check recipe.yaml
      cuvee check --syntax-only recipes/*.yaml
    """
    from cuvee.cli.render import counted, grouped_texts, in_order, print_json, stderr, stdout

    found: list[tuple[Path, Any]] = []
    code = 0
    for path in recipes:
        diagnostics, status = findings(path, syntax_only, given)
        found += [(path, d) for d in in_order(diagnostics)]
        code = max(code, status)
    warned = any(d.severity == "warning" for _, d in found)
    if given["as_json"]:
        listed = [{"recipe": str(path), **d.as_dict()} for path, d in found]
        print_json({"schema": "cuvee.check/1", "ok": code == 0, "diagnostics": listed})
    elif form == "github":
        for path, d in found:
            place = (
                f"file={d.where.file or path}"
                + (f",line={d.where.line},col={d.where.column}" if d.where.line else "")
                if d.where
                else f"file={path}"
            )
            stdout(
                f"::{'notice' if d.severity == 'note' else d.severity} {place},title={d.code}::{d.message}"
            )
    else:
        shown = [d for _, d in found if not (given["quiet"] and d.severity == "note")]
        for text in grouped_texts(shown):
            stderr(text + "\n")
        errors = [d for d in shown if d.severity == "error"]
        if errors:
            stderr(counted(errors, early=True))
        else:
            stdout("no mistakes found")
    return code or (4 if strict and warned else 0)


def findings(path: Path, syntax_only: bool, given: dict[str, Any]) -> tuple[list[Any], int]:
    """Diagnostics of one recipe and the exit code they mean."""
    from cuvee.cli.saved import blend_of
    from cuvee.errors import CuveeError
    from cuvee.recipe.override import adjusted

    try:
        options = plan_choices(given["rules_off"], given["allow_crimes"])
        blend = blend_of(path, is_offline(given["offline"]), options)
        recipe = adjusted(blend.recipe, given)
        if syntax_only:
            return list(recipe.notes), 0
        from dataclasses import replace

        plan = replace(blend, recipe=recipe).build()
        plan.close()
        return list(plan.notes), 0
    except CuveeError as error:
        return list(error.diagnostics), error.exit_code
