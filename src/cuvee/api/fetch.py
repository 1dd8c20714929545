"""Weights that are still on the hub when a run begins: fetched first, so that nothing waits in the middle of it."""

from __future__ import annotations

from cuvee.engine.events import Fetching, Listener
from cuvee.plan.plan import Plan
from cuvee.sources.source import unfetched


def fetch(plan: Plan, listener: Listener) -> None:
    """Bring every file here of which only the header was read to plan."""
    for key, opened in plan.sources.items():
        files = unfetched(opened.source)
        if not files:
            continue
        told = Fetching(key, len(files), sum(file.size for file in files))
        listener(told)
        for file in files:
            file.fetch()
        listener(Fetching(told.source, told.files, told.bytes, done=True))
