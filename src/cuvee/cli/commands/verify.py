"""`cuvee verify`: is an output what its manifest says?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cuvee.cli.options import EXISTING, output_options


def _share(ctx: click.Context, parameter: Any, value: str | None) -> float | None:
    if value is None:
        return None
    try:
        share = float(value.rstrip("%")) / (100 if value.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise click.BadParameter(f"`{value}` is not a share such as 5% or 0.05")
    return share


@click.command("verify")
@click.argument("output", type=EXISTING)
@click.option(
    "--sample", callback=_share, default=None, metavar="SHARE", help="Check a random part of the tensors: 5%."
)
@click.option(
    "--against",
    type=EXISTING,
    default=None,
    metavar="LOCK",
    help="The output's sources must be as in this lock.",
)
@output_options
def command(
    output: Path, sample: float | None, against: Path | None, as_json: bool, quiet: bool, **given: Any
) -> int:
    """Check hashes, completeness and shapes of an output. Exit code 3 when anything is wrong.

    \b
    Examples:
      cuvee verify ./blend
      cuvee verify ./blend --sample 5%
    """
    from cuvee.api.outputs import verified
    from cuvee.bundle.json_files import load_object
    from cuvee.cli.render import grouped_texts, print_json, stderr, stdout
    from cuvee.errors import Diagnostic

    found = verified(output, sample)
    if against is not None:
        beside = output / "cuvee.lock"
        ours = load_object(beside.read_bytes(), str(beside)) if beside.exists() else {}
        theirs = load_object(against.read_bytes(), str(against))
        if ours.get("sources") != theirs.get("sources"):
            found.append(
                Diagnostic("CV-V021", f"the sources of `{output.name}` are not those of `{against.name}`")
            )
    if as_json:
        print_json({"schema": "cuvee.verify/1", "ok": not found, "diagnostics": [d.as_dict() for d in found]})
        return 3 if found else 0
    for text in grouped_texts(found):
        stderr(text)
    if not found and not quiet:
        stdout(f"{output}: complete and unchanged" + (" in the sample" if sample else ""))
    return 3 if found else 0
