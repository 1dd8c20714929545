"""`cuvee bench`: run a grid of methods on a track, make its leaderboard, compare two methods."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cuvee.cli.commands import bench_score, bench_study
from cuvee.cli.options import output_options

if TYPE_CHECKING:
    from cuvee.evaluate.bench import Done
    from cuvee.evaluate.contender import Contender
    from cuvee.evaluate.tracks.store import Making

FOLDER = click.Path(path_type=Path, file_okay=False)


def told(*, as_json: bool, quiet: bool) -> Callable[[Done], None]:
    """Says what became of each cell, and when the rest will be done."""
    from cuvee.cli.render import json_line, stderr
    from cuvee.evaluate.leaderboard import in_unit

    def tell(done: Done) -> None:
        facts = {
            "state": done.state,
            "method": done.cell.label,
            "experts": len(done.cell.tasks),
            "seed": done.cell.seed,
            "budget": done.cell.budget,
        }
        if as_json:
            json_line(
                {
                    "schema": "cuvee.bench.cell/1",
                    **facts,
                    "seconds": done.seconds,
                    "mean": None if math.isnan(done.mean) else done.mean,
                    "left": None if math.isnan(done.left) else done.left,
                    **({"problem": done.problem} if done.problem else {}),
                }
            )
        elif not quiet:
            mean = "" if math.isnan(done.mean) else f"{in_unit(done.mean, done.unit)} "
            end = f"{mean}in {done.seconds:.0f} s" if done.state == "scored" else done.problem
            eta = "" if math.isnan(done.left) or not done.left else f" · about {_duration(done.left)} left"
            tuned = f", budget {done.cell.budget}" if done.cell.budget else ""
            count = len(done.cell.tasks)
            what = f"{done.cell.label} ({count} expert{'s' * (count != 1)}, seed {done.cell.seed}{tuned})"
            place = f"{done.number}/{done.total} " if done.total else ""
            comma = "," if done.state == "left out" else ""
            stderr(f"{place}{what}: {done.state}{comma} {end}{eta}")

    return tell


def made(*, as_json: bool, quiet: bool) -> Callable[[Making], None]:
    """Says what is being trained or drawn for the cache, and how long it took: it is done once."""
    from cuvee.cli.render import stderr

    def tell(making: Making) -> None:
        if not as_json and not quiet:
            what = f"{making.name} ({making.kind})"
            if making.done:
                stderr(f"{what} was interrupted, going on at {making.done:.0%} of its training")
            elif making.seconds is None:
                stderr(f"making {what}")
            else:
                stderr(f"made {what} in {_duration(making.seconds)}, kept in the cache")

    return tell


def _duration(seconds: float) -> str:
    """Seconds, minutes or hours, to two figures."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


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
    "-n",
    "--count",
    "counts",
    multiple=True,
    type=int,
    help="Numbers of experts to merge (default: all); of checkpoints the last so many.",
)
@click.option(
    "--task", "tasks", multiple=True, help="Merge experts of these tasks alone; once for each (default: all)."
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
    "--tune",
    "tuned",
    multiple=True,
    metavar="NAME[=RANGE]",
    help="Tune this parameter (`density`, `density=0.1:0.9`, `merge=mean,sum`) instead of the usual ones.",
)
@click.option(
    "--untuned/--no-untuned",
    default=True,
    show_default=True,
    help="Score each method with its defaults too.",
)
@click.option(
    "--references/--no-references",
    default=True,
    help="Score all references of the track, which may have to be trained first; else base and experts.",
)
@click.option("--transfer", is_flag=True, help="Score every expert on every task too, not on its own alone.")
@click.option(
    "-o", "--out", type=FOLDER, required=True, help="Folder of the results; finished cells are kept."
)
@output_options
def run(
    track: str,
    methods: tuple[str, ...],
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
      cuvee bench run initialisations-mlp -m average --task mnist_a --task mnist_b -o ./bench
    """
    from cuvee.evaluate.bench import run as run_grid
    from cuvee.evaluate.cells import Grid, Store
    from cuvee.evaluate.tracks import store
    from cuvee.evaluate.tracks.registry import open_track

    grid = Grid(
        track,
        _contenders(methods, given["tuned"], search),
        given["counts"],
        given["seeds"],
        given["budget"],
        given["subsets"],
        references=None if given["references"] else ("base", "experts"),
        untuned=given["untuned"],
        tasks=given["tasks"],
        transfer=given["transfer"],
    )
    unfit, tell = {contender.method for contender in grid.methods}, told(as_json=as_json, quiet=quiet)

    def heard(done: Done) -> None:
        if done.state != "left out":
            unfit.discard(done.cell.method)
        tell(done)

    with store.told(made(as_json=as_json, quiet=quiet)):
        failed = run_grid(grid, open_track, Store(out), heard)
    return 1 if failed or unfit else 0


def _contenders(methods: tuple[str, ...], tuned: tuple[str, ...], search: Any) -> tuple[Contender, ...]:
    """The methods with the ranges that were named; one that has none of the parameters keeps its usual ones."""
    from cuvee.core.names import printable
    from cuvee.errors import UsageError
    from cuvee.evaluate.contender import Contender
    from cuvee.evaluate.space import dimensions, parsed
    from cuvee.methods import registry

    named = [parsed(text) for text in tuned]
    ranges = dict(named)
    if len(ranges) < len(named):
        twice = next(name for name in ranges if sum(one == name for one, _ in named) > 1)
        raise UsageError("CV-U372", f"`--tune` names `{printable(twice)}` twice")
    known = {registry.get(m).name: registry.parameters_for(registry.get(m)) for m in methods}
    unknown = [name for name in ranges if not any(name in found for found in known.values())]
    if unknown:
        raise UsageError("CV-U030", f"none of the methods has a parameter `{unknown[0]}` to tune")
    out = []
    for method, found in known.items():
        space = {name: values for name, values in ranges.items() if name in found} or None
        dimensions(method, space)  # so that a wrong range is told before anything is run
        out.append(Contender(method, space=space, search=search))
    return tuple(out)


@command.command("add")
@click.argument("folder", type=FOLDER)
@click.argument("method")
@click.option(
    "--search",
    type=click.Choice(["sobol", "grid", "random", "optuna"]),
    default="sobol",
    show_default=True,
    help="How values to try are found.",
)
@output_options
def add(folder: Path, method: str, search: Any, as_json: bool, quiet: bool, **given: Any) -> int:
    """Score one more method wherever the others of a table were scored, and test it against each of them.

    METHOD is a registered method, or `MODULE:FUNCTION` for a function of a `Selection` of your own.

    \b
    Examples:
      cuvee bench add ./bench pcb
      cuvee bench add ./bench my_package.merging:half_way
    """
    from dataclasses import asdict

    from cuvee.cli.render import print_json, stderr, stdout, table
    from cuvee.evaluate.addition import add as score
    from cuvee.evaluate.addition import duels, newcomer_of
    from cuvee.evaluate.cells import Store
    from cuvee.evaluate.leaderboard import difference, drawn, measured, probability
    from cuvee.evaluate.tracks import store as models
    from cuvee.evaluate.tracks.registry import open_track

    newcomer, store = newcomer_of(method, search), Store(folder)
    with models.told(made(as_json=as_json, quiet=quiet)):
        failed = score(newcomer, open_track, store, told(as_json=as_json, quiet=quiet))
    found = duels(store.results(), newcomer.label)
    if as_json:
        print_json({"schema": "cuvee.bench.add/1", "duels": [asdict(one) for one in found]})
    else:
        rows = []
        for one in found:
            verdict = "told apart" if one.apart else "not told apart"
            test = one.comparison
            shown = [difference(test), measured(test), drawn(test), probability(one.adjusted)]
            rows.append([one.newcomer, one.other, one.track, *shown, verdict])
        if not rows and not quiet:
            stderr(f"no cell of `{newcomer.label}` can be compared; `cuvee bench report` lists what failed")
        elif rows:
            stdout(
                table(["method", "other", "track", "difference (95 %)", "in", "over", "p (Holm)", ""], rows)
            )
    return 1 if failed else 0


@command.command("report")
@click.argument("folder", type=FOLDER)
@output_options
def report(folder: Path, as_json: bool, quiet: bool, **given: Any) -> int:
    """Make the report of finished cells, on the screen and in the folder.

    Writes `leaderboard.md`, `leaderboard.html`, `results.json`, and `results.parquet` where pyarrow is installed.

    \b
    Examples:
      cuvee bench report ./bench
      cuvee bench report ./bench --json
    """
    from dataclasses import asdict

    from cuvee.cli.render import print_json, stderr, stdout
    from cuvee.core.disk import write_file
    from cuvee.evaluate import export
    from cuvee.evaluate import report as reports
    from cuvee.evaluate.cells import Store
    from cuvee.evaluate.table import boards

    store = Store(folder)
    results = store.results()
    made = reports.report(folder)
    text = made.markdown()
    write_file(folder / "leaderboard.md", text.encode())
    write_file(folder / "leaderboard.html", made.html().encode())
    write_file(folder / "results.json", export.as_json(store))
    if export.parquet_available():
        write_file(folder / "results.parquet", export.as_parquet(store))
    elif not quiet:
        stderr("results.parquet was not written: it needs pyarrow (`pip install 'cuvee[evaluate]'`)")
    if as_json:
        print_json({"schema": "cuvee.bench/1", "boards": [asdict(board) for board in boards(results)]})
    elif not quiet:
        stdout(text)
    return 0


@command.command("compare")
@click.argument("folder", type=FOLDER)
@click.argument("first")
@click.argument("second")
@click.option("--track", help="On this track; needed where both were scored on several.")
@output_options
def compare(
    folder: Path, first: str, second: str, track: str | None, as_json: bool, quiet: bool, **given: Any
) -> int:
    """Test whether two methods differ, on the items of a track that both were scored on.

    \b
    Examples:
      cuvee bench compare ./bench tsv_m ties
      cuvee bench compare ./bench iso_c average --track text --json
    """
    from dataclasses import asdict

    from cuvee.cli.render import print_json, stdout
    from cuvee.evaluate.cells import Store
    from cuvee.evaluate.failures import explaining
    from cuvee.evaluate.leaderboard import difference, drawn, measured, probability
    from cuvee.evaluate.paired import pairs

    store = Store(folder)
    with explaining(store, first, second):
        found = pairs(store.results(), first, second, track=track)
    if as_json:
        asked = {"first": first, "second": second, **({"track": track} if track else {})}
        print_json({"schema": "cuvee.bench.compare/1", **asked, **asdict(found)})
        return 0
    verdict = "can be told apart" if found.p_value < 0.05 else "cannot be told apart"
    chance = probability(found.p_value)
    stdout(
        f"{first} − {second}: {difference(found)} {measured(found)} with the 95 % interval over {drawn(found)}, "
        f"p {chance if chance.startswith('<') else f'= {chance}'}: they {verdict} at the 95 % level"
    )
    return 0


command.add_command(bench_score.command)
command.add_command(bench_study.command)
