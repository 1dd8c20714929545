"""What a catalogue saves a merge without changing a byte: equal blocks are read once, thresholds are known beforehand.

Owns the way from a plan to one that reads less. What may be left out is decided in `plan.sharing`; with a loss, in
`api.budget`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from cuvee.api.inputs import changed
from cuvee.api.recording import recorder_of
from cuvee.engine.events import Finished, Listener, ignore
from cuvee.engine.kernels import kernels
from cuvee.engine.memo import Memo
from cuvee.engine.options import RunOptions
from cuvee.engine.run import run
from cuvee.engine.tables import THINNING, Tables, task_vector
from cuvee.errors import Diagnostic
from cuvee.plan.explain import size
from cuvee.plan.nodes import Apply, Convert, Difference, Node, Read, walk
from cuvee.plan.plan import Plan
from cuvee.plan.sharing import StandIns, nbytes_of, shared, wrapped
from cuvee.sinks.sink import Session
from cuvee.sources.catalogue import digests_of, fingerprint, kept, known_of
from cuvee.sources.source import Source, stored_form
from cuvee.sources.spared import SparedSource

Key = tuple[str, str]  # source, tensor
Prints = tuple[tuple[Source, str | None], ...]


@dataclass(frozen=True, slots=True)
class Spared:
    """A plan that reads less, the thresholds that are known (None: none are), and the bytes that are not read.

    `prints` are the sources' fingerprints from before their catalogue was asked.
    """

    plan: Plan
    tables: Tables | None
    nbytes: int
    stand_ins: StandIns = field(default_factory=dict)
    prints: Prints = ()

    @property
    def runner(self) -> Callable[..., Finished]:
        """What runs the plan with the thresholds at hand; RunError when a source is not what its catalogue told of."""
        return run if self.tables is None and not self.nbytes else runner_of(self.tables, self.prints)


def runner_of(tables: Tables | None, prints: Prints) -> Callable[..., Finished]:
    """What runs a plan with these thresholds, once it has seen that the sources are those of the fingerprints."""

    def runner(plan: Plan, session: Session, options: RunOptions, listener: Listener = ignore) -> Finished:
        refuse_others(prints)
        return run(plan, session, options, listener, None if tables is None else memo_of(tables))

    return runner


def prints_of(plan: Plan) -> Prints:
    """The fingerprints that the sources of a plan have now."""
    return tuple((opened.source, fingerprint(opened.source)) for opened in plan.sources.values())


def refuse_others(prints: Prints) -> None:
    """RunError when a source is not what it was when its catalogue was asked; of one without files nothing was told."""
    for source, before in prints:
        if before is not None and fingerprint(source) != before:
            raise changed(source.label)


def memo_of(tables: Tables) -> Memo:
    """What hands thresholds to a run, and keeps nothing of it."""
    return Memo(known=tables.figure, keeps=False)


def spared(plan: Plan, options: RunOptions, besides: StandIns | None = None) -> Spared:
    """The plan with every block that a catalogue proves needless left to another source; the same bytes come out.

    `besides`: blocks that nobody will ask for.
    """
    if (
        not options.catalogue
        or not kept()
        or (options.recording == "on" and recorder_of(plan, options) is not None)
        or any(isinstance(o.source, SparedSource) for o in plan.sources.values())
    ):
        return Spared(plan, None, 0)
    prints = prints_of(plan)
    tables = tables_of(plan, options)
    if any(hasattr(opened.source, "changes") for opened in plan.sources.values()):
        return Spared(plan, tables, 0, prints=prints)  # adapters look at the very source they lie on
    digests = {key: found for key, o in plan.sources.items() if (found := digests_of(o.source)) is not None}
    stand_ins = shared(plan, digests)
    equal = sum(_nbytes(plan, stand_ins))
    if tables is not None:
        add(stand_ins, _trimmed(plan, tables))
    add(stand_ins, besides or {})
    nbytes = sum(_nbytes(plan, stand_ins))
    if not nbytes:
        return Spared(plan, tables, 0, prints=prints)
    total = sum(
        stored_form(o.source, name).nbytes for o in plan.sources.values() for name in o.source.tensors
    )
    trimmed = f", {size(nbytes - equal)} are trimmed whole" if nbytes > equal else ""
    message = f"{size(nbytes)} of {size(total)} are not read: {size(equal)} equal other inputs{trimmed}"
    note = Diagnostic("CV-P280", message, severity="note")
    lighter = replace(wrapped(plan, stand_ins), notes=(*plan.notes, note))
    return Spared(lighter, tables, nbytes, stand_ins, prints)


def tables_of(plan: Plan, options: RunOptions) -> Tables | None:
    """What is catalogued of the plan's task vectors; None without compiled kernels, or where nothing is."""
    pairs = {
        (taken[0].source, taken[1].source)
        for tensor in plan.tensors
        for node in walk(tensor.node)
        if isinstance(node, Difference) and (taken := task_vector(node)) is not None
    }
    if not pairs or not options.kernels or options.device != "cpu":
        return None
    found = {}
    for expert, base in sorted(pairs):
        known = known_of(plan.sources[base].source, plan.sources[expert].source)
        if known is not None:
            found[expert, base] = known
    machine = kernels() if found else None
    if machine is None:
        return None
    groups = {name: [node for _, node in members] for name, members in plan.groups().items()}
    changes = {pair: known.changes for pair, known in found.items()}
    wholes = {pair: known.whole for pair, known in found.items() if known.whole is not None}
    return Tables(changes, machine, groups, wholes)


def _trimmed(plan: Plan, tables: Tables) -> StandIns:
    """Blocks of experts in which nothing reaches the threshold, where nothing else looks at them: the base's do.

    What is kept are the largest magnitudes of a count that does not change, so thresholds found without these blocks
    are the same, too.
    """
    found: StandIns = {}
    for (key, name), stages in _thinned(plan).items():
        idle = frozenset.intersection(*(tables.idle(node) for node in stages))
        taken = task_vector(stages[0].inputs[0])
        if idle and taken is not None:
            found.setdefault(key, {})[name] = dict.fromkeys(sorted(idle), taken[1].source)
    return found


def _thinned(plan: Plan) -> dict[Key, list[Apply]]:
    """Tensors of experts that nothing but thinning stages without rescaling looks at, and these; plain ones alone."""
    found: dict[Key, list[Apply]] = {}
    lost: set[Key] = set()
    for tensor in plan.tensors:
        for parent, child in _edges(tensor.node):
            taken = task_vector(child)
            if taken is not None and _thins(parent):
                found.setdefault((taken[0].source, taken[0].meta.name), []).append(parent)
            elif taken is not None:
                lost.add((taken[0].source, taken[0].meta.name))
            lost |= _seen(parent, child)
    bases: dict[Key, set[str]] = {}
    for key, nodes in found.items():
        bases[key] = {taken[1].source for n in nodes if (taken := task_vector(n.inputs[0])) is not None}
    return {
        key: nodes
        for key, nodes in found.items()
        if key not in lost and len(bases[key]) == 1 and _plain(plan, *key)
    }


def _edges(root: Node) -> Iterator[tuple[Any, Node]]:
    """Every node with each of its children; the root as the child of None."""
    yield None, root
    for node in walk(root):
        for child in node.children:
            yield node, child


def _thins(node: Any) -> bool:
    return isinstance(node, Apply) and node.stage in THINNING and dict(node.values)["rescale"] == "none"


def _seen(parent: Any, child: Node) -> set[Key]:
    """The tensor that a node looks at itself, besides the expert of a task vector (which `_thinned` counts)."""
    inner = child.child if isinstance(child, Convert) else child
    if not isinstance(inner, Read) or (isinstance(parent, Convert) and isinstance(parent.child, Read)):
        return set()
    own = task_vector(parent) if parent is not None else None
    return set() if own is not None and inner is own[0] else {(inner.source, inner.meta.name)}


def _plain(plan: Plan, key: str, name: str) -> bool:
    source = plan.sources[key].source
    extent = source.extent(name)
    return extent is not None and extent.nbytes == source.tensors[name].nbytes


def add(stand_ins: StandIns, more: StandIns) -> None:
    """Take stand-ins for blocks that have none yet."""
    for key, tensors in more.items():
        for name, blocks in tensors.items():
            known = stand_ins.setdefault(key, {}).setdefault(name, {})
            known.update({number: other for number, other in blocks.items() if number not in known})


def _nbytes(plan: Plan, stand_ins: StandIns) -> Iterator[int]:
    for key, tensors in stand_ins.items():
        for name, blocks in tensors.items():
            yield from (nbytes_of(plan, key, name, number) for number in blocks)
