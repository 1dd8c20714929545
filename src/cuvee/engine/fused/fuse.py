"""The fast path of a run: which tensors it takes, their figures, and their bytes on the way to the session.

Whatever is out of the ordinary (a NaN, an unreadable file, an expression that is not recognised) is left to the
generic path, which computes the tensor from its start and says what is wrong. Must not import torch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

from cuvee.core.dtypes import DType
from cuvee.core.tensors import Extent, Held, Pieces
from cuvee.engine.blocks import LINE
from cuvee.engine.events import Event, Progress
from cuvee.engine.fused.ahead import Ahead
from cuvee.engine.fused.builder import STORES, Unfusable, program_of
from cuvee.engine.fused.copies import copy
from cuvee.engine.fused.drops import draws
from cuvee.engine.fused.feed import Feed, Key, Lies, Worker, opened
from cuvee.engine.fused.figures import depends, gathering, wanted
from cuvee.engine.fused.marks import Marking, marked
from cuvee.engine.fused.passes import Part, Tally, gather, lacking, pending, run, sweep
from cuvee.engine.fused.recognise import computable, copied, extents_of, storable
from cuvee.engine.fused.rows import merge_rows, pruned
from cuvee.engine.fused.shelf import provide
from cuvee.engine.kernels import Kernels, kernels
from cuvee.engine.memo import Memo
from cuvee.engine.options import RunOptions
from cuvee.engine.spent import Account, Stopwatch
from cuvee.errors import CuveeError
from cuvee.plan.nodes import Apply, Node, walk
from cuvee.plan.plan import OutputTensor, Plan
from cuvee.sinks.sink import Session
from cuvee.sources.spared import SparedSource

_STEP = 128 * LINE  # elements; a block of every input then fits the second-level cache
_LEAST = 16 * LINE

Members = list[tuple[OutputTensor, Apply]]
Work = tuple[OutputTensor, list[Part]]
Known = dict[int, dict[str, Any]]
Map = Callable[[Callable[[Any], None], Iterable[Any]], None]


class Fused:
    """The tensors of a plan that the compiled kernels can make."""

    def __init__(
        self, plan: Plan, options: RunOptions, machine: Kernels, account: Account, memo: Memo | None
    ) -> None:
        self._plan = plan
        self._options = options
        self._kernels = machine
        self._account = account
        self._memo = memo
        self._sources = {key: opened.source for key, opened in plan.sources.items()}
        self._exactly = any(isinstance(source, SparedSource) for source in self._sources.values())
        self._consumed: Callable[[int], None] = _nobody
        self._workers = threading.local()
        self._shared: Known = {}  # figures that span several tensors, by node
        self._groups = {name: members for name, members in plan.groups().items() if wanted(members[0][1])}
        self._turns: dict[str, int] = {}  # the order in which tensors are taken
        if memo is not None and memo.known is None:
            for members in self._groups.values():
                self._recall(members)
        self._lost = {name for name, members in self._groups.items() if not self._possible(members)}

    def takes(self, tensor: OutputTensor) -> bool:
        """Whether the tensor is recognised; that its values are finite is found out later."""
        return self.recognises(tensor) and extents_of(tensor.node, self._sources) is not None

    def recognises(self, tensor: OutputTensor) -> bool:
        """Whether the tensor can be made where its inputs lie plainly; asks no source, which may have to fetch."""
        nodes = list(walk(tensor.node))
        if any(isinstance(node, Apply) and node.group in self._lost for node in nodes):
            return False
        return copied(tensor) or storable(tensor)

    @contextmanager
    def ahead(self, tensors: Sequence[OutputTensor]) -> Iterator[None]:
        """Read ahead of the workers within the block, which take the tensors in this order."""
        found = (extents_of(tensor.node, self._sources) for tensor in tensors)
        batches = (_on_disk(extents) for extents in found if extents is not None)
        with Ahead(batches, self._options.memory, exactly=self._exactly) as ahead:
            self._consumed = ahead.consumed
            try:
                yield
            finally:
                self._consumed = _nobody

    def prepare(self, waiting: Sequence[OutputTensor], mapped: Map) -> None:
        """Find the figures that span several tensors, as far as tensors in waiting need them.

        `mapped` calls a function for each item, in any number of threads, and returns when all are done.
        """
        self._turns = {tensor.meta.name: turn for turn, tensor in enumerate(waiting)}
        needed = {n.group for t in waiting for n in walk(t.node) if isinstance(n, Apply) and n.group}
        groups = {name: members for name, members in self._groups.items() if name in needed - self._lost}
        for members in groups.values():
            self._recall(members)
        groups = {name: members for name, members in groups.items() if not self._complete(members)}
        while groups:
            try:
                found = self._round(list(groups.values()), mapped)
            except (Unfusable, CuveeError):
                found = False
            if not found:  # what is left waits for something that cannot be had here
                self._lost |= set(groups)
                return
            groups = {name: members for name, members in groups.items() if not self._complete(members)}

    def tensor(
        self,
        tensor: OutputTensor,
        session: Session,
        tell: Callable[[Event], None],
        stopped: Callable[[], bool],
    ) -> bool:
        """Make and write one tensor; False when the generic path has to (what was written is written again)."""
        if not self.takes(tensor):
            return False
        name, told, watch = tensor.meta.name, 0, self._account.watch

        def write(first: int, count: int, data: memoryview, *, made: bool = False) -> None:
            nonlocal told
            watch.lap("combining")
            if stopped():
                raise _Stopped
            if not made:
                session.write(name, first * tensor.meta.dtype.size, data)
            told += len(data)
            tell(Progress(name, len(data)))
            watch.lap("writing")

        try:
            self._compute(tensor, session, write)
        except _Stopped:
            return True
        except Unfusable:
            if told:
                tell(Progress(name, -told))
            return False
        except CuveeError as error:
            raise error.at(tensor=name) from None
        session.finish(name)
        watch.lap("writing")
        return True

    def _compute(self, tensor: OutputTensor, session: Session, write: Callable[..., None]) -> None:
        extents = self._extents(tensor.node)
        size = tensor.meta.dtype.size
        if copied(tensor):
            with self._feed(extents, tensor, resident=False) as feed:
                copy(tensor, feed, self._worker(), self._kernels, write)
            return
        if pruned(tensor.node):
            with self._feed(extents, tensor, resident=False) as feed:
                kind, share = tensor.meta.dtype, self._budget
                merge_rows(feed, self._worker(), self._kernels, tensor.node, kind, write, share)
            return
        known: Known = {id(n): self.known(n) for n in walk(tensor.node)}
        found = pending(tensor.node, known)
        several = bool(found)
        if several and tensor.parts:
            raise Unfusable("figures of a whole tensor of which parts are made")
        with self._feed(extents, tensor, resident=several) as feed:
            worker = self._worker()
            room = feed.room(size)
            kept = draws(found, feed.total, self._budget - room)
            worker.blocks.reserve(room + kept.room)
            feed.load(worker.blocks)
            kept.place(known, worker.blocks)
            while found:
                self._figures(feed, found, known)
                found = pending(tensor.node, known)
            if self._memo is not None:
                provide(tensor.node, known, feed, worker, self._kernels, self._memo)
            program = program_of(tensor.node, tensor.meta.dtype, known, same=feed.same)
            feed.parts = tensor.parts
            place = _place(session, tensor)
            done = write if place is None else partial(write, made=True)
            run(feed, worker, self._kernels, program, done, size, place=place)

    def recognises_marks(self, tensor: OutputTensor, roots: Sequence[Node], dtype: DType | None) -> bool:
        """Whether bits can be made of what lies at some nodes of the tensor, and a vector where there is a `dtype`.

        Asks no source, as `recognises`.
        """
        nodes = [node for root in roots for node in walk(root)]
        if any(isinstance(node, Apply) and node.group in self._lost for node in nodes):
            return False
        possible = tensor.meta.numel > 0 and (dtype is None or dtype in STORES)
        return possible and all(computable(root) and not pruned(root) for root in roots)

    def finds(self, group: str) -> bool:
        """Whether the figures of the tensors of a group are found here, before the first of them."""
        return group in self._groups and group not in self._lost

    def marks(
        self,
        tensor: OutputTensor,
        marking: Marking,
        roots: Sequence[Node],
        write: Callable[[int, int, memoryview], None],
    ) -> tuple[list[memoryview], Known]:
        """The bits of a marking over a tensor, and the figures of the roots, under which its nodes lie.

        Raises Unfusable or CuveeError where the generic path has to do it (what was written is written again).
        """
        if not self.recognises_marks(tensor, roots, marking.dtype):
            raise Unfusable("an expression that is not recognised, or figures that cannot be had here")
        extents = {key: lies for root in roots for key, lies in self._extents(root).items()}
        known: Known = {id(n): self.known(n) for root in roots for n in walk(root)}
        several = bool(lacking(roots, known))
        with charging(self._account, tensor), self._feed(extents, tensor, resident=several) as feed:
            worker = self._worker()
            worker.blocks.reserve(feed.room(marking.dtype.size if marking.dtype else 0))
            feed.load(worker.blocks)
            while found := lacking(roots, known):
                self._figures(feed, found, known)
            return marked(feed, worker, self._kernels, marking, known, write), known

    def _figures(self, feed: Feed, found: list[tuple[Apply, str]], known: Known) -> None:
        """The figures that can be found now, all in common passes."""

        def go(tallies: list[tuple[int, Tally]]) -> None:
            parts = [Part(found[number][0], 0, tally) for number, tally in tallies]
            sweep(feed, self._worker(), self._kernels, parts, known)

        try:
            values = gather([gathering(figure, [node], self._kernels) for node, figure in found], go)
        except CuveeError as error:
            raise Unfusable("the generic path says it") from error
        for (node, figure), (value,) in zip(found, values, strict=True):
            known[id(node)][figure] = value
            if self._memo is not None:
                self._memo.keep(figure, [node], depends(node, figure), value)

    def _round(self, groups: list[Members], mapped: Map) -> bool:
        """One figure for every group that is ready for one; False when none is."""
        ready: list[tuple[Members, str]] = []
        for members in groups:
            steps = [pending(node, self._shared) for _, node in members]
            if all(len(s) == 1 and s[0][0] is node for s, (_, node) in zip(steps, members, strict=True)):
                ready.append((members, steps[0][0][1]))

        def go(tallies: list[tuple[int, Tally]]) -> None:
            work: dict[int, Work] = {}
            for number, tally in tallies:
                for place, (tensor, node) in enumerate(ready[number][0]):
                    work.setdefault(id(tensor), (tensor, []))[1].append(Part(node, place, tally))
            sweeps = sorted(work.values(), key=lambda item: self._turns.get(item[0].meta.name, 0))
            with self.ahead([tensor for tensor, _ in sweeps]):
                self._sweep_all(sweeps, mapped)

        figures = [gathering(figure, [n for _, n in members], self._kernels) for members, figure in ready]
        for (members, figure), values in zip(ready, gather(figures, go), strict=True):
            for (_, node), value in zip(members, values, strict=True):
                self._shared.setdefault(id(node), {})[figure] = value
            if self._memo is not None:
                nodes = [node for _, node in members]
                self._memo.keep(figure, nodes, depends(nodes[0], figure), values)
        return bool(ready)

    def _recall(self, members: Members) -> None:
        """Figures of a group that an earlier run found."""
        if self._memo is None:
            return
        nodes = [node for _, node in members]
        for figure in wanted(nodes[0]):
            values = self._memo.get(figure, nodes, depends(nodes[0], figure))
            for node, value in zip(nodes, values or (), strict=bool(values)):
                self._shared.setdefault(id(node), {})[figure] = value

    def known(self, node: Node) -> dict[str, Any]:
        """The figures of a node that are there already."""
        found = dict(self._shared.get(id(node), {}))
        if self._memo is not None and isinstance(node, Apply) and node.group is None:
            for figure in wanted(node):
                value = self._memo.get(figure, [node], depends(node, figure))
                if value is not None:
                    found[figure] = value
        return found

    def _complete(self, members: Members) -> bool:
        return all(set(wanted(node)) <= set(self._shared.get(id(node), {})) for _, node in members)

    def _sweep_all(self, work: Iterable[Work], mapped: Map) -> None:
        """One pass over many tensors; the first trouble is raised when all are done (an error would end the run)."""
        lost: list[Exception] = []

        def one(item: Work) -> None:
            try:
                self.sweep_tensor(item)
            except (Unfusable, CuveeError) as error:
                lost.append(error)

        mapped(one, work)
        if lost:
            raise lost[0]

    def sweep_tensor(self, work: Work) -> None:
        """One pass over a tensor for all its parts; Unfusable or CuveeError where it cannot be done."""
        tensor, parts = work
        extents: dict[Key, Lies] = {}
        for part in parts:
            extents |= self._extents(part.node)
        with charging(self._account, tensor), self._feed(extents, tensor, resident=False) as feed:
            worker = self._worker()
            worker.blocks.reserve(feed.room(0))
            sweep(feed, worker, self._kernels, parts, self._shared)

    @contextmanager
    def _feed(self, extents: Mapping[Key, Lies], tensor: OutputTensor, *, resident: bool) -> Iterator[Feed]:
        budget = self._budget
        wanted_step = self._options.block or min(_STEP, max(_LEAST, budget // (4 * (len(extents) + 2))))
        step = max(LINE, wanted_step // LINE * LINE)
        stored = {lies for lies in extents.values() if not isinstance(lies, Held)}
        fits = sum(lies.nbytes for lies in stored) <= budget
        with opened(extents, exactly=self._exactly) as files:
            watch, count = self._account.watch, tensor.meta.numel
            resident = resident and fits
            yield Feed(
                extents, files, count, resident=resident, step=step, watch=watch, consumed=self._consumed
            )

    @property
    def _budget(self) -> int:
        """Bytes of memory for one worker."""
        return self._options.memory // max(1, self._options.threads)

    def _extents(self, node: Node) -> dict[Key, Lies]:
        found = extents_of(node, self._sources)
        if found is None:
            raise Unfusable("an input does not lie plainly in a file or in memory")
        return found

    def _possible(self, members: Members) -> bool:
        """Whether the inputs of every stage of a group can be computed and read, as they were if figures are known."""
        return self._complete(members) or all(
            tensor.meta.numel > 0 and computable(node) and extents_of(node, self._sources) is not None
            for tensor, node in members
        )

    def _worker(self) -> Worker:
        """The memory of the current thread."""
        if not hasattr(self._workers, "memory"):
            self._workers.memory = Worker()
        memory: Worker = self._workers.memory
        return memory


class _Stopped(Exception):
    """The run is to end; the tensor is left unfinished."""


def _place(session: Session, tensor: OutputTensor) -> int | None:
    """The address of the output, where the session has it in memory and takes no bytes but those made there."""
    held = getattr(session, "held", None)
    found: Held | None = None if held is None else held(tensor.meta.name)
    return None if found is None else found.address


def _on_disk(extents: Mapping[Key, Lies]) -> list[Extent]:
    """What has to be read of each input itself; nothing of what another one stands in for."""
    found: list[Extent] = []
    for lies in extents.values():
        if isinstance(lies, Pieces):
            found += [part for part, own in zip(lies.parts, lies.own, strict=True) if own]
        elif isinstance(lies, Extent):
            found.append(lies)
    return found


def _nobody(nbytes: int) -> None:
    """Who is told of bytes when nobody reads ahead."""


def charging(account: Account, tensor: OutputTensor) -> AbstractContextManager[Stopwatch]:
    """Charge what the current thread does within the block to the tensor."""
    stages = dict.fromkeys(node.stage for node in walk(tensor.node) if isinstance(node, Apply))
    return account.charging(tensor.meta.name, " → ".join(stages) or "copied", tensor.meta.nbytes)


def fuse(
    plan: Plan, options: RunOptions, account: Account | None = None, memo: Memo | None = None
) -> Fused | None:
    """The fast path for a plan; None where kernels are off, cannot be had, or arithmetic is not on the CPU.

    Where its time goes is charged to the account; figures are asked of the memo first.
    """
    machine = kernels() if options.kernels and options.device == "cpu" else None
    return None if machine is None else Fused(plan, options, machine, account or Account(), memo)
