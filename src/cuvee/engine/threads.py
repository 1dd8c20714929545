"""Work on the tensors of a plan that is no run of it, in threads: packages, adapters. As in a run, each thread computes
with one of torch, signals end the work, and what is made whole waits until there is room.

Owns no arithmetic and no output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from cuvee.core.lazy import torch
from cuvee.engine.evaluate import Evaluator
from cuvee.engine.room import Room
from cuvee.engine.run import OneThreadEach, each, stop_flag
from cuvee.engine.streams import Stopped
from cuvee.plan.plan import Plan

Mapped = Callable[[Callable[[Any], None], Iterable[tuple[str, Any]]], None]


@contextmanager
def threads(plan: Plan, evaluator: Evaluator) -> Iterator[Mapped]:
    """Within the block, a function that calls another one for each (tensor of the plan, item), in any order.

    It returns when all are done; the first error ends the others and is raised. Raises Interrupted after a signal.
    """
    options = evaluator.options
    room = Room(plan.tensors, options.memory // max(1, options.threads))
    with OneThreadEach() as torch_mode, stop_flag() as stopped:
        evaluator.stopped = lambda: stopped.set
        with ThreadPoolExecutor(options.threads, thread_name_prefix="cuvee") as pool:

            def mapped(function: Callable[[Any], None], items: Iterable[tuple[str, Any]]) -> None:
                def one(item: tuple[str, Any]) -> None:
                    if stopped.set:
                        return
                    torch_mode.enter()
                    with (
                        torch.no_grad(),
                        room.taking(item[0], lambda: stopped.set),
                        suppress(Stopped),
                    ):
                        function(item[1])

                each(one, items, pool, stopped)

            yield mapped
