"""From exceptions to exit codes: what a person reads on stderr, and what a program reads there with `--json`.

Exit codes: 0 done · 1 failed, you can fix it · 2 bad command line or recipe · 3 the answer is no · 4 warnings under
`--strict` · 70 a bug in cuvee · 130/143 interrupted, resumable. An unknown code must be treated as failure.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from cuvee.cli.render import error_text, stderr
from cuvee.core import settings
from cuvee.errors import CuveeError, Diagnostic, Interrupted, RunError, UsageError, Where

BUG = 70


class _Terminated(KeyboardInterrupt):
    """SIGTERM, where nothing closer to the work has taken it."""


def run_guarded(command: click.Command) -> int:
    """Run a command; every failure and signal ends in a documented exit code."""
    with _terminable():
        return _guarded(command)


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM interrupts like SIGINT; the engine takes both while it works."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: Any) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _guarded(command: click.Command) -> int:
    as_json = "--json" in sys.argv
    try:
        result = command.main(prog_name="cuvee", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except CuveeError as error:
        _tell(error, as_json)
        return error.exit_code
    except click.UsageError as error:
        _tell(_usage(error), as_json)
        return 2
    except click.ClickException as error:
        _tell(UsageError("CV-U001", error.format_message()), as_json)
        return 2
    except (KeyboardInterrupt, click.Abort) as stop:
        ended = Interrupted("CV-E030", "stopped by a signal; what is finished is kept")
        terminated = isinstance(stop, _Terminated) or isinstance(stop.__cause__, _Terminated)
        ended.exit_code = 128 + (signal.SIGTERM if terminated else signal.SIGINT)
        _tell(ended, as_json)
        return ended.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except OSError as error:
        _tell(_refused(error), as_json)
        return 1
    except Exception as error:  # noqa: BLE001 (the last door: a bug must say so)
        _bug(error, as_json)
        return BUG


def _usage(error: click.UsageError) -> UsageError:
    message = error.format_message().rstrip(".")
    path = error.ctx.command_path if error.ctx else "cuvee"
    return UsageError("CV-U001", message[:1].lower() + message[1:], hint=f"`{path} --help` shows the usage")


def _refused(error: OSError) -> RunError:
    """What the operating system refused where nothing closer to the cause has said so."""
    reason = (error.strerror or str(error)).lower()
    file = str(error.filename) if error.filename is not None else None
    return RunError("CV-E005", f"a file operation failed: {reason}", where=Where(file=file))


def _tell(error: CuveeError, as_json: bool) -> None:
    if settings.flag("CUVEE_DEBUG") or "--debug" in sys.argv:
        traceback.print_exc()
    if as_json:
        content = {
            "type": "error",
            "exit_code": error.exit_code,
            "diagnostics": [d.as_dict() for d in error.diagnostics],
        }
        stderr(json.dumps(content, ensure_ascii=True))
        return
    stderr(error_text(error))


def _bug(error: Exception, as_json: bool) -> None:
    if as_json:
        diagnostic = Diagnostic("CV-X001", f"{type(error).__name__}: {error}")
        stderr(json.dumps({"type": "error", "exit_code": BUG, "diagnostics": [diagnostic.as_dict()]}))
        return
    traceback.print_exc()
    stderr("\nerror[CV-X001]: this is a bug in cuvee; please report it with the lines above")
