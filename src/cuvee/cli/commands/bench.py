"""`cuvee bench`: run a grid of methods on a track, make its leaderboard, compare two methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cuvee.cli.options import output_options

FOLDER = click.Path(path_type=Path, file_okay=False)


@click.group("bench")
def command() -> None:
    """Compare methods fairly: same data, same budget, test items sealed until the end.

    \b
    Examples:
      cuvee bench run text -m average -m task_arithmetic -m ties -o ./bench
      cuvee bench report ./bench
    """


@command.command("run")
@click.argument("track")
@click.option(
    "-m", "--method", "methods", multiple=True, required=True, help="A method; give it once for each."
)
@click.option(
    "-n", "--count", "counts", multiple=True, type=int, help="Numbers of experts to merge (default: all)."
)
@click.option(
    "--seed", "seeds", multiple=True, type=int, default=(0,), help="Seeds of training and of random methods."
)
@click.option(
    "--budget",
    type=click.IntRange(0),
    default=16,
    show_default=True,
    help="Evaluations to tune; 0: defaults.",
)
@click.option(
    "--subsets", type=click.IntRange(1), default=3, show_default=True, help="Random sets for each count."
)
@click.option(
    "--search",
    type=click.Choice(["sobol", "grid", "random", "optuna"]),
    default="sobol",
    show_default=True,
    help="How values to try are found.",
)
@click.option(
    "-o", "--out", type=FOLDER, required=True, help="Folder of the results; finished cells are kept."
)
@output_options
def run(
    track: str,
    methods: tuple[str, ...],
    counts: tuple[int, ...],
    seeds: tuple[int, ...],
    budget: int,
    subsets: int,
    search: Any,
    out: Path,
    as_json: bool,
    quiet: bool,
    **given: Any,
) -> int:
    """Score methods on a track; what is finished is never run again.

    \b
    Examples:
      cuvee bench run text -m ties -m tsv_m -o ./bench
      cuvee bench run text -m iso_c --count 2 --count 8 --budget 32 -o ./bench
    """
    from cuvee.cli.render import json_line, stderr
    from cuvee.evaluate.bench import Done
    from cuvee.evaluate.bench import run as run_grid
    from cuvee.evaluate.cells import Grid, Store
    from cuvee.evaluate.contender import Contender
    from cuvee.evaluate.tracks.registry import open_track
    from cuvee.methods import registry

    contenders = tuple(Contender(registry.get(m).name, search=search) for m in methods)
    grid = Grid(track, contenders, counts, seeds, budget, subsets)

    def tell(done: Done) -> None:
        facts = {
            "state": done.state,
            "method": done.cell.label,
            "experts": len(done.cell.tasks),
            "seed": done.cell.seed,
        }
        if as_json:
            json_line({"schema": "cuvee.bench.cell/1", **facts, "seconds": done.seconds, "mean": done.mean})
        elif not quiet:
            end = f"{100 * done.mean:.1f} in {done.seconds:.0f} s" if done.state == "scored" else done.problem
            stderr(
                f"{done.number}/{done.total} {done.cell.label} ({len(done.cell.tasks)} experts): {done.state} {end}"
            )

    return 1 if run_grid(grid, open_track, Store(out), tell) else 0


@command.command("report")
@click.argument("folder", type=FOLDER)
@output_options
def report(folder: Path, as_json: bool, quiet: bool, **given: Any) -> int:
    """Make the leaderboard of finished cells: `leaderboard.md` and `leaderboard.html` in the folder, and on the screen.

    \b
    Examples:
      cuvee bench report ./bench
      cuvee bench report ./bench --json
    """
    from dataclasses import asdict

    from cuvee.cli.render import print_json, stdout
    from cuvee.core.disk import write_file
    from cuvee.evaluate.cells import Store
    from cuvee.evaluate.leaderboard import html, markdown
    from cuvee.evaluate.table import boards

    found = boards(Store(folder).results())
    text = markdown(found)
    write_file(folder / "leaderboard.md", text.encode())
    write_file(folder / "leaderboard.html", html(found).encode())
    if as_json:
        print_json({"schema": "cuvee.bench/1", "boards": [asdict(board) for board in found]})
    elif not quiet:
        stdout(text)
    return 0


@command.command("compare")
@click.argument("folder", type=FOLDER)
@click.argument("first")
@click.argument("second")
@output_options
def compare(folder: Path, first: str, second: str, as_json: bool, quiet: bool, **given: Any) -> int:
    """Test whether two methods differ, on the items both were scored on.

    \b
    Examples:
      cuvee bench compare ./bench tsv_m ties
      cuvee bench compare ./bench iso_c average --json
    """
    from dataclasses import asdict

    from cuvee.cli.render import print_json, stdout
    from cuvee.evaluate.cells import Store
    from cuvee.evaluate.table import pairs

    found = pairs(Store(folder).results(), first, second)
    if as_json:
        print_json({"schema": "cuvee.bench.compare/1", "first": first, "second": second, **asdict(found)})
        return 0
    d = found.difference
    verdict = "can be told apart" if found.p_value < 0.05 else "cannot be told apart"
    stdout(
        f"{first} − {second}: {100 * d.mean:+.2f} points (95 %: {100 * d.low:+.2f} … {100 * d.high:+.2f}), "
        f"p = {found.p_value:.4f}: they {verdict} at the 95 % level"
    )
    return 0
