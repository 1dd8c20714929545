"""Workers on a Ray cluster: work is handed out one piece at a time, and handed out again when a worker dies.

Owns Ray: nothing else imports it. Must not know what the work is.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from cuvee.core import settings
from cuvee.core.names import printable
from cuvee.engine.cluster.job import ClusterOptions, Failed, Job, failed
from cuvee.errors import CuveeError, RunError, UsageError

_LOOK = 0.2  # seconds between two looks at whether work must end
_STARTS = 3  # workers that may die in a row before one was ready


@dataclass(slots=True, eq=False)
class Task:
    """A piece of work: a method of `Workplace` and its arguments; `about` names it in errors."""

    method: str
    payload: tuple[Any, ...]
    cost: int
    about: str
    lost: int = 0


@dataclass(slots=True, eq=False)
class _Worker:
    actor: Any
    ready: bool = False
    task: Task | None = None


@dataclass(slots=True)
class Crew:
    """The workers of one run; a context manager. `learned` goes with every piece of work."""

    job: Job
    options: ClusterOptions
    stopped: Callable[[], bool]
    size: int = 1
    learned: dict[tuple[str, str], Any] = field(default_factory=dict)
    losses: int = 0
    _ray: Any = None
    _kind: Any = None
    _told: Any = None
    _job: Any = None
    _sent: Any = None
    _workers: dict[Any, _Worker] = field(default_factory=dict)  # by what they are waited for
    _idle: list[_Worker] = field(default_factory=list)
    _died: int = 0
    _mine: bool = False

    def __enter__(self) -> Crew:
        self._ray = _ray()
        if not self._ray.is_initialized():
            settings.preset("RAY_USAGE_STATS_ENABLED", "0")
            self._mine = True
            self._connect()
        cpus = int(self._ray.cluster_resources().get("CPU", 1))
        self.size = max(1, self.options.workers or cpus)
        self._kind = self._ray.remote(num_cpus=1, max_restarts=0)(_Remote)
        self._job = self._ray.put(self.job)
        self._tell_all()
        for _ in range(self.size):
            self._hire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in [*self._workers.values(), *self._idle]:
            self._ray.kill(worker.actor, no_restart=True)
        self._workers, self._idle = {}, []
        if self._mine:
            self._ray.shutdown()

    def tell(self, key: tuple[str, str], value: Any) -> None:
        """Have every later piece of work told of a value."""
        if key not in self.learned:
            self.learned[key] = value
            self._sent = None

    def run(self, tasks: Sequence[Task], done: Callable[[Task, Any], None]) -> None:
        """Have all tasks done, the first ones first; `done` is called once for each, in this thread.

        Returns early when work must end. Raises what a worker raised, CV-E210 when a task was lost too often, and
        CV-E211 when no worker can be had.
        """
        waiting = deque(tasks)
        left = len(waiting)
        since = time.monotonic()
        if self._sent is None:
            self._tell_all()
        while left and not self.stopped():
            while waiting and self._idle:
                self._give(self._idle.pop(), waiting.popleft())
            finished, _ = self._ray.wait(list(self._workers), num_returns=1, timeout=_LOOK)
            for ref in finished:
                worker = self._workers.pop(ref)
                task, worker.task = worker.task, None
                if not self._took(ref, worker, task, done):
                    if task is not None:
                        waiting.appendleft(task)
                elif task is not None:
                    left -= 1
            if finished:
                since = time.monotonic()
            elif time.monotonic() - since > self.options.patience and not self._any_ready():
                raise _no_workers(f"none was ready in {self.options.patience:.0f} seconds")

    def _took(self, ref: Any, worker: _Worker, task: Task | None, done: Callable[[Task, Any], None]) -> bool:
        """Take what a worker answered; False when it was lost."""
        from ray.exceptions import RayError, RayTaskError

        try:
            answer = self._ray.get(ref)
        except RayTaskError as error:
            cause = printable(str(error.cause or error).strip().splitlines()[-1], 300)
            raise RunError("CV-E213", f"a worker failed: {cause}") from error
        except RayError:
            self._lose(worker, task)
            return False
        if isinstance(answer, Failed):
            raise answer.error()
        if task is None:
            self._died, worker.ready = 0, True
        else:
            done(task, answer)
        self._idle.append(worker)
        return True

    def _lose(self, worker: _Worker, task: Task | None) -> None:
        """A worker died: another one takes its place."""
        self.losses += 1
        if task is None:
            self._died += 1
            if self._died > _STARTS + self.size:
                raise _no_workers("they die before they begin")
        else:
            task.lost += 1
            if task.lost > self.options.retries:
                raise RunError(
                    "CV-E210",
                    f"{task.lost} workers died while they worked on `{printable(task.about)}`",
                    hint="look for what kills them (memory, most often); the same command goes on from what is done",
                )
        self._ray.kill(worker.actor, no_restart=True)
        self._hire()

    def _give(self, worker: _Worker, task: Task) -> None:
        worker.task = task
        self._workers[worker.actor.call.remote(task.method, task.payload, self._sent)] = worker

    def _hire(self) -> None:
        worker = _Worker(self._kind.remote(self._job))
        self._workers[worker.actor.ready.remote()] = worker

    def _any_ready(self) -> bool:
        return any(worker.ready for worker in [*self._workers.values(), *self._idle])

    def _tell_all(self) -> None:
        self._sent = self._ray.put(dict(self.learned))

    def _connect(self) -> None:
        heard = signal.getsignal(signal.SIGTERM)
        try:
            self._ray.init(
                address=self.options.address,
                include_dashboard=None,
                log_to_driver=False,
                logging_level="error",
            )
        except Exception as error:  # noqa: BLE001 - Ray has no error of its own for a cluster that does not start
            reason = printable(next(iter(str(error).strip().splitlines()), type(error).__name__), 200)
            raise UsageError("CV-U212", f"the Ray cluster cannot be reached: {reason}") from None
        finally:
            if heard is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, heard)  # Ray puts a handler of its own there


class _Remote:
    """What runs in a worker's process."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._place: Any = None

    def ready(self) -> Any:
        """Plan; whether the staged output is seen from here."""
        from cuvee.engine.cluster.work import Workplace

        try:
            self._place = Workplace(self._job)
        except CuveeError as error:
            return failed(error)
        return self._place.sees

    def call(self, method: str, payload: tuple[Any, ...], learned: Any) -> Any:
        """Do a piece of work."""
        try:
            return getattr(self._place, method)(*payload, learned)
        except CuveeError as error:
            return failed(error)


def _no_workers(reason: str) -> RunError:
    return RunError(
        "CV-E211",
        f"no worker can be had: {reason}",
        hint="look at `ray status`, and whether every machine has the same cuvee and sees the sources",
    )


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise UsageError(
            "CV-U210",
            "`--engine ray` needs Ray, which is not installed",
            hint="install it with `pip install 'cuvee[cluster]'`, here and on every machine of the cluster",
        ) from None
    return ray
