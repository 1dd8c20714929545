"""The plan that a merge will run, before it runs: without what a catalogue proves needless.

Imports what chooses only where there is something to choose from.
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


def lightened(plan: Plan, options: RunOptions) -> tuple[Plan, Callable[..., Finished], Tables | None]:
    """The plan without what a catalogue proves needless, what runs it, and its thresholds (None: none are known)."""
    if not kept():
        from cuvee.engine.run import run

        return plan, run, None
    from cuvee.api.sparing import spared

    found = spared(plan, options)
    return found.plan, found.runner, found.tables
