"""Threads that wait for answers from elsewhere, and never keep the process from ending.

A `ThreadPoolExecutor` is joined when the interpreter ends, however long a server lets one of its threads wait; these
are not.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from typing import Any, TypeVar

from cuvee.core import stopping
from cuvee.errors import Interrupted

_LOOK = 0.2  # seconds between two looks at whether the process must end
T = TypeVar("T")


class Askers:
    """Up to `size` threads, started as they are needed; safe from any thread."""

    def __init__(self, size: int, name: str) -> None:
        self._size, self._name = size, name
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = (
            queue.SimpleQueue()
        )
        self._lock = threading.Lock()
        self._threads = self._busy = 0

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Call the function in one of the threads."""
        future: Future[T] = Future()
        with self._lock:
            self._busy += 1
            self._work.put((future, function, arguments))
            if self._threads < min(self._size, self._busy):
                threading.Thread(target=self._serve, name=self._name, daemon=True).start()
                self._threads += 1
        return future

    def map(self, function: Callable[[Any], T], items: Iterable[Any]) -> list[T]:
        """The function of every item, in order; the first error of any ends it."""
        futures = [self.submit(function, item) for item in items]
        return [answer(future) for future in futures]

    def _serve(self) -> None:
        while True:
            future, function, arguments = self._work.get()
            try:
                future.set_result(function(*arguments))
            except BaseException as error:  # noqa: BLE001 - it is the asker's
                future.set_exception(error)
            with self._lock:
                self._busy -= 1
            del future, function, arguments  # or they would live until the next work comes


def answer(future: Future[T]) -> T:
    """What comes of it; Interrupted when the process must end before."""
    while True:
        try:
            return future.result(_LOOK)
        except NotYet:
            if future.done():  # the work itself ended so
                return future.result()
            if stopping.asked():
                raise stopped() from None


def stopped() -> Interrupted:
    """The process must end before an answer came."""
    return Interrupted("CV-E030", "stopped by a signal while a server was waited for")
