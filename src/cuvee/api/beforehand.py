"""The plan that a merge will run, before it runs: within its budget, and without what a catalogue proves needless.

Owns nothing but the choice, for all who show plans. Imports what chooses only where there is something to choose from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuvee.engine.options import RunOptions
from cuvee.plan.plan import Plan
from cuvee.sources.catalogue import kept

if TYPE_CHECKING:
    from collections.abc import Callable

    from cuvee.engine.events import Finished
    from cuvee.engine.tables import Tables


def as_merged(
    plan: Plan,
    options: RunOptions | None = None,
    *,
    read_budget: str | None = None,
    max_deviation: float | None = None,
) -> tuple[Plan, Tables | None]:
    """The plan as a run with these options would go about it, and what it has thresholds from (None: nothing).

    Raises:
        PlanError: no bound can be given for the budget (CV-P200).
        UsageError: the budget is no share, size or deviation.
    """
    chosen = options or RunOptions.from_settings()
    if read_budget is not None or max_deviation is not None:
        from cuvee.api.budget import budgeted

        asked = budgeted(plan, read_budget, max_deviation, chosen)
        return asked.plan, asked.tables
    if not kept():
        return plan, None
    from cuvee.api.sparing import spared

    lighter = spared(plan, chosen)
    return lighter.plan, lighter.tables


def lightened(plan: Plan, options: RunOptions) -> tuple[Plan, Callable[..., Finished], Tables | None]:
    """The plan without what a catalogue proves needless, what runs it, and its thresholds (None: none are known)."""
    if not kept():
        from cuvee.engine.run import run

        return plan, run, None
    from cuvee.api.sparing import spared

    found = spared(plan, options)
    return found.plan, found.runner, found.tables
