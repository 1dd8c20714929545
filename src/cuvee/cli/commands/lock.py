"""`cuvee lock`: pin what the sources of a recipe are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cuvee.cli.options import EXISTING, is_offline, output_options


@click.command("lock")
@click.argument("recipe", type=EXISTING)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=None,
    help="Lock file (default: cuvee.lock beside the recipe).",
)
@click.option(
    "--check", is_flag=True, help="Compare with the lock instead of writing; exit code 3 when stale."
)
@click.option("--sha256", is_flag=True, help="Hash every weight file (slow).")
@click.option("--offline", is_flag=True, help="Never touch the network.")
@output_options
def command(
    recipe: Path,
    out: Path | None,
    check: bool,
    sha256: bool,
    offline: bool,
    as_json: bool,
    quiet: bool,
    **given: Any,
) -> int:
    """Pin the sources of a recipe: revisions, file names, sizes, digests.

    \b
    Examples:
      cuvee lock recipe.yaml
      cuvee merge recipe.yaml --locked cuvee.lock -o ./blend
    """
    from cuvee.api.lock import differences, lock_of, with_sha256
    from cuvee.bundle.json_files import dump_json, load_object
    from cuvee.cli.render import diagnostic_text, print_json, stderr, stdout
    from cuvee.cli.saved import blend_of
    from cuvee.core.disk import write_file
    from cuvee.core.near import nearest
    from cuvee.errors import UsageError
    from cuvee.plan.build import PlanOptions

    target = out or recipe.parent / "cuvee.lock"
    if check and not target.exists():
        hint = nearest(target) or f"`cuvee lock {recipe}` writes it"
        raise UsageError("CV-U100", f"there is no lock at `{target}`", hint=hint)
    plan = blend_of(recipe, is_offline(offline), PlanOptions()).build()
    try:
        if check:
            found = differences(plan, load_object(target.read_bytes(), str(target)))
            if as_json:
                print_json(
                    {"schema": "cuvee.lock/1", "ok": not found, "diagnostics": [d.as_dict() for d in found]}
                )
            for d in [] if as_json else found:
                stderr(diagnostic_text(d))
            if not found and not as_json and not quiet:
                stdout(f"{recipe}: its sources are as locked in {target}")
            return 3 if found else 0
        content = with_sha256(plan) if sha256 else lock_of(plan)
    finally:
        plan.close()
    write_file(target, dump_json(content))
    print_json({"schema": "cuvee.lock/1", **content}) if as_json else stdout(str(target))
    return 0
