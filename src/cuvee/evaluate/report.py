"""Everything a folder of results says: leaderboards, growth with experts, tuning, generalisation, published orderings.

Owns what is shown and in which order; figures come from the tables, drawings from the charts.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from cuvee.charts import Chart, Table, lines
from cuvee.evaluate import calibration, checks, failures, leaderboard, published, robustness, sizes, variation
from cuvee.evaluate.adapters import outcome
from cuvee.evaluate.cells import Store, clean, expert_of, is_reference
from cuvee.evaluate.pages import Part, Report, Section
from cuvee.evaluate.paired import Results, comparable, pairs, told_apart
from cuvee.evaluate.statistics import holm, rank_intervals
from cuvee.evaluate.table import Board, boards
from cuvee.methods import registry

_LEAST = 4  # methods from which a correlation between two columns is given


def sections(results: Results, found: Sequence[Board] | None = None) -> list[Section]:
    """All that can be said of these results; parts without enough cells are left out.

    `found` are their leaderboards, where somebody has made them already.
    """
    found = boards(results) if found is None else found
    largest = {board.track: board for board in reversed(found)}
    named = told_apart(results)
    out = leaderboard.sections(found)
    out += [part for track in largest if (part := scaling([b for b in found if b.track == track]))]
    out += [part] if (part := robustness.section(found, results)) else []
    ordinary = [board for board in largest.values() if clean(board.track)]
    spread = [board for board in found if clean(board.track)]
    out += [part for board in spread if (part := variation.section(board, _of(board, named)))]
    out += [part for board in ordinary for part in _of_board(board, _of(board, named)) if part]
    return out


def report(folder: str | Path) -> Report:
    """The report of a benchmark's folder, scores by other programs and failed cells included.

    Raises EvaluationError CV-B024 where it holds no results, CV-B021 for a damaged one.
    """
    place = Path(folder)
    store = Store(place)
    results = store.results()
    found = boards(results)
    more = (
        sizes.section(found, store.tracks()),
        outcome.section(outcome.kept(place)),
        failures.section(failures.kept(store)),
    )
    return Report("Leaderboard", (*sections(results, found), *(part for part in more if part)))


def _of(board: Board, named: Results) -> Results:
    """The results of a board."""
    return [r for r in named if (r[0].track, len(r[0].tasks)) == (board.track, board.count)]


def _of_board(board: Board, here: Results) -> list[Section | None]:
    return [
        tuning(board, here),
        defaults(board, here),
        generalisation(board),
        calibration.section(board, here),
        published.section(board),
        checks.section(board, here),
    ]


def scaling(of_track: Sequence[Board]) -> Section | None:
    """Normalised score, unseen and shifted score of each method against the number of experts."""
    ordered = sorted(of_track, key=lambda board: board.count)
    if len(ordered) < 2:
        return None
    parts: list[Part] = [
        "Sets below all experts are drawn at random, the same for every method (of the checkpoints of a run they are "
        "the last); points are means over them."
    ]
    for title, field, said in (
        ("Normalised score", "normalised", "Score ÷ own expert's score, mean over tasks, per cent."),
        (
            "Unseen tasks",
            "unseen",
            "Score on tasks without an expert, in {unit}.",
        ),
        ("Shifted data", "shifted", "Score on the tasks under other conditions, in {unit}."),
    ):
        series = _by_count(ordered, field)
        if series:
            names = [str(board.count) for board in ordered]
            unit = leaderboard.unit_of(ordered[0].unit(field))
            said = said.format(unit=unit)
            parts.append(lines(f"{title} by number of experts", said, names, series, column="experts"))
    return Section(f"Growth with the number of experts: {ordered[0].track}", tuple(parts))


def _by_count(ordered: Sequence[Board], field: str) -> dict[str, list[float]]:
    series: dict[str, list[float]] = defaultdict(lambda: [math.nan] * len(ordered))
    tuned = any("(budget" in row.label for board in ordered for row in board.rows)
    for i, board in enumerate(ordered):
        for row in (*board.references, *board.rows):
            if expert_of(row.label) is not None or (tuned and row.label.endswith("(untuned)")):
                continue  # so many lines would hide what they show; the tables have all
            value = getattr(row, field)
            if not math.isnan(value) and not (is_reference(row.label) and field == "normalised"):
                unit = "%" if field == "normalised" else board.unit(field)
                series[row.label][i] = leaderboard.points(value, unit)
    return dict(series)


def curve(values: Sequence[float]) -> list[float]:
    """The best so far after each evaluation."""
    best, out = -math.inf, []
    for value in values:
        best = max(best, value)
        out.append(best)
    return out


def tuning(board: Board, results: Results) -> Section | None:
    """The best selection score against evaluations spent, mean over cells; and what each evaluation tried."""
    logs: dict[str, list[list[float]]] = defaultdict(list)
    for cell, card in told_apart(results):
        if len(card.log) > 1 and cell.protocol > 1:  # the first tuned on another mean
            logs[cell.label].append([value for _, value in card.log])
    if not logs:
        return None
    longest = max(len(log) for every in logs.values() for log in every)
    series = {label: [100 * v for v in _mean_curve(every, longest)] for label, every in logs.items()}
    names = [str(i + 1) for i in range(longest)]
    said = (
        "Best mean of score ÷ own expert's score on the selection part so far, per cent, mean over cells; the first is "
        "the default."
    )
    parts: list[Part] = [
        lines("Tuning: score against evaluations spent", said, names, series, column="evaluations"),
        *_sensitivity(results),
    ]
    return Section(f"What tuning buys: {board.track}, {board.count} experts", tuple(parts))


def _mean_curve(every: Sequence[Sequence[float]], length: int) -> list[float]:
    """The mean of the curves; one that ended early stays where it ended."""
    curves = [curve(values) for values in every]
    padded = [one + [one[-1]] * (length - len(one)) for one in curves]
    return [sum(column) / len(column) for column in zip(*padded, strict=True)]


def _sensitivity(results: Results) -> list[Chart]:
    """Share of the experts' scores against the value of the one parameter that a method was tuned by.

    For one cell of each method.
    """
    out = []
    seen = set()
    for cell, card in told_apart(results):
        tried = {key for point, _ in card.log for key in point if point[key] != card.log[0][0].get(key)}
        values = [
            (point.get(key, _default(cell.method, key)), value) for point, value in card.log for key in tried
        ]
        numbers = sorted((float(v), s) for v, s in values if isinstance(v, (int, float)))
        if cell.label in seen or len(tried) != 1 or len(numbers) < 3 or cell.protocol == 1:
            continue
        seen.add(cell.label)
        name = next(iter(tried))
        said = (
            f"Selection score ÷ own expert's of every value that was tried, per cent, seed {cell.seed}; positions are "
            "not evenly spaced."
        )
        places = [f"{value:.3g}" for value, _ in numbers]
        series = {"selection": [100 * score for _, score in numbers]}
        out.append(lines(f"{cell.label}: sensitivity to {name}", said, places, series, column=name))
    return out


def _default(method: str, parameter: str) -> object:
    """The value of a parameter where a point of the search does not name it."""
    known = registry.parameters_for(registry.get(method)) if method in registry.names() else {}
    return known[parameter].default if parameter in known else None


def defaults(board: Board, results: Results) -> Section | None:
    """Tuned beside untuned, tested on the same items."""
    results = told_apart(results)
    labels = {row.label: row for row in board.rows}
    couples = [
        (name, label)
        for label in labels
        if label.endswith("(untuned)")
        for name in labels
        if name.startswith(label.removesuffix("(untuned)") + "(budget")
        and comparable(results, name, label, board.count)
    ]
    if not couples:
        return None
    tests = {tuned: pairs(results, tuned, untuned, board.count) for tuned, untuned in couples}
    adjusted = holm({tuned: test.p_value for tuned, test in tests.items()})
    header = ("method", "untuned, normalised", "tuned, normalised", "difference (95 %)", "p (Holm)")
    rows = []
    for tuned, untuned in couples:
        rows.append(
            [
                tuned,
                leaderboard.percent(labels[untuned].normalised),
                leaderboard.percent(labels[tuned].normalised),
                leaderboard.difference(tests[tuned]),
                leaderboard.probability(adjusted[tuned]),
            ]
        )
    unit = leaderboard.measured(tests[couples[0][0]])
    said = (
        "Each method with the defaults of its signature and after tuning, on the same test items. Differences are "
        f"tuned − untuned over the sets and seeds that have both, in {unit}."
    )
    return Section(f"Untuned defaults: {board.track}, {board.count} experts", (said, Table(header, rows)))


def generalisation(board: Board) -> Section | None:
    """Whether methods that are better on tasks with experts are better elsewhere too."""
    rows = []
    tuned = any("(budget" in row.label for row in board.rows)
    once = [row for row in board.rows if not (tuned and row.label.endswith("(untuned)"))]  # each method once
    for what, field in (("unseen tasks", "unseen"), ("shifted data", "shifted")):
        known: Mapping[str, tuple[float, float]] = {
            row.label: (row.normalised, getattr(row, field)) for row in once
        }
        both = [v for v in known.values() if not any(math.isnan(x) for x in v)]
        if len(both) >= _LEAST:
            rho, tau = rank_intervals([a for a, _ in both], [b for _, b in both])
            rows.append([what, len(both), published.ranged(rho), published.ranged(tau)])
    if not rows:
        return None
    said = "Rank correlation over methods between the normalised score and the score elsewhere; intervals draw methods."
    header = ("elsewhere", "methods", "Spearman ρ (95 %)", "Kendall τ (95 %)")
    return Section(
        f"Held-in against elsewhere: {board.track}, {board.count} experts", (said, Table(header, rows))
    )
