"""`cuvee advise`: whether to merge these experts, and which methods to try first, each with its reasons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cuvee.cli.options import output_options

if TYPE_CHECKING:
    from cuvee.analyze import Analysis, Probes
    from cuvee.analyze.recommend import Standing, Verdict
    from cuvee.evaluate.track import Track

FOLDER = click.Path(path_type=Path, file_okay=False)
_LISTED = 5  # tensors that are left out


@click.command("advise")
@click.argument("base", required=False)
@click.argument("experts", nargs=-1)
@click.option(
    "--track",
    default=None,
    help="Instead of models: the experts of this track, scored on its selection data.",
)
@click.option(
    "--task", "tasks", multiple=True, help="Of these tasks of the track alone; once for each (default: all)."
)
@click.option("--seed", type=int, default=0, help="Seed of the track's training.")
@click.option("--spectra", is_flag=True, help="Decompose every matrix too, for advice on shared directions.")
@click.option(
    "--bench", type=FOLDER, multiple=True, help="Folder of `cuvee bench` whose ordering counts too."
)
@click.option("--offline", is_flag=True, help="Never touch the network.")
@output_options
def command(
    base: str | None,
    experts: tuple[str, ...],
    bench: tuple[Path, ...],
    as_json: bool,
    quiet: bool,
    **given: Any,
) -> int:
    """Say whether to merge these experts and which methods to try; exit code 3 where they should not be merged.

    \b
    Examples:
      cuvee advise ./base ./math ./code
      cuvee advise ./base ./math ./code --spectra --bench ./bench
      cuvee advise --track text --task movie --task author
    """
    from dataclasses import asdict

    from cuvee.analyze.probe_advice import advise_by_scores
    from cuvee.analyze.recommend import recommend
    from cuvee.cli.commands.bench import made
    from cuvee.cli.render import print_json, stdout
    from cuvee.evaluate.tracks import store
    from cuvee.methods import registry

    examined = {name: given[name] for name in ("track", "tasks", "seed", "spectra", "offline")}
    with store.told(made(as_json=as_json, quiet=quiet)):
        found, probes = _examined(base, experts, **examined)
    standings = [*_own(bench), *_published()]
    advice = [*found.advice, *(advise_by_scores(probes) if probes else ())]
    verdict = recommend(advice, standings, registry.names())
    verdict = replace(verdict, notes=(*verdict.notes, *_left_out(found)))
    if as_json:
        scores = probes.as_json() if probes else None
        told = {"forecast": found.forecast.band, "scores": scores}
        print_json({"schema": "cuvee.advise/1", **asdict(verdict), **told})
    else:
        stdout(_text(verdict, [one.source for one in standings], probes, quiet=quiet))
    return 0 if verdict.merge else 3


def _left_out(found: Analysis) -> Iterator[str]:
    """A note of tensors that no figure is of, such as those with NaN, which would stop a merge too."""
    from cuvee.core.names import printable

    for one in found.skipped[:_LISTED]:
        yield f"`{printable(one.name)}` is left out: {printable(one.reason)}"
    if len(found.skipped) > _LISTED:
        yield f"{len(found.skipped) - _LISTED} more tensors are left out; `cuvee analyze` names them"


def probed(track: Track, experts: Mapping[str, Any], *, across: bool = False) -> Probes:
    """Scores of the base, the experts and their halves on the selection data of the experts' tasks, or of all."""
    from cuvee.analyze import probe
    from cuvee.evaluate.studies.mergeability import item_scores

    ways = {name: track.tasks[name].metric.better for name in experts}
    return probe(dict(track.base), experts, item_scores(track), better=ways, across=across)


def _examined(
    base: str | None,
    experts: tuple[str, ...],
    *,
    track: str | None,
    tasks: tuple[str, ...],
    seed: int,
    spectra: bool,
    offline: bool,
) -> tuple[Analysis, Probes | None]:
    """The figures of the weights, and with a track those of scores."""
    from cuvee.analyze import models
    from cuvee.cli.options import is_offline
    from cuvee.errors import UsageError
    from cuvee.evaluate.referee import demand_experts
    from cuvee.evaluate.tracks.registry import open_track

    if (track is None) != bool(base and experts) or (base if track else tasks):
        raise UsageError(
            "CV-U396",
            "advice is about a base and its experts, or about the experts of a track, and one of the two was expected",
            hint="give `BASE EXPERT …`, or `--track NAME` alone, which `--task` may narrow",
        )
    if track is None:
        return models(base, list(experts), spectra=spectra, offline=is_offline(offline)), None
    opened = open_track(track, seed)
    every = demand_experts(opened, tasks)
    names = tasks or tuple(every)
    weights = {name: dict(opened.expert(name)) for name in names}
    found = models(dict(opened.base), weights, spectra=spectra, offline=is_offline(offline))
    return found, probed(opened, weights) if all(opened.tasks[n].selection for n in names) else None


def _own(folders: tuple[Path, ...]) -> Iterator[Standing]:
    """The orderings of one's own benchmarks, at the largest number of experts of each track."""
    from cuvee.analyze.recommend import Standing
    from cuvee.evaluate.cells import Store
    from cuvee.evaluate.published import scores_of
    from cuvee.evaluate.table import boards

    for folder in folders:
        seen = set()
        for board in boards(Store(folder).results()):
            if board.track not in seen:
                seen.add(board.track)
                scores = scores_of(board)
                ordered = tuple(sorted(scores, key=lambda m: -scores[m]))
                yield Standing(f"your table of {board.track}, {board.count} experts", ordered)


def _published() -> Iterator[Standing]:
    from cuvee.analyze.recommend import Standing
    from cuvee.evaluate.published import tables

    for table in tables():
        means = table.means()
        yield Standing(f"{table.title} ({table.citation})", tuple(sorted(means, key=lambda m: -means[m])))


def _text(verdict: Verdict, sources: list[str], probes: Probes | None, *, quiet: bool) -> str:
    from cuvee.core.names import printable

    lines = []
    if not verdict.merge:
        lines += [
            "Do not merge these models by their weights.",
            *(f"  {reason}" for reason in verdict.reasons),
        ]
        return "\n".join(lines)
    lines += [f"warning: {reason}" for reason in verdict.reasons]
    for place, one in enumerate(verdict.recommended, 1):
        lines.append(f"{place}. {one.method}")
        shown = one.reasons if not quiet else one.reasons[:1]
        lines += [f"     {reason}" for reason in shown]
    lines += [f"leave {method}: {reason}" for method, reason in verdict.avoided.items()]
    lines += [f"note: {note}" for note in verdict.notes]
    if probes:
        pairs = zip(probes.tasks, probes.told_halvings(), strict=True)
        lost = ", ".join(f"{printable(name)} {told}" for name, told in pairs)
        lines.append(
            "at half their change experts lose, ± a standard error (averages of two lose the more, the larger the "
            f"mean of theirs): {lost}"
        )
    if not quiet:
        lines.append("")
        lines.append(
            f"Orderings of {len(sources)} tables and the figures of the weights; scores on your own tasks decide: "
            "`cuvee bench`."
        )
    return "\n".join(lines)
