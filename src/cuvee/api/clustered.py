"""A run on a cluster that leaves out what one on this machine would: by a catalogue, and what an earlier output holds.

Owns what the driver is told about both. What workers do with it is the engine's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cuvee.api.budgeted_plan import Budgeted
from cuvee.api.remerge import Remerge
from cuvee.api.sparing import refuse_others, spared
from cuvee.core.digests import REGION
from cuvee.engine.cluster.drive import Runner, drive
from cuvee.engine.cluster.job import ClusterOptions, Known, Origin
from cuvee.engine.cluster.regions import Taken
from cuvee.engine.events import Finished, Listener, Progress, ignore
from cuvee.engine.options import RunOptions
from cuvee.engine.run import serialised
from cuvee.engine.tables import Tables
from cuvee.plan.nodes import Apply, walk
from cuvee.plan.plan import OutputTensor, Plan
from cuvee.plan.sharing import StandIns
from cuvee.sinks.watched import Watched

if TYPE_CHECKING:
    from cuvee.sinks.sink import Staging

_NOTHING = Taken({}, {})


def on_cluster(origin: Origin, cluster: ClusterOptions, taken: Taken = _NOTHING) -> Runner:
    """A runner to be given to `save`: the plan built from `origin`, run by the workers of a Ray cluster.

    Workers read what the catalogue leaves, and are told thresholds that it knows; what is `taken` they do not make.
    """

    def run(plan: Plan, session: Staging, options: RunOptions, listener: Listener = ignore) -> Finished:
        less = spared(plan, options)
        refuse_others(less.prints)
        known = _known(plan, less.stand_ins, less.tables)
        figure = None if less.tables is None else less.tables.figure
        return drive(less.plan, session, options, listener, origin, cluster, known, figure, taken)

    return run


def within_on_cluster(asked: Budgeted, origin: Origin, cluster: ClusterOptions) -> Runner:
    """A runner for a plan within a budget: workers read what the budget leaves, and look for no threshold in it."""

    def run(plan: Plan, session: Staging, options: RunOptions, listener: Listener = ignore) -> Finished:
        refuse_others(asked.prints)
        tables, built = asked.tables, replace(asked.whole, layout=plan.layout).digest
        known = _known(plan, asked.stand_ins, tables, asked.facts, built)
        figure = None if tables is None else tables.figure
        return drive(plan, session, options, listener, origin, cluster, known, figure)

    return run


def _known(
    plan: Plan,
    stand_ins: StandIns,
    tables: Tables | None,
    facts: Mapping[str, Any] | None = None,
    built: str = "",
) -> Known:
    """What workers are told: thresholds within tensors that are known, and those that must not be looked for."""
    cuts: dict[str, dict[int, Any]] = {}
    needed: dict[str, list[int]] = {}
    found = Known(stand_ins, cuts, needed, facts or {}, built)
    if tables is None:
        return found
    for tensor in plan.tensors:
        for number, node in enumerate(walk(tensor.node)):
            if id(node) in tables.needed:
                needed.setdefault(tensor.meta.name, []).append(number)
            if isinstance(node, Apply) and node.group is None:
                told = tables.figure("cuts", [node])
                if told is not None:
                    cuts.setdefault(tensor.meta.name, {})[number] = told
    return found


def again_on_cluster(found: Remerge, runner: Callable[[Taken], Runner]) -> Runner:
    """What runs a re-merge: this machine copies what is the same, workers make the rest.

    `runner` gives the runner to which so much is told to be there.
    """

    def run(plan: Plan, session: Staging, options: RunOptions, listener: Listener = ignore) -> Finished:
        tell = serialised(listener)
        mended = found.checked(tell)
        if mended is None:
            return runner(_NOTHING)(plan, session, options, tell)
        copied = [name for name in found.reused if name not in session.done]
        for name in copied:
            found.copy(name, session, lambda nbytes, name=name: tell(Progress(name, nbytes)))  # type: ignore[misc]
        parts = {t.meta.name: t.parts for t in found.lighter.tensors if t.parts and _aligned(t)}
        blocks = {name: mended.run(name) for name in parts}
        taken = Taken(parts, blocks)
        return runner(taken)(plan, Watched(session, besides=copied), options, tell)

    return run


def _aligned(tensor: OutputTensor) -> bool:
    """Whether parts of a tensor begin where its bytes are hashed anew."""
    ends = [end for part in tensor.parts for end in part if end != tensor.meta.numel]
    return not any(end * tensor.meta.dtype.size % REGION for end in ends)


__all__ = ["again_on_cluster", "on_cluster", "within_on_cluster"]
