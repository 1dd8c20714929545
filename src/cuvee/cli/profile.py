"""`--profile` for people: the account of a run's time as a table, after the run. JSON lines need nothing of this."""

from __future__ import annotations

from collections.abc import Callable

from cuvee.cli.render import stderr, table
from cuvee.core.names import printable
from cuvee.engine.events import Committed, Event, Profile
from cuvee.engine.spent import PHASES, Spent, by_method, total

_TENSORS = 8  # the dearest ones are shown


def profiled(inner: Callable[[Event], None], *, as_json: bool) -> Callable[[Event], None]:
    """The listener, with the account printed for people where a run was asked to keep one."""

    def listen(event: Event) -> None:
        inner(event)
        if as_json:
            return
        if isinstance(event, Profile):
            stderr(profile_text(event))
        elif isinstance(event, Committed):
            stderr(f"syncing and side files: {event.seconds:.2f} s")

    return listen


def profile_text(profile: Profile) -> str:
    """Seconds of workers by phase: for each method, for the dearest tensors, and altogether."""
    rows = [_row(method, spent) for method, spent in by_method(profile.rows).items()]
    dearest = [_row(printable(row.tensor, 60), row.spent) for row in profile.rows[:_TENSORS]]
    head = (
        f"{profile.threads} threads for {profile.seconds:.2f} s, {profile.waiting:.2f} s of them without work"
    )
    shown = table(["seconds of threads", *PHASES], [*rows, *dearest, _row("all", total(profile.rows))])
    return f"{head}\n{shown}"


def _row(name: str, spent: Spent) -> list[str]:
    return [name, *(f"{getattr(spent, phase):.3f}" for phase in PHASES)]
