"""How a run goes, as opposed to what it computes: nothing here may change a byte of the output."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Literal

from cuvee.core import settings
from cuvee.errors import UsageError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Budget of block buffers in bytes, worker threads, device, and what to do about NaN and infinity."""

    memory: int = 128 << 20
    threads: int = 1
    device: str = "cpu"
    non_finite: Literal["stop", "warn", "allow"] = "stop"
    block: int | None = None  # elements; tests and tuning only
    profile: bool = False  # end with an account of where the time went
    decompositions: int = 0  # bytes of disk for decompositions that are kept from run to run; 0 keeps none
    catalogue: bool = True  # leave out what a catalogue proves needless to read
    # make a catalogue on the way; `cold`: where reading is slow; `missing`: of what none has yet
    recording: Literal["off", "cold", "on", "missing"] = "off"
    kernels: bool = True  # compiled kernels where they can be had; CUVEE_KERNELS=off has the last word
    paranoid: bool = False  # read an output back from the device before it appears; nothing in memory

    @classmethod
    def from_settings(cls, **given: object) -> RunOptions:
        """Options from the environment where they are not given."""
        chosen = {k: v for k, v in given.items() if v is not None}
        memory = chosen.pop("memory", None) or settings.get("CUVEE_MEMORY") or "128MiB"
        threads = chosen.pop("threads", None) or settings.get("CUVEE_THREADS") or os.cpu_count() or 1
        if "decompositions" not in chosen:
            room = settings.get("CUVEE_DECOMPOSITIONS") or "off"
            chosen["decompositions"] = 0 if room.lower() in ("off", "0") else parse_bytes(room)
        if "recording" not in chosen:
            chosen["recording"] = _recording(settings.get("CUVEE_CATALOG") or "cold")
        return cls(
            memory=parse_bytes(memory) if isinstance(memory, str) else int(str(memory)),
            threads=max(1, int(str(threads))),
            **chosen,  # type: ignore[arg-type]
        )


def _recording(word: str) -> str:
    if word.lower() not in ("off", "cold", "on"):
        raise UsageError("CV-U350", f"`CUVEE_CATALOG` is `{word}`", hint="write `on`, `cold` or `off`")
    return word.lower()


def parse_bytes(text: str) -> int:
    """`8GB`, `128MiB`, `5G`, `1000` → bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", text.lower())
    if match is None:
        raise UsageError(
            "CV-U003", f"`{text}` is not a size", hint="write a number with a unit, such as `5GB` or `128MiB`"
        )
    unit = match.group(2) or ""
    return int(float(match.group(1)) * (_BINARY.get(unit) or _UNITS[unit]))
