"""What a worker does: it plans, opens sources, gathers figures, makes regions and puts them where they belong.

One thread computes. Whatever it is asked can be asked again, of any worker, with the same result. Knows no Ray.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from cuvee.core.digests import RegionHasher
from cuvee.core.disk import REAL, Handle
from cuvee.core.lazy import torch
from cuvee.core.names import printable
from cuvee.engine.cluster.job import Job, Learned, rebuilt
from cuvee.engine.cluster.portable import portable
from cuvee.engine.cluster.regions import Region
from cuvee.engine.events import Event, Finding
from cuvee.engine.fused.builder import Unfusable
from cuvee.engine.fused.figures import depends
from cuvee.engine.fused.fuse import Fused, charging, fuse
from cuvee.engine.fused.passes import Part, Tally
from cuvee.engine.fused.selection import Probe
from cuvee.engine.memo import Memo, summary_values
from cuvee.engine.run import evaluator_of, make_tensor, tell_of_kernels
from cuvee.engine.spent import Account
from cuvee.engine.tables import refuse_summary
from cuvee.errors import CuveeError, RunError, Where
from cuvee.plan.nodes import Apply, walk
from cuvee.plan.plan import OutputTensor

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from cuvee.sinks.layout import Place

Groups = Mapping[str, Sequence[tuple[OutputTensor, Apply]]]


@dataclass(frozen=True, slots=True)
class Sought:
    """A probe at one member of a group; `number` tells the figures of a round apart."""

    group: str
    place: int
    number: int
    probe: Probe


@dataclass(frozen=True, slots=True)
class Made:
    """A region that was made: the digests of its MiBs, joined, and its bytes unless they are staged already."""

    region: Region
    digests: bytes
    data: bytes | None


@dataclass(frozen=True, slots=True)
class Done:
    """What came of a batch."""

    made: tuple[Made, ...]
    findings: tuple[Finding, ...]


class Workplace:
    """The plan on a worker. Raises CuveeErrors like a run on one machine."""

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(1)
        self.options = replace(job.options, threads=1)
        self.plan = rebuilt(job)
        self.tensors = {tensor.meta.name: tensor for tensor in self.plan.tensors}
        self.groups = self.plan.groups()
        self.cuts = job.known.cuts
        self.needed = {
            id(node)
            for name, numbers in job.known.needed.items()
            for number, node in enumerate(walk(self.tensors[name].node))
            if number in numbers
        }
        self.job, self.staged = job, job.staged
        if job.staged is not None and not _proven(job):
            self.staged = None

    @property
    def sees(self) -> bool:
        """Whether this worker reaches the staged output."""
        return self.staged is not None

    def sweep(self, work: Sequence[Sequence[Sought]], learned: Learned) -> Mapping[int, Any] | None:
        """Tallies of probes over tensors, by number; None where the compiled kernels cannot tell."""
        memo = self._memo(learned)
        fused = self._fused(memo, [self.groups[sought[0].group][sought[0].place][0] for sought in work])
        if fused is None:
            return None
        tallies: dict[int, Tally] = {}
        try:
            for sought in work:
                tensor, _ = self.groups[sought[0].group][sought[0].place]
                parts = []
                for one in sought:
                    tally = tallies.setdefault(one.number, Tally(one.probe))
                    parts.append(Part(self.groups[one.group][one.place][1], one.place, tally))
                fused.sweep_tensor((tensor, parts))
        except (Unfusable, CuveeError):
            return None
        return {number: portable(tally.tables or tally.entries) for number, tally in tallies.items()}

    def summary(self, group: str, learned: Learned) -> Any:
        """The summary of a group, over all its tensors."""
        evaluator = evaluator_of(self.plan, self.options, _unheard, self._memo(learned))
        with torch.no_grad():
            return evaluator.summary(self.groups[group][0][1])

    def make(self, regions: Sequence[Region], learned: Learned) -> Done:
        """Make regions, and put them into the staged output where that is seen."""
        findings: list[Finding] = []

        def tell(event: Event) -> None:
            if isinstance(event, Finding):
                findings.append(event)

        tell_of_kernels(self.options, tell)
        memo = self._memo(learned)
        tensors = [self.tensors[region.tensor] for region in regions]
        for tensor in tensors:
            self._tell(memo, tensor)
        fused = self._fused(memo, tensors)
        evaluator = evaluator_of(self.plan, self.options, tell, memo)
        made = []
        output: Any  # as much of a session as a tensor needs
        for region in regions:
            tensor = self.tensors[region.tensor]
            output = _Output(self, region, tensor)
            try:
                whole = region.stop - region.start == tensor.meta.numel
                with charging(Account(), tensor) as watch:
                    if not (whole and fused and fused.tensor(tensor, output, tell, _never)):
                        with torch.no_grad():
                            span = (region.start, region.stop)
                            make_tensor(tensor, evaluator, output, tell, watch, span)
                made.append(output.done())
            finally:
                output.close()
        return Done(tuple(made), tuple(findings))

    def _memo(self, learned: Learned) -> Memo:
        """What others found out; thresholds that only they can know are refused."""
        memo = memo_of(self.groups, learned)
        if self.needed:
            memo.known = lambda what, nodes: refuse_summary(what, nodes, self.needed)
        return memo

    def _tell(self, memo: Memo, tensor: OutputTensor) -> None:
        """Thresholds within the tensor that are known."""
        nodes = list(walk(tensor.node)) if tensor.meta.name in self.cuts else []
        for number, value in self.cuts.get(tensor.meta.name, {}).items():
            node = nodes[number]
            if isinstance(node, Apply):
                memo.keep("cuts", [node], depends(node, "cuts"), value)

    def _fused(self, memo: Memo, tensors: Sequence[OutputTensor]) -> Fused | None:
        """The fast path, for tensors whose groups are known."""
        fused = fuse(self.plan, self.options, Account(), memo)
        if fused is not None and tensors:
            fused.prepare(tensors, _refused)
        return fused


@dataclass(slots=True)
class _Output:
    """A region on its way: what `Session` is to a tensor."""

    home: Workplace
    region: Region
    tensor: OutputTensor
    hasher: RegionHasher = field(default_factory=RegionHasher)
    data: bytearray = field(default_factory=bytearray)
    handle: Handle | None = None

    def write(self, name: str, offset: int, data: Buffer) -> None:
        """Take the next bytes; those at the region's start begin it (again)."""
        begin = self.region.start * self.tensor.meta.dtype.size
        if offset == begin:
            self.hasher, self.data = RegionHasher(), bytearray()
        self.hasher.update(data)
        if self.home.staged is None:
            self.data += memoryview(data).cast("B")
            return
        place = self.place
        if self.handle is None:
            self._still_ours()
            self.handle = REAL.open_file(self.home.staged.folder / place.file, "write")
        REAL.pwrite(self.handle, data, place.offset + offset)

    def _still_ours(self) -> None:
        """RunError where the run is over: its driver died, and another one stages something else there."""
        if not _proven(self.home.job):
            folder = printable(str(self.home.job.staged.folder if self.home.job.staged else ""), 1000)
            message = f"`{folder}` is not staged for this run any more"
            raise RunError("CV-E214", message, where=Where(file=folder))

    def finish(self, name: str) -> None:
        """All bytes came; on shared storage they must reach it before the driver is told."""
        if self.handle is not None:
            REAL.sync(self.handle)

    @property
    def place(self) -> Place:
        return self.home.plan.layout.place(self.region.tensor)

    def done(self) -> Made:
        """What to tell the driver."""
        data = bytes(self.data) if self.home.staged is None else None
        return Made(self.region, self.hasher.digests(), data)

    def close(self) -> None:
        """Close the file."""
        if self.handle is not None:
            with suppress(CuveeError):
                REAL.close(self.handle)


def memo_of(groups: Groups, learned: Learned) -> Memo:
    """What others found out about groups of tensors, where evaluators look for it."""
    memo = Memo()
    for (group, what), value in learned.items():
        nodes = [node for _, node in groups[group]]
        names = summary_values(nodes[0].stage) if what == "summary" else depends(nodes[0], what)
        memo.keep(what, nodes, names, value)
    return memo


def _proven(job: Job) -> bool:
    staged = job.staged
    try:
        return staged is not None and staged.proof.read_text() == staged.word
    except OSError:
        return False


def _refused(function: Any, items: Any) -> None:
    raise Unfusable("figures of several tensors come from the driver")


def _never() -> bool:
    return False


def _unheard(event: Event) -> None:
    """What is found while figures are gathered is found again where values are written."""
