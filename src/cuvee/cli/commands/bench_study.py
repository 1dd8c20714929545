"""`cuvee bench study`: one question of the literature on a track, from its grid to its report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cuvee.cli.options import output_options

if TYPE_CHECKING:
    from cuvee.evaluate.bench import Done
    from cuvee.evaluate.cells import Store
    from cuvee.evaluate.pages import Section
    from cuvee.evaluate.paired import Results
    from cuvee.evaluate.studies.study import Study
    from cuvee.evaluate.track import Track

FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command("study")
@click.argument("name", required=False)
@click.option("--track", default=None, help="The track (default: the study's own).")
@click.option("--seed", "seeds", multiple=True, type=int, default=(0,), help="Seeds of training and methods.")
@click.option("--budget", type=click.IntRange(0), default=None, help="Evaluations to tune each method.")
@click.option(
    "--subsets", type=click.IntRange(1), default=None, help="Random sets for each number of experts."
)
@click.option(
    "-n",
    "--count",
    "counts",
    multiple=True,
    type=click.IntRange(0),
    help="Numbers of experts, 0 for all (default: the study's own).",
)
@click.option(
    "--untuned/--no-untuned",
    default=None,
    help="Score each method with its defaults too (default: as the study does).",
)
@click.option(
    "-o", "--out", type=FOLDER, default=None, help="Folder of the results; finished cells are kept."
)
@output_options
def command(name: str | None, out: Path | None, as_json: bool, quiet: bool, **given: Any) -> int:
    """Run a study and write its report, `study-NAME.md` and `.html`; without NAME list the studies.

    \b
    Examples:
      cuvee bench study
      cuvee bench study scale --track text -o ./scale
    """
    from cuvee.cli.commands.bench import made, told
    from cuvee.cli.render import print_json, stdout
    from cuvee.core.disk import write_file
    from cuvee.errors import UsageError
    from cuvee.evaluate.cells import Store
    from cuvee.evaluate.pages import html, markdown
    from cuvee.evaluate.studies.study import on, report
    from cuvee.evaluate.tracks import store as models

    if name is None:
        return _listed(as_json)
    if out is None:
        raise UsageError("CV-U314", "a study keeps its results in a folder", hint="give one with `-o FOLDER`")
    study = on(
        _study(name),
        given["track"],
        given["budget"],
        given["subsets"],
        counts=given["counts"],
        untuned=given["untuned"],
    )
    opened = cache(_open_track)
    say = told(as_json=as_json, quiet=quiet)
    with models.told(made(as_json=as_json, quiet=quiet)):
        failed, results = _performed(study, opened, Store(out), given["seeds"], say)
        parts = report(study, results)
        if study.name == "mergeability":
            parts += _forecasts(
                results, [opened(study.track, seed) for seed in dict.fromkeys(given["seeds"])]
            )
    text = markdown(study.title, parts)
    write_file(out / f"study-{study.name}.md", text.encode())
    write_file(out / f"study-{study.name}.html", html(study.title, parts).encode())
    if as_json:
        print_json(
            {
                "schema": "cuvee.bench.study/1",
                "study": study.name,
                "report": str(out / f"study-{study.name}.md"),
            }
        )
    elif not quiet:
        stdout(text)
    return 1 if failed else 0


def _performed(
    study: Study,
    opened: Callable[[str, int], Track],
    store: Store,
    seeds: Sequence[int],
    say: Callable[[Done], None],
) -> tuple[int, Results]:
    """How many cells failed, and those of this study: the folder may hold others."""
    from cuvee.evaluate.studies.study import perform

    asked: set[str] = set()

    def tell(done: Done) -> None:
        asked.add(done.cell.address)
        say(done)

    failed = perform(study, opened, store, seeds=seeds, tell=tell)
    return failed, [found for found in store.results() if found[0].address in asked]


def _study(name: str) -> Study:
    from cuvee.evaluate.studies import mergeability
    from cuvee.evaluate.studies.catalogue import study

    return mergeability.STUDY if name == "mergeability" else study(name)


def _listed(as_json: bool) -> int:
    from cuvee.cli.render import print_json, stdout, table
    from cuvee.evaluate.studies import mergeability
    from cuvee.evaluate.studies.catalogue import STUDIES

    every = [*STUDIES.values(), mergeability.STUDY]
    if as_json:
        print_json({"schema": "cuvee.bench.studies/1", "studies": {s.name: s.title for s in every}})
    else:
        stdout(table(["study", "track", "question"], [[s.name, s.track, s.title] for s in every]))
    return 0


def _open_track(name: str, seed: int) -> Track:
    from cuvee.evaluate.tracks import registry

    return registry.open_track(name, seed)


def _forecasts(results: Results, tracks: Sequence[Track]) -> list[Section]:
    """What could forecast losses, as means over seeds like these, against what the merges lost."""
    from cuvee.core.lazy import numpy
    from cuvee.evaluate.studies import mergeability

    names = [name for name, task in tracks[0].tasks.items() if not task.unseen]
    each = [_figures(track, names) for track in tracks]
    figures = {figure: numpy.mean([found[figure] for found in each], axis=0) for figure in each[0]}
    return mergeability.sections(names, figures, results)


def _figures(track: Track, names: Sequence[str]) -> dict[str, Any]:
    """The figures of `cuvee analyze`, and those of scores on selection data, of a track's pairs of experts."""
    from cuvee import analyze
    from cuvee.analyze.forecast import figures_of_pairs
    from cuvee.cli.commands.advise import probed

    experts = {name: dict(track.expert(name)) for name in names}
    figures = figures_of_pairs(analyze.models(dict(track.base), experts).figures)
    if all(track.tasks[name].selection for name in names):
        figures = {**figures, **probed(track, experts, across=True).figures_of_pairs()}
    return figures
