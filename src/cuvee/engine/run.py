"""Plan + sink → output: tensors in plan order, each block computed and handed to the sink, then one commit.

Each worker thread computes with one thread; parallelism is across output tensors, so that results do not depend on
the number of workers.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from cuvee.core import stopping
from cuvee.core.digests import tensor_bytes
from cuvee.core.lazy import torch
from cuvee.core.names import printable
from cuvee.core.tensors import TensorMeta
from cuvee.engine.decompositions import decomposer
from cuvee.engine.evaluate import Evaluator
from cuvee.engine.events import (
    Event,
    Figures,
    Finding,
    Finished,
    Listener,
    Profile,
    Progress,
    Started,
    ignore,
    peak_memory,
)
from cuvee.engine.fused.fuse import charging, fuse
from cuvee.engine.guard import Guard
from cuvee.engine.kernels import state
from cuvee.engine.memo import Memo
from cuvee.engine.options import RunOptions
from cuvee.engine.room import Room
from cuvee.engine.schedule import scheduled
from cuvee.engine.spent import Account, Stopwatch
from cuvee.engine.streams import Stopped
from cuvee.errors import CuveeError, Interrupted, RunError, Where
from cuvee.methods.registry import stage
from cuvee.plan.nodes import Apply, Read, walk
from cuvee.plan.plan import OutputTensor, Plan
from cuvee.sinks.sink import Session

if TYPE_CHECKING:
    from torch import Tensor

_NAP = 0.2  # seconds until the main thread looks up


def run(
    plan: Plan, session: Session, options: RunOptions, listener: Listener = ignore, memo: Memo | None = None
) -> Finished:
    """Compute every output tensor that the session does not hold yet; the caller commits.

    `memo` holds what earlier runs found out about the same nodes, and is given what this one finds.

    Raises Interrupted on SIGINT or SIGTERM (exit code 130 or 143), NonFinite, OutOfSpace and other RunErrors; what
    was finished stays in the session's journal.
    """
    began = time.monotonic()
    tell = serialised(listener)
    sources = {key: opened.source for key, opened in plan.sources.items()}
    missing = [t for t in plan.tensors if t.meta.name not in session.done]
    waiting = scheduled(missing, sources, options.threads)
    total = sum(t.meta.nbytes for t in plan.tensors)
    left = sum(t.meta.nbytes for t in waiting)
    tell(Started(len(plan.tensors), total, total - left))
    tell_of_kernels(options, tell)
    evaluator = evaluator_of(plan, options, tell, memo)
    if memo is not None:
        memo.begin()
    account, room = Account(), Room(waiting, options.memory // max(1, options.threads))
    fused = fuse(plan, options, account, memo)
    with OneThreadEach() as torch_mode, stop_flag() as stopped:
        evaluator.stopped = lambda: stopped.set

        def one(tensor: OutputTensor) -> None:
            if stopped.set:
                return
            with charging(account, tensor) as watch:
                if fused and fused.tensor(tensor, session, tell, lambda: stopped.set):
                    return
                torch_mode.enter()
                with (
                    torch.no_grad(),
                    room.taking(tensor.meta.name, lambda: stopped.set),
                ):  # modes belong to threads
                    make_tensor(tensor, evaluator, session, tell, watch)

        with ThreadPoolExecutor(options.threads, thread_name_prefix="cuvee") as pool:
            if fused:
                fused.prepare(waiting, lambda function, items: each(function, items, pool, stopped))
            with fused.ahead(waiting) if fused else nullcontext():
                each(one, waiting, pool, stopped)
        figures = recorded(evaluator, torch_mode)
    if options.profile:
        tell(_profile(account, options.threads, time.monotonic() - began))
    done = Finished(
        time.monotonic() - began, bytes_read(plan, waiting), left, peak_memory(), total - left, figures
    )
    tell(done)
    return done


def evaluator_of(
    plan: Plan, options: RunOptions, tell: Callable[[Event], None], memo: Memo | None
) -> Evaluator:
    """What computes the nodes of a plan; the memo is asked first for what their stages need to know."""
    groups = {name: [node for _, node in members] for name, members in plan.groups().items()}
    sources = {key: opened.source for key, opened in plan.sources.items()}
    guard = Guard(options, sources, tell)
    return Evaluator(sources, groups, options, guard, decompose=decomposer(options), memo=memo)


def tell_of_kernels(options: RunOptions, tell: Callable[[Event], None]) -> None:
    """Say so where compiled kernels should be there and are not: the run is right, but takes many times as long."""
    if options.kernels and options.device == "cpu" and (found := state()).failed:
        message = f"the compiled kernels cannot be used, which makes merges many times slower: {found.reason}"
        tell(Finding(printable(message, 1000), "", code="CV-E390"))


def recorded(evaluator: Evaluator, torch_mode: OneThreadEach) -> Figures:
    """What stages record for later runs; gathered again where an earlier run wrote all the tensors."""
    figures: dict[str, list[dict[str, float]]] = {}
    for nodes in evaluator.groups.values():
        recording = stage(nodes[0].stage)
        if recording.records:
            torch_mode.enter()
            with torch.no_grad():
                summary = evaluator.summary(nodes[0])
            figures.setdefault(recording.name, []).append({name: summary[name] for name in recording.records})
    return figures


def each(
    function: Callable[[Any], None], items: Iterable[Any], pool: ThreadPoolExecutor, stopped: Stop
) -> None:
    """Call the function for every item, in the threads of the pool; the first error stops the others."""
    futures = [pool.submit(function, item) for item in items]
    try:
        _wait_awake(futures)
        pending = {future for future in futures if not future.done()}
    except KeyboardInterrupt:
        stopped.signal = stopped.signal or signal.SIGINT
        pending = set(futures)
    if pending:
        stopped.failed = True
    for future in pending:
        future.cancel()
    wait(futures)  # those that had begun
    stopped.check()
    for future in futures:
        _raise(future)


def _wait_awake(futures: Collection[Future[None]]) -> None:
    """Wait for all of them, or the first error.

    Now and then awake: Python hears signals in its main thread alone, which sleeps on where the system has told another
    thread of one. `concurrent.futures.wait` with a time limit would look at every future at each waking.
    """
    left, over = set(futures), threading.Event()

    def done(future: Future[None]) -> None:
        left.discard(future)
        if not left or (not future.cancelled() and future.exception() is not None):
            over.set()

    for future in futures:
        future.add_done_callback(done)
    while futures and not over.wait(_NAP):
        pass


def _profile(account: Account, threads: int, seconds: float) -> Profile:
    rows = tuple(sorted(account.rows.values(), key=lambda row: -row.spent.busy))
    waiting = threads * seconds - sum(row.spent.busy for row in rows)
    return Profile(threads, seconds, max(0.0, waiting), rows)


def _raise(future: Future[None]) -> None:
    if not future.cancelled():
        future.result()


def make_tensor(
    tensor: OutputTensor,
    evaluator: Evaluator,
    session: Session,
    tell: Callable[[Event], None],
    watch: Stopwatch,
    span: tuple[int, int | None] = (0, None),
) -> None:
    """Compute and write one output tensor, or some of its elements, block by block.

    Reading and figures count as combining here.
    """
    name, dtype = tensor.meta.name, tensor.meta.dtype
    try:
        for start, stop, value in _runs(tensor, evaluator, span):
            result = value.to(dtype.torch)
            if tensor.action != "copied":
                evaluator.guard.check_output(value, result, name, start, tensor.meta.numel)
            watch.lap("combining")
            session.write(name, start * dtype.size, tensor_bytes(result))
            tell(Progress(name, (stop - start) * dtype.size))
            watch.lap("writing")
        session.finish(name)
    except Stopped:
        return
    except CuveeError as error:
        raise error.at(tensor=name) from None
    except (RuntimeError, ValueError, TypeError, IndexError, ZeroDivisionError) as error:
        raise RunError(
            "CV-E022",
            f"merging `{printable(name)}` ({_inputs(tensor)}) failed: {error}",
            where=Where(tensor=name),
        ) from error
    finally:
        for node in walk(tensor.node):
            if isinstance(node, Apply):
                evaluator.forget(node)


def _runs(
    tensor: OutputTensor, evaluator: Evaluator, span: tuple[int, int | None]
) -> Iterator[tuple[int, int, Tensor]]:
    for first, last in tensor.parts or (span,):
        for start, stop, value in evaluator.blocks(tensor.node, first, last):
            yield start, stop, value
            if tensor.parts and last is not None and stop > last:  # made whole: there are no other parts
                return


def _inputs(tensor: OutputTensor) -> str:
    """What went into a tensor, for an error: its stages, and the type and shape of each input."""
    nodes = list(walk(tensor.node))
    stages = " → ".join(dict.fromkeys(node.stage for node in nodes if isinstance(node, Apply)))
    reads = [node for node in nodes if isinstance(node, Read)]
    shown = ", ".join(f"`{printable(r.source, 40)}` {r.meta.dtype} {list(r.meta.shape)}" for r in reads[:8])
    more = f" and {len(reads) - 8} more" if len(reads) > 8 else ""
    return f"{stages or 'a copy'} of {shown}{more}"


def bytes_read(plan: Plan, waiting: list[OutputTensor]) -> int:
    """Bytes of the inputs of these tensors, each counted once, as far as they are read."""
    from cuvee.plan.cost import inputs_of
    from cuvee.sources.spared import SparedSource

    def nbytes(key: str, meta: TensorMeta) -> int:
        source = plan.sources[key].source
        return source.stored(meta.name).nbytes if isinstance(source, SparedSource) else meta.nbytes

    return sum(nbytes(key, meta) for (key, _), meta in inputs_of(waiting).items())


class Stop:
    """Whether work must end soon, and why."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.failed = False

    @property
    def set(self) -> bool:
        return self.failed or self.signal is not None

    def check(self) -> None:
        if self.signal is None:
            return
        error = Interrupted("CV-E030", "stopped by a signal; what is finished is kept")
        error.exit_code = 128 + self.signal
        raise error


@contextmanager
def stop_flag() -> Iterator[Stop]:
    """SIGINT and SIGTERM ask politely the first time; a second one interrupts at once."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def on_signal(number: int, frame: Any) -> None:
        if stop.signal is not None:
            raise KeyboardInterrupt
        stop.signal = number
        stopping.ask()  # what waits for a server

    old = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        try:
            for number, handler in old.items():
                signal.signal(number, handler)
        finally:
            stopping.withdraw()  # last: nothing asks any more


class OneThreadEach:
    """Torch computes with one thread from the first `enter` to the end of the block; without one it is not imported."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._before: int | None = None
        self._threads = threading.local()

    def enter(self) -> None:
        if hasattr(self._threads, "entered"):
            return
        self._threads.entered = True
        with self._lock:
            if self._before is None:
                self._before = torch.get_num_threads()
            torch.set_num_threads(1)  # OpenMP keeps the number for each thread

    def __enter__(self) -> OneThreadEach:
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            torch.set_num_threads(self._before)


def serialised(listener: Listener) -> Callable[[Event], None]:
    """The listener, told one event at a time."""
    lock = threading.Lock()

    def tell(event: Event) -> None:
        with lock:
            listener(event)

    return tell
