"""Somebody else's code chooses in a process of its own, in which no test item is to be found.

Owns the fork, what is taken out of the child, and how a choice comes back: as tensors and JSON, never as objects. What
the child changes (the referee, the phases, counters of this process) ends with it; what it may not do is the guard's
to say. Knows nothing of scoring.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from cuvee import errors
from cuvee.core import disk, linux_orphans
from cuvee.core.lazy import torch
from cuvee.core.names import printable
from cuvee.errors import CuveeError, Diagnostic, EvaluationError, Where
from cuvee.evaluate.choice import Choice
from cuvee.evaluate.guard import shut
from cuvee.evaluate.ledger import Ledger
from cuvee.evaluate.task import Task
from cuvee.methods import registry

_WEIGHTS, _REST, _PROBLEM = "weights.safetensors", "choice.json", "problem.json"
_PATIENCE = 10.0  # seconds in which a method's process ends what it started


def possible() -> bool:
    """Whether this process can be forked: the system can, and no accelerator is in use, which a fork would break."""
    return "fork" in multiprocessing.get_all_start_methods() and not _accelerated()


def _accelerated() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def ours(method: str) -> bool:
    """Whether a registered method and all its stages are part of cuvee, and no plug-in's."""
    made = [registry.stage(step.stage).function for step in registry.get(method).steps]
    return all(function.__module__.partition(".")[0] == "cuvee" for function in made)


def apart(choose: Callable[[], Choice], tasks: Iterable[Task], hidden: Sequence[Path] = ()) -> Choice:
    """What `choose` gives, run in a child process from which the test items of the tasks were removed.

    EvaluationError CV-B395 where this process cannot be forked.

    `hidden`: folders and files that it must not see, beside those of the tracks' data. The child computes with one
    thread; threads that the method leaves running are not waited for, its processes are ended, in sessions of their
    own too (on Linux); what it prints goes to the error stream. Raises what `choose` raised where that is an error of
    cuvee, else EvaluationError CV-B370 with its words; CV-B371 where the child ended without an answer.
    """
    if not possible():
        raise EvaluationError(
            "CV-B395",
            "a method was to choose in a process of its own, and this process cannot be forked: "
            f"{'an accelerator is in use' if _accelerated() else 'the system has no fork'}",
            hint="run it on Linux and the CPU, or read its code and give `isolated=False`",
        )
    every = list(tasks)
    with suppress(Exception):
        sys.stdout.flush()  # else the child holds a copy of what waits there
    context = multiprocessing.get_context("fork")
    with disk.scratch() as folder:
        work = partial(_child, choose, every, folder, hidden)
        child = context.Process(target=linux_orphans.run_and_end, args=(work,), daemon=False)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # forking beside threads: the child starts none
            child.start()
        try:
            child.join()
        except BaseException:
            child.terminate()  # interrupted: else Python would wait for it before it ends
            child.join(_PATIENCE)
            child.kill()
            child.join()
            raise
        return _brought(folder, child.exitcode)


def _child(choose: Callable[[], Choice], tasks: Sequence[Task], folder: Path, hidden: Sequence[Path]) -> None:
    _quiet()
    shut(hidden)  # first of all: a process that has begun threads is granted no namespaces
    from safetensors.torch import save

    _one_thread()
    outside = [item for task in tasks for item in (*task.train, *task.selection)]
    spared = {*map(id, outside), *(id(item.input) for item in outside)}
    for task in tasks:
        task.test.remove(spared)
    try:
        made = choose()
        rest = {"settings": made.settings, "spent": made.spent.as_json(), "log": [list(x) for x in made.log]}
        disk.write_file(folder / _WEIGHTS, save(dict(made.weights)))
        disk.write_file(folder / _REST, json.dumps(rest, default=str).encode())
    except BaseException as error:  # noqa: BLE001  # whatever it is, it is told to the referee
        disk.write_file(folder / _PROBLEM, json.dumps(_told(error)).encode())
    with suppress(Exception):
        sys.stdout.flush()
    os._exit(0)  # the choice is told: threads that the method left running must not keep the referee waiting


def _quiet() -> None:
    """What the method prints goes to the error stream: the other one is the command's, which may write JSON there."""
    sys.stdout = sys.stderr
    with suppress(OSError):
        os.dup2(2, 1)


def _one_thread() -> None:
    """Compute with one thread, whatever is asked for later: pools do not survive a fork, and are waited for forever."""
    import torch  # the module itself, as methods have it

    torch.set_num_threads(1)
    torch.set_num_threads = lambda nthreads: None


def _told(error: BaseException) -> dict[str, Any]:
    """An error as plain data, with all its diagnostics and their places."""
    if isinstance(error, CuveeError):
        return {"kind": type(error).__name__, "diagnostics": [asdict(one) for one in error.diagnostics]}
    said = printable((str(error).splitlines() or [""])[0])
    failed = Diagnostic("CV-B370", f"the method failed: {printable(type(error).__name__)}: {said}")
    return {"kind": "EvaluationError", "diagnostics": [asdict(failed)]}


def _brought(folder: Path, ended: int | None) -> Choice:
    """The choice that a child left in a folder."""
    from safetensors.torch import load

    if (folder / _PROBLEM).exists():
        raise _raised(json.loads((folder / _PROBLEM).read_text()))
    if ended != 0 or not (folder / _REST).exists():
        raise EvaluationError(
            "CV-B371",
            f"the method's process ended with {ended} before it had chosen",
            hint="-9 is usually too little memory; `isolated=False` runs the method in this process",
        )
    rest = json.loads((folder / _REST).read_text())
    weights = load((folder / _WEIGHTS).read_bytes())
    log = tuple((point, _number("log", value)) for point, value in rest["log"])
    spent = {name: _number(name, rest["spent"][name], least=0) for name in Ledger().as_json()}
    return Choice(weights, rest["settings"], Ledger(**spent), log)


def _number(name: str, value: Any, least: float = -math.inf) -> Any:
    """A number that a method's process counted; EvaluationError CV-B007 for anything that tables cannot add up."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < math.inf:
        raise EvaluationError(
            "CV-B007",
            f"the method left `{printable(repr(value))}` in the counter `{name}`",
            hint="leave `budget`, `ledger` and `log` of the selection to the referee",
        )
    return value


def _raised(told: dict[str, Any]) -> CuveeError:
    """The child's error as one of this process; its class is one of cuvee's by name."""
    kind = getattr(errors, str(told["kind"]), EvaluationError)
    if not (isinstance(kind, type) and issubclass(kind, CuveeError)):
        kind = EvaluationError
    found = [
        Diagnostic(**{**one, "where": None if one["where"] is None else Where(**one["where"])})
        for one in told["diagnostics"]
    ]
    return kind.collected(found)
