"""A leaderboard as sections: scores, scores by task and costs for each track and number of experts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from cuvee.charts import Chart, Table, bars, heat
from cuvee.evaluate.pages import Drawn, Part, Section
from cuvee.evaluate.paired import SHARE
from cuvee.evaluate.statistics import Comparison
from cuvee.evaluate.table import Board, Row
from cuvee.evaluate.task import Metric
from cuvee.methods import registry
from cuvee.plan.explain import size

LEGEND = """\
Mean: over tasks, with the 95 % interval of the test items drawn anew, whole groups of them where they have \
groups. Normalised: score ÷ own expert's score, mean over \
tasks. Worst: the task that kept the smallest share of its expert. Unseen: tasks without an expert. Forgetting: unseen \
score beside the base's, positive is better. Shifted: the tasks under other conditions. Group: methods of one group \
cannot be told from its best at 95 % (paired test of normalised scores on the same items, whole groups flipped, Holm's \
correction over all pairs). Group – marks \
references, which are not ranked."""

COSTS = """\
What choosing cost, means over cells: candidates scored on the selection part (the same budget for all), examples \
answered, passes, arithmetic, weights handed to the method, wall time, and the largest memory of the process \
meanwhile, the live model included."""

_SCORES = ("group", "method", "mean (95 %)", "normalised", "worst", "unseen", "forgetting", "shifted")
_FEW = 10  # groups below which an interval hangs on what they happen to be
_SPENT = (
    "method",
    "evaluations",
    "merges",
    "examples",
    "forward",
    "backward",
    "TFLOP",
    "bytes",
    "seconds",
    "peak memory",
)


def sections(boards: Sequence[Board]) -> list[Section]:
    """What the columns mean, then a section for each board."""
    return [Section("", (LEGEND, COSTS)), *(_section(board) for board in boards)]


def _section(board: Board) -> Section:
    seeds = ", ".join(str(seed) for seed in board.seeds)
    rows = (*board.references, *board.rows)
    parts: list[Part] = [Table(_SCORES, [_scores(row, board) for row in rows]), evidence(board)]
    if len(rows) > 1:
        parts.append(Drawn(_shares(rows, board.unit("mean"))))
    parts += [_tasks(rows, board), *_elsewhere(rows, board)]
    parts += [*_missing(board), *_idle(board), Table(_SPENT, [_costs(row) for row in board.rows])]
    experts = f"{board.count} expert{'s' if board.count != 1 else ''}"
    return Section(f"{board.track}, {experts} (seeds {seeds})", tuple(parts))


def evidence(board: Board) -> str:
    """What was drawn and flipped: groups of which size, and where items stand by themselves."""
    grouped = {n: e for n, e in board.evidence.items() if e.groups < e.items}
    single = [n for n in board.evidence if n not in grouped]
    said = "Unit of intervals and tests: single items."
    if grouped:
        counts = ", ".join(f"{n} {e.groups:,} of {e.items:,} items" for n, e in grouped.items())
        said = f"Unit of intervals and tests: groups of items that belong together ({counts})"
        said += f"; single items in {', '.join(single)}." if single else "."
    few = [n for n, e in grouped.items() if e.groups < _FEW]
    if few:
        said += f" Of few groups, so that their figures hang on which these are: {', '.join(few)}."
    together = sorted({tuple(sorted((n, *e.shared))) for n, e in board.evidence.items() if e.shared})
    if together:
        named = "; ".join(", ".join(names) for names in together)
        said += f" Tasks with items or groups in common, which are drawn together: {named}."
    return said


def _shares(rows: Sequence[Row], unit: str) -> Chart:
    """Means with intervals where tasks have one metric, else normalised scores."""
    named = [row.label for row in rows]
    if any(math.isnan(row.mean.mean) for row in rows):
        said = "Score ÷ own expert's score, mean over tasks, per cent."
        series = {"normalised": [100 * row.normalised for row in rows]}
        return bars("Normalised score", said, named, series, column="method")
    return bars(
        "Mean score",
        f"Mean over tasks in {unit_of(unit)}, with the 95 % interval of the test items drawn anew.",
        named,
        {"mean": [points(row.mean.mean, unit) for row in rows]},
        ends={"mean": [(points(row.mean.low, unit), points(row.mean.high, unit)) for row in rows]},
        column="method",
    )


def _tasks(rows: Sequence[Row], board: Board) -> Chart:
    return _by_task("Scores by task", "Score on each task", {r.label: r.tasks for r in rows}, board)


def _elsewhere(rows: Sequence[Row], board: Board) -> list[Chart]:
    """Unseen and shifted tasks one by one: where their metrics differ they have no mean."""
    known = {row.label: row.elsewhere for row in rows if row.elsewhere}
    said = "Score on each unseen and each shifted task"
    return [_by_task("Unseen and shifted tasks", said, known, board)] if known else []


def _by_task(title: str, said: str, scores: Mapping[str, Mapping[str, float]], board: Board) -> Chart:
    names = [name for name in board.metrics if any(name in found for found in scores.values())]
    whole = {board.metrics[n].unit for n in names} == {"%"}
    values = [
        [points(found.get(n, math.nan), board.metrics[n].unit) for n in names] for found in scores.values()
    ]
    said += ", in points." if whole else ", in the unit of the task's metric."
    largest = 100.0 if whole else None
    return heat(title, said, list(scores), names, values, largest=largest, column="method")


def _missing(board: Board) -> list[str]:
    """Who was not scored everywhere: means over other sets and seeds are not comparable."""
    most = max((row.cells for row in board.rows), default=0)
    short = [f"{row.label} ({row.cells} of {most})" for row in board.rows if row.cells < most]
    said = "Not scored on every set and seed, so that places, means and costs are of other items: "
    return [said + ", ".join(short) + "."] if short else []


def _idle(board: Board) -> list[str]:
    """Who merged nothing: a method of certain layers finds none in a network of another kind."""
    idle = [row.label for row in board.rows if row.idle]
    said = "Answers every item as the base does, so that it may have changed no tensor of this model: "
    return [said + ", ".join(idle) + "."] if idle else []


def _scores(row: Row, board: Board) -> list[str]:
    ends = [in_unit(value, board.unit("mean")) for value in (row.mean.mean, row.mean.low, row.mean.high)]
    return [
        str(row.group) if row.group else "–",
        marked(row.label),
        ends[0] if math.isnan(row.mean.low) else f"{ends[0]} ({ends[1]}–{ends[2]})",
        percent(row.normalised),
        f"{row.worst[0]} {shown(row.worst[1], board.metrics[row.worst[0]])}",
        in_unit(row.unseen, board.unit("unseen")),
        signed(row.forgetting, board.unit("forgetting")),
        in_unit(row.shifted, board.unit("shifted")),
    ]


def _costs(row: Row) -> list[object]:
    spent = row.spent
    counts = [spent.evaluations, spent.merges, spent.examples, spent.forward, spent.backward]
    return [
        marked(row.label),
        *(round(count) for count in counts),
        spent.flops / 1e12,
        size(int(spent.bytes_read)),
        round(spent.seconds, 0 if spent.seconds >= 10 else 2),
        size(int(spent.peak_bytes)),
    ]


def marked(label: str) -> str:
    """A row's label, and that its method is reconstructed where part of the definition is ours."""
    name = label.partition(" ")[0]
    known = name in registry.names() and registry.get(name).status == "reconstructed"
    return f"{label}, reconstructed" if known else label


def percent(share: float) -> str:
    """A share as per cent."""
    return "–" if math.isnan(share) else f"{100 * share:.1f}"


def shown(value: float, metric: Metric) -> str:
    """A score in its metric's unit: points where that is per cent."""
    return in_unit(value, metric.unit)


def in_unit(value: float, unit: str) -> str:
    """A score as text: points where the unit is per cent, a dash for NaN."""
    if math.isnan(value):
        return "–"
    return f"{points(value, unit):.1f}" if unit == "%" else f"{value:.3f}"


def points(value: float, unit: str) -> float:
    """A score as it is drawn and written: in points where the unit is per cent."""
    return 100 * value if unit == "%" else value


def difference(found: Comparison) -> str:
    """A difference with its 95 % interval: in points of the normalised score, or of a metric in per cent."""
    d = found.difference
    mean, low, high = (_of_unit(value, found.unit) for value in (d.mean, d.low, d.high))
    return mean if math.isnan(d.low) else f"{mean} ({low} … {high})"


def probability(p_value: float) -> str:
    """A p-value as text: four digits, none where there is none, and never zero."""
    if math.isnan(p_value):
        return "–"
    return "< 0.0001" if p_value < 0.0001 else f"{p_value:.4f}"


def drawn(found: Comparison) -> str:
    """What a comparison drew and flipped, in words."""
    if found.units == found.items:
        return f"{found.items:,} items"
    return f"{found.units:,} groups of {found.items:,} items"


def measured(found: Comparison) -> str:
    """What a difference is in, as a word."""
    return "points of the normalised score" if found.unit == SHARE else unit_of(found.unit)


def unit_of(unit: str) -> str:
    """A metric's unit in a sentence."""
    return "points" if unit == "%" else unit or "the unit of the metric"


def _of_unit(value: float, unit: str) -> str:
    return f"{100 * value:+.2f}" if unit in (SHARE, "%") else f"{value:+.4f}"


def signed(value: float, unit: str) -> str:
    """A difference as text, with its sign."""
    return "–" if math.isnan(value) else ("+" if value >= 0 else "") + in_unit(value, unit)
