"""Events of a run as a bar on a terminal, a line every ten seconds elsewhere, or JSON lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from cuvee.cli.render import json_line, stderr
from cuvee.core.names import printable
from cuvee.engine.events import Event, Fetching, Finding, Finished, Progress, Started
from cuvee.plan.explain import size

EVERY = 10.0  # seconds between lines where there is no terminal


def listener(*, as_json: bool, quiet: bool) -> Callable[[Event], None]:
    """The listener for this output mode."""
    if as_json:
        return _json
    if quiet:
        return _quiet
    return _Bar() if sys.stderr.isatty() else _Lines()


def _quiet(event: Event) -> None:
    if isinstance(event, Finding):
        stderr(f"warning[{event.code}]: {event.message}")


def _json(event: Event) -> None:
    if not isinstance(event, Progress):
        json_line({"type": type(event).__name__.lower(), **asdict(event)})


class _Counter:
    """How far a run is."""

    def __init__(self) -> None:
        self.total = 0
        self.done = 0
        self.fresh = 0
        self.began = time.monotonic()

    def see(self, event: Event) -> None:
        if isinstance(event, Fetching) and not event.done:
            files = f"{event.files} file{'s' if event.files > 1 else ''}"
            stderr(f"fetching {files} of {printable(event.source)} from the hub, {size(event.bytes)}")
        if isinstance(event, Started):
            self.total, self.done, self.began = event.total_bytes, event.resumed_bytes, time.monotonic()
            if event.resumed_bytes:
                stderr(
                    f"resuming: {size(event.resumed_bytes)} of {size(event.total_bytes)} are there already"
                )
        elif isinstance(event, Progress):
            self.done += event.bytes
            self.fresh += event.bytes

    @property
    def text(self) -> str:
        seconds = max(1e-6, time.monotonic() - self.began)
        rate = self.fresh / seconds
        left = (self.total - self.done) / rate if rate else 0.0
        return f"{size(self.done)} of {size(self.total)} · {size(rate)}/s · {left:.0f} s left"


class _Lines(_Counter):
    def __init__(self) -> None:
        super().__init__()
        self.last = time.monotonic()

    def __call__(self, event: Event) -> None:
        self.see(event)
        if isinstance(event, Finding):
            _quiet(event)
        if isinstance(event, Progress) and time.monotonic() - self.last > EVERY:
            self.last = time.monotonic()
            stderr(self.text)


class _Bar(_Counter):
    def __init__(self) -> None:
        super().__init__()
        self.bar: Any = None
        self.task: Any = None

    def __call__(self, event: Event) -> None:
        self.see(event)
        if isinstance(event, Started):
            self._open()
        elif isinstance(event, Progress) and self.bar is not None:
            self.bar.update(self.task, completed=self.done, description=printable(event.tensor)[-40:])
        elif isinstance(event, Finding):
            _quiet(event)
        elif isinstance(event, Finished) and self.bar is not None:
            self.bar.stop()

    def _open(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        self.bar = RichProgress(*columns, console=Console(stderr=True), transient=True)
        self.task = self.bar.add_task("", total=self.total, completed=self.done)
        self.bar.start()
