"""How a merge is run: plainly, within a budget, or from an earlier output; on this machine or on a cluster.

Owns the choice, for commands and notebooks alike. What each way takes is imported where it is gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cuvee.api.beforehand import lightened
from cuvee.api.outlook import outlook
from cuvee.engine.options import RunOptions
from cuvee.errors import UsageError
from cuvee.plan.cost import Outlook
from cuvee.plan.plan import Plan

if TYPE_CHECKING:
    from cuvee.api.execute import Lineage, Runner
    from cuvee.engine.cluster.job import ClusterOptions, Origin
    from cuvee.engine.tables import Tables

Cluster = tuple["Origin", "ClusterOptions"]  # how workers make the plan themselves, and which workers


@dataclass(frozen=True, slots=True)
class Reading:
    """What a merge is asked to read: no more than a budget, or nothing that an earlier output has.

    Args:
        read_budget: the most that is read of the experts, a share (`25%`) or a size (`8GB`).
        max_deviation: the largest error, relative to what the merge adds to the base (0 <= it < 1).
        lineage: record what each tensor is made from.
        earlier: an output with lineage, from which is taken what is the same; records it, too.

    Raises:
        UsageError: CV-U001, a budget and lineage are asked for at once.
    """

    read_budget: str | None = None
    max_deviation: float | None = None
    lineage: bool = False
    earlier: str | Path | None = None

    def __post_init__(self) -> None:
        if self.is_within and self.is_again:
            raise UsageError(
                "CV-U001",
                "a merge cannot be made with a budget and lineage at once",
                hint="a budget leaves something out, so that nothing can be told to be the same",
            )

    @property
    def is_within(self) -> bool:
        """Whether there is a budget."""
        return self.read_budget is not None or self.max_deviation is not None

    @property
    def is_again(self) -> bool:
        """Whether lineage is asked for."""
        return self.lineage or self.earlier is not None


PLAINLY = Reading()


@dataclass(frozen=True, slots=True)
class Way:
    """A plan, and how it is run.

    `less` is what is read for it, with thresholds from `tables`; `ahead` so many bytes of an earlier output besides.
    `is_plain`: a run tells how fast this machine is.
    """

    plan: Plan
    less: Plan
    options: RunOptions
    runner: Runner
    tables: Tables | None = None
    lineage: Lineage | None = None
    ahead: int = 0
    is_plain: bool = False

    def outlook(self, target: Path | None = None) -> Outlook:
        """What the run will take, into `target` where that is known."""
        return outlook(self.less, target, self.options, self.tables, self.ahead)


@contextmanager
def way(
    plan: Plan, options: RunOptions, reading: Reading = PLAINLY, cluster: Cluster | None = None
) -> Iterator[Way]:
    """How the plan is run with these options; open as long as the run needs it.

    Raises:
        PlanError: no bound can be given for the budget (CV-P200), or it cannot be kept (CV-P202).
        UsageError: the earlier output has no lineage (CV-U281), or nothing is catalogued (CV-U280).
    """
    if cluster is not None:
        options = replace(options, recording="off")  # this machine reads a sample of a budget at most
    if reading.is_within:
        yield _within(plan, options, reading, cluster)
    elif reading.is_again:
        with _again(plan, options, reading.earlier, cluster) as found:
            yield found
    elif cluster is not None:
        from cuvee.api.clustered import on_cluster

        yield Way(plan, plan, options, on_cluster(*cluster))
    else:
        less, runner, tables = lightened(plan, options)
        yield Way(less, less, options, runner, tables, is_plain=True)


def _within(plan: Plan, options: RunOptions, reading: Reading, cluster: Cluster | None) -> Way:
    from cuvee.api.budget import budgeted, running

    asked = budgeted(plan, reading.read_budget, reading.max_deviation, options)
    inner = None
    if cluster is not None:
        from cuvee.api.clustered import within_on_cluster

        inner = within_on_cluster(asked, *cluster)
    return Way(asked.plan, asked.plan, options, running(asked, inner), asked.tables)


@contextmanager
def _again(
    plan: Plan, options: RunOptions, earlier: str | Path | None, cluster: Cluster | None
) -> Iterator[Way]:
    from cuvee.api.remerge import closed, lineage_of, remerge

    if plan.recipe.output.adapter is not None or plan.recipe.output.package is not None:
        raise UsageError(
            "CV-U001", "adapters and packages take nothing from an earlier output, and record no lineage"
        )
    found = remerge(plan, None if earlier is None else Path(earlier), options)
    try:
        lineage: Lineage = found.lineage
        if options.recording != "on":
            options = replace(options, recording="off")
        else:  # what the inputs hold is known when they were read
            lineage = partial(lineage_of, plan, options)
            options = options if earlier is None else replace(options, recording="missing")
        less = found.less(options)
        shown, runner = replace(less.plan, notes=found.plan.notes), found.runner(less)
        if cluster is not None:
            from cuvee.api.clustered import again_on_cluster, on_cluster

            runner = again_on_cluster(found, lambda taken: on_cluster(*cluster, taken))
        yield Way(
            found.plan,
            shown,
            options,
            runner,
            less.tables,
            lineage,
            found.nbytes_checked + found.nbytes_filled,
        )
    finally:
        closed(found)
