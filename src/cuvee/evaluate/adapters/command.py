"""Any program that prints JSON as an evaluation: it is given the model's folder and prints scores by task."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cuvee.core import disk
from cuvee.core.names import printable
from cuvee.errors import EvaluationError, UsageError
from cuvee.evaluate.adapters.outcome import Outcome, checked

PLACE = "{model}"
_PARTS = ("scores", "items", "versions", "prompts", "settings")
_MOST = 64 << 20  # bytes that a program may print
_LAST = 1 << 16  # bytes of its complaints that are looked at
_LOOK = 0.2  # seconds between two looks at how much it has printed


def run(program: Sequence[str] | str, model: str, *, timeout: float = 3600.0) -> Outcome:
    """Run a program on a model and read its scores.

    `program` is a list of arguments, or a line that is split as a shell would but not run by one; `{model}` in it
    becomes the model's path. The program prints one JSON object, alone or as its last line: scores by task
    (`{"task": 0.5}`, `{"task": {"metric": 0.5}}`), or an object with `scores` and, optionally, `items` (single numbers
    by task), `versions`, `prompts` and `settings`.

    It reads nothing (its standard input is empty), and what it started itself ends with it where it takes too long.

    Raises UsageError CV-U311 without `{model}` or for a line that cannot be split, CV-U390 for a timeout that is no
    time, EvaluationError CV-B311 where the program fails or takes longer than `timeout` seconds, CV-B312 where it
    prints no scores, or more than 64 MiB.
    """
    if not 0 < timeout <= threading.TIMEOUT_MAX:
        raise UsageError("CV-U390", f"a program cannot be given {timeout:g} seconds", hint="give more than 0")
    given = _split(program) if isinstance(program, str) else list(program)
    if not any(PLACE in part for part in given):
        raise UsageError(
            "CV-U311",
            f"the command `{printable(shlex.join(given))}` does not say where the model goes",
            hint=f"put `{PLACE}` where it takes the model's path",
        )
    began = time.monotonic()
    printed = _printed([part.replace(PLACE, model) for part in given], timeout)
    content = _content(printed, given[0])
    scores = _scores(content["scores"])
    checked(given[0], scores, content.get("items", {}))
    return Outcome(
        program="command",
        model=model,
        scores=scores,
        items=content.get("items", {}),
        versions=content.get("versions", {}),
        settings={"command": shlex.join(given), **content.get("settings", {})},
        prompts=content.get("prompts", {}),
        seconds=time.monotonic() - began,
    )


def _split(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise UsageError(
            "CV-U311",
            f"the command `{printable(line)}` cannot be split into words: {error}",
            hint="close what is quoted",
        ) from error


def _printed(arguments: Sequence[str], timeout: float) -> str:
    """What the program printed; EvaluationError unless it ended with 0 in time, and printed no more than is kept."""
    name = printable(arguments[0])
    with disk.scratch() as folder:  # files, not memory: it may print whatever it likes
        said, complained = folder / "said", folder / "complained"
        code = _ended(arguments, (said, complained), timeout)
        last = _tail(complained).strip().splitlines() or ["it said nothing"]
        if code:
            raise EvaluationError("CV-B311", f"`{name}` ended with code {code}: {printable(last[-1])}")
        return said.read_bytes().decode(errors="replace")


def _ended(arguments: Sequence[str], streams: tuple[Path, Path], timeout: float) -> int:
    """The code a program ended with; its output and its complaints are in these files."""
    name, end = printable(arguments[0]), time.monotonic() + timeout
    program = _started(arguments, streams)
    try:
        while True:
            with suppress(subprocess.TimeoutExpired):
                program.wait(max(0.0, min(_LOOK, end - time.monotonic())))
            if any(stream.stat().st_size > _MOST for stream in streams):
                raise EvaluationError(
                    "CV-B312", f"`{name}` printed more than {_MOST >> 20} MiB; scores are a few lines of JSON"
                )
            if program.returncode is not None:
                return program.returncode
            if time.monotonic() >= end:
                raise EvaluationError("CV-B311", f"`{name}` took longer than {timeout:g} s")
    finally:
        _end(program)


def _started(arguments: Sequence[str], streams: tuple[Path, Path]) -> subprocess.Popen[bytes]:
    """The program, running in a session of its own."""
    opened = [disk.REAL.create(stream, 0) for stream in streams]
    try:
        return subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=opened[0].number,
            stderr=opened[1].number,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise EvaluationError(
            "CV-B311", f"`{printable(arguments[0])}` cannot be run: {printable(str(error))}"
        ) from error
    finally:
        for handle in opened:
            disk.REAL.close(handle)


def _tail(stream: Path) -> str:
    """The end of what a program said."""
    with stream.open("rb") as opened:
        opened.seek(max(0, stream.stat().st_size - _LAST))
        return opened.read().decode(errors="replace")


def _end(program: subprocess.Popen[bytes]) -> None:
    """End a program that still runs, interrupted or too slow, and what it started: a shell alone would leave it."""
    if program.poll() is None:
        if hasattr(os, "killpg"):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(program.pid, signal.SIGKILL)
        program.kill()
        program.wait()


def _content(printed: str, name: str) -> Mapping[str, Any]:
    """The JSON object: all that was printed, or the last line that is one."""
    for text in (printed, *reversed(printed.strip().splitlines())):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):  # brackets within brackets by the thousand are no scores either
            continue
        if isinstance(found, dict):
            return _shaped(found, name)
    raise EvaluationError("CV-B312", f"`{printable(name)}` printed no JSON object")


def _shaped(found: dict[str, Any], name: str) -> Mapping[str, Any]:
    content = found if isinstance(found.get("scores"), dict) else {"scores": found}
    wrong = [part for part in _PARTS if not isinstance(content.get(part, {}), dict)]
    if wrong:
        raise EvaluationError("CV-B312", f"`{wrong[0]}` in the JSON of `{printable(name)}` is no object")
    return content


def _scores(found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Scores by task and metric."""
    return {
        task: dict(value) if isinstance(value, dict) else {"score": value} for task, value in found.items()
    }
