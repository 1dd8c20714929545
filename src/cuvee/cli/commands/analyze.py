"""`cuvee analyze`: what fine-tuned models changed, and how they will merge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cuvee.cli.options import output_options

if TYPE_CHECKING:
    from cuvee.analyze import Analysis

_LISTED = 10  # tensors that are left out


@click.command("analyze")
@click.argument("base")
@click.argument("experts", nargs=-1, required=True)
@click.option(
    "--spectra", is_flag=True, help="Decompose every matrix too: singular values and shared directions."
)
@click.option(
    "--merge",
    "merge",
    metavar="MODEL|RECIPE",
    default=None,
    help="A merge of them: what it leaves of each expert.",
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Write the report, an .html file.",
)
@click.option("--offline", is_flag=True, help="Never touch the network.")
@output_options
def command(
    base: str,
    experts: tuple[str, ...],
    spectra: bool,
    merge: str | None,
    out: Path | None,
    offline: bool,
    as_json: bool,
    quiet: bool,
    **given: Any,
) -> int:
    """Compare what fine-tunes of one base changed: norms, cosines, conflicts, a forecast, and advice.

    \b
    Examples:
      cuvee analyze ./base ./math ./code
      cuvee analyze ./base ./math ./code --spectra --merge recipe.yaml -o report.html
    """
    from cuvee.analyze import models
    from cuvee.cli.options import is_offline
    from cuvee.cli.render import print_json, stderr, stdout

    found = models(base, list(experts), spectra=spectra, merge=merge, offline=is_offline(offline))
    if out is not None:
        found.save(out)
    if as_json:
        print_json(found.as_json())
    elif not quiet:
        stdout(_text(found))
        for name, reason in _left_out(found):
            stderr(f"left out: {name} {reason}")
        if out is not None:
            stderr(f"report: {out}")
    return 0


def _left_out(found: Analysis) -> list[tuple[str, str]]:
    """The tensors that no figure counts, and why; of many the first."""
    from cuvee.core.names import printable

    rows = [(f"`{printable(one.name)}`", printable(one.reason)) for one in found.skipped]
    more = len(rows) - _LISTED
    return [*rows[:_LISTED], (f"{more} more", "(all of them: `--json`)")] if more > 0 else rows


def _text(found: Analysis) -> str:
    """The figures of the whole model and the advice, for people."""
    from cuvee.analyze.report import advice_text
    from cuvee.charts.svg import figure
    from cuvee.cli.render import table
    from cuvee.core.names import printable

    sums, names = found.figures, [printable(name) for name in found.experts]
    shown = ["expert", "norm", "relative", "cos base", *(f"cos {name}" for name in names)]
    figures = [sums.norms, sums.relative, sums.base_cosines, *sums.cosines.T]
    rows = [[name, *(figure(float(column[i]), 4) for column in figures)] for i, name in enumerate(names)]
    lines = [f"{sums.numel:,} parameters in {len(found.tensors)} tensors, {len(found.skipped)} left out", ""]
    lines += [table(shown, rows), ""]
    if found.forecast.band != "none":
        lines.append(
            f"sign conflict        {sums.conflict:.1%} of the positions that at least two experts change"
        )
        lines.append(f"opposition           {found.forecast.mean:.3f} ({found.forecast.band}; experimental)")
    if extremes := found.forecast.extremes():
        most, least = (f"{names[i]} + {names[j]} ({found.forecast.beyond[i, j]:+.3f})" for i, j in extremes)
        lines.append(f"beyond their own     most {most}, least {least} (experimental)")
    if found.remains is not None:
        kept = ", ".join(f"{n} {figure(float(v))}" for n, v in zip(names, found.remains.kept, strict=True))
        lines.append(f"kept by the merge    {kept}")
    lines += ["", *(f"{one.kind}: {advice_text(one)}" for one in found.advice)]
    return "\n".join(lines)
