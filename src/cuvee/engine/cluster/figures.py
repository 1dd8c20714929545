"""The map step: figures that span many tensors, gathered by workers, combined by the driver in a fixed order.

Counts are integers and sums come in fixed tiles, so the result does not depend on who counted what, or when. What the
compiled kernels do not know is summarised by one worker for each group, exactly as on one machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from cuvee.core.lazy import numpy
from cuvee.engine.cluster.crew import Crew, Task
from cuvee.engine.cluster.portable import restored
from cuvee.engine.cluster.work import Sought
from cuvee.engine.fused.builder import Unfusable
from cuvee.engine.fused.figures import depends, wanted
from cuvee.engine.fused.fuse import Work, fuse
from cuvee.engine.fused.passes import Tally
from cuvee.engine.memo import Memo
from cuvee.engine.options import RunOptions
from cuvee.engine.spent import Account
from cuvee.methods.registry import stage
from cuvee.plan.nodes import Apply, walk
from cuvee.plan.plan import OutputTensor, Plan

_SHARES = 4  # pieces of work for each worker in a round


class Ended(Exception):
    """Work must end before all figures were found."""


def learn(
    plan: Plan,
    waiting: Sequence[OutputTensor],
    crew: Crew,
    options: RunOptions,
    known: Callable[[str, Sequence[Apply]], Any] | None = None,
) -> set[str]:
    """Find what groups of tensors must know, and have every later task told of it (`crew.learned`).

    `known` may have figures of groups beforehand.

    Returns the tensors that are to be made whole: kernels know their figures, the generic path would not.
    """
    groups = plan.groups()
    needed = {n.group for t in waiting for n in walk(t.node) if isinstance(n, Apply) and n.group}
    memo = Memo(known=known)
    fused = fuse(plan, options, Account(), memo) if needed else None
    complete: set[str] = set()
    if fused is not None:

        def mapped(function: Callable[[Any], None], items: Iterable[Work]) -> None:
            _publish(groups, memo, crew)
            _sweep(list(items), crew)

        fused.prepare(waiting, mapped)
        complete = _publish(groups, memo, crew)
        for tensor in waiting:
            if not fused.takes(tensor):
                complete -= {n.group or "" for n in walk(tensor.node) if isinstance(n, Apply)}
    rest = [g for g in groups if g in needed and g not in complete and _summarised(groups[g][0][1])]
    crew.run(
        [Task("summary", (group,), 1, group) for group in rest],
        lambda task, found: crew.tell((task.payload[0], "summary"), found),
    )
    return {
        t.meta.name for t in waiting if complete & {n.group for n in walk(t.node) if isinstance(n, Apply)}
    }


def _summarised(node: Apply) -> bool:
    return stage(node.stage).scope_for(dict(node.values)) is not None


def _publish(groups: Any, memo: Memo, crew: Crew) -> set[str]:
    """Tell the crew all figures that are known; the groups that lack none."""
    complete = set()
    for group, members in groups.items():
        nodes = [node for _, node in members]
        names = wanted(nodes[0])
        found = {name: memo.get(name, nodes, depends(nodes[0], name)) for name in names}
        for name, values in found.items():
            if values is not None:
                crew.tell((group, name), values)
        if names and all(values is not None for values in found.values()):
            complete.add(group)
    return complete


def _sweep(items: list[Work], crew: Crew) -> None:
    """One round of probes over many tensors; Unfusable where a worker cannot tell."""
    numbers: dict[int, int] = {}
    tallies: list[Tally] = []
    work: list[tuple[int, tuple[Sought, ...]]] = []
    for tensor, parts in items:
        sought = []
        for part in parts:
            if id(part.tally) not in numbers:
                numbers[id(part.tally)] = len(tallies)
                tallies.append(part.tally)
            number = numbers[id(part.tally)]
            sought.append(Sought(part.node.group or "", part.place, number, part.tally.probe))
        work.append((tensor.meta.nbytes, tuple(sought)))
    crew.run(_tasks(work, crew.size), lambda task, found: _combine(found, tallies))
    if crew.stopped():  # counts are not whole
        raise Ended


def _tasks(work: list[tuple[int, tuple[Sought, ...]]], workers: int) -> list[Task]:
    """Neighbours together, the largest pieces first."""
    share = sum(size for size, _ in work) // (workers * _SHARES) + 1
    tasks: list[Task] = []
    held: list[tuple[Sought, ...]] = []
    filled = 0
    for size, sought in work:
        held.append(sought)
        filled += size
        if filled >= share:
            tasks.append(Task("sweep", (tuple(held),), filled, held[0][0].group))
            held, filled = [], 0
    if held:
        tasks.append(Task("sweep", (tuple(held),), filled, held[0][0].group))
    return sorted(tasks, key=lambda task: -task.cost)


def _combine(found: Any, tallies: list[Tally]) -> None:
    if found is None:
        raise Unfusable("a worker leaves it to the generic path")
    for number, packed in found.items():
        tally, values = tallies[number], restored(packed)
        if isinstance(values, dict):
            tally.entries.update(values)
            continue
        for table, counts in zip(tally.tables, values, strict=True):
            total = numpy.frombuffer(table, numpy.uint64)
            total += numpy.frombuffer(counts, numpy.uint64)
