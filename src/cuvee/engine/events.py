"""What a run reports while it goes: one typed stream; bars, lines, JSON and notebooks are renderers of it."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from cuvee.engine.spent import Row

Figures: TypeAlias = Mapping[str, Sequence[Mapping[str, float]]]


@dataclass(frozen=True, slots=True)
class Started:
    """The run begins; `resumed_bytes` of `total_bytes` are there from an earlier run."""

    tensors: int
    total_bytes: int
    resumed_bytes: int


@dataclass(frozen=True, slots=True)
class Fetching:
    """Files of a source are fetched from the hub before the run; it says so once more when they are there (`done`)."""

    source: str
    files: int
    bytes: int
    done: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """`bytes` more of `tensor` are written."""

    tensor: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Finding:
    """Something a person should know that was found in the values (a NaN allowed, an overflow), or, with an empty
    `tensor`, in how the run goes; `code` is explained by `cuvee explain`.
    """

    message: str
    tensor: str
    source: str | None = None
    code: str = "CV-E021"


@dataclass(frozen=True, slots=True)
class Finished:
    """The run is done and durable; `resumed_bytes` of the tensors were there before it began."""

    seconds: float
    read_bytes: int
    written_bytes: int
    peak_memory: int
    resumed_bytes: int = 0
    figures: Figures = field(default_factory=dict)  # what stages record for later runs, by stage


@dataclass(frozen=True, slots=True)
class Profile:
    """Where the time of a run went, when it was asked for. Seconds are those of workers, of which there are `threads`;
    `waiting` is what they had nothing to do."""

    threads: int
    seconds: float
    waiting: float
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Committed:
    """The output is visible and durable; `seconds` went into syncing, side files and the manifest."""

    seconds: float


Event = Fetching | Started | Progress | Finding | Profile | Finished | Committed
Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The listener of those who do not listen."""


def peak_memory() -> int:
    """Peak resident bytes of this process."""
    status = Path("/proc/self/status")
    if status.is_file():  # what `getrusage` tells begins with the peak of the process that started this one
        told = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
        if "VmHWM" in told:
            return int(told["VmHWM"].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
