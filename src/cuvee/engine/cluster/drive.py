"""The driver of a run on a cluster: hands out figures and regions, journals what is made; its caller commits.

What one machine does with threads is done here with workers; sessions, journal and resuming are the same.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from cuvee.core.digests import RegionHasher, joined_digest
from cuvee.core.disk import write_file
from cuvee.engine.cluster.crew import Crew, Task
from cuvee.engine.cluster.figures import Ended, learn
from cuvee.engine.cluster.job import ClusterOptions, Job, Known, Origin, Staged
from cuvee.engine.cluster.likeness import samples_of
from cuvee.engine.cluster.regions import Batch, Region, Taken, batches
from cuvee.engine.cluster.work import Done, Made, memo_of
from cuvee.engine.events import Event, Finding, Finished, Listener, Progress, Started, peak_memory
from cuvee.engine.options import RunOptions
from cuvee.engine.run import OneThreadEach, bytes_read, evaluator_of, recorded, serialised, stop_flag
from cuvee.engine.schedule import scheduled
from cuvee.errors import RunError
from cuvee.plan.nodes import Apply
from cuvee.plan.plan import OutputTensor, Plan
from cuvee.sinks.sink import Staging

_RETURNED = 64 << 20  # bytes of a piece of work that comes back to the driver

Runner = Callable[[Plan, Staging, RunOptions, Listener], Finished]


def drive(
    plan: Plan,
    session: Staging,
    options: RunOptions,
    listener: Listener,
    origin: Origin,
    cluster: ClusterOptions,
    known: Known | None = None,
    figure: Callable[[str, Sequence[Apply]], Any] | None = None,
    taken: Taken | None = None,
) -> Finished:
    """Have every output tensor made that the session does not hold yet; the caller commits.

    `known` is what workers are told beforehand, `figure` gives figures of groups that are; what is `taken` is copied.

    Raises what `run` raises, and CV-E210 to CV-E214 when workers are lost too often, cannot be had, plan something
    else, fail, or do not see the storage they should write to.
    """
    began = time.monotonic()
    tell = serialised(listener)
    sources = {key: opened.source for key, opened in plan.sources.items()}
    waiting = scheduled([t for t in plan.tensors if t.meta.name not in session.done], sources, 1)
    total = sum(t.meta.nbytes for t in plan.tensors)
    left = sum(t.meta.nbytes for t in waiting)
    tell(Started(len(plan.tensors), total, total - left))
    known = known or Known()
    digest, samples = known.built or plan.digest, samples_of(plan) if waiting else {}
    job = Job(origin, plan.layout, digest, options, _staged(session, cluster), known, samples)
    with OneThreadEach() as mode, stop_flag() as stopped:
        crew = Crew(job, cluster, lambda: stopped.set)
        with suppress(Ended), crew if waiting else nullcontext():
            if waiting:
                whole = learn(plan, waiting, crew, options, figure)
                most = {"most": _RETURNED} if job.staged is None else {}
                work = batches(waiting, crew.size, whole=whole, taken=taken, **most)
                _make(waiting, work, session, crew, tell, taken)
        stopped.check()
        figures = recorded(evaluator_of(plan, options, tell, memo_of(plan.groups(), crew.learned)), mode)
    seconds = time.monotonic() - began
    done = Finished(seconds, bytes_read(plan, waiting), left, peak_memory(), total - left, figures)
    tell(done)
    return done


def _staged(session: Staging, cluster: ClusterOptions) -> Staged | None:
    """Where workers write, with a word that proves to them that they see the same storage."""
    if cluster.storage == "driver":
        return None
    folder: Path = session.folder
    proof, word = folder.parent / "cluster", secrets.token_hex(16)
    write_file(proof, word.encode())
    return Staged(folder, proof, word)


def _make(
    waiting: list[OutputTensor],
    work: list[Batch],
    session: Staging,
    crew: Crew,
    tell: Callable[[Event], None],
    taken: Taken | None = None,
) -> None:
    """Hand out all regions; a tensor is journalled when its last one is there."""
    tensors = {tensor.meta.name: tensor for tensor in waiting}
    parts: dict[str, dict[int, Made]] = {}
    regions: dict[str, int] = {}
    for batch in work:
        for region in batch.regions:
            regions[region.tensor] = regions.get(region.tensor, 0) + 1
    for region, made in _taken(waiting, taken, session, tell):
        regions[region.tensor] += 1
        parts.setdefault(region.tensor, {})[region.start] = made

    said: dict[tuple[str, str | None], Finding] = {}

    def take(task: Task, found: Done) -> None:
        _tell_new(found.findings, said, tell)
        for one in found.made:
            name, size = one.region.tensor, tensors[one.region.tensor].meta.dtype.size
            if one.data is not None:
                if crew.options.storage == "shared":
                    raise _unseen(session.folder)
                session.put(name, one.region.start * size, one.data)
            parts.setdefault(name, {})[one.region.start] = one
            tell(Progress(name, (one.region.stop - one.region.start) * size))
            if len(parts[name]) == regions[name]:
                digests = b"".join(parts[name][start].digests for start in sorted(parts[name]))
                session.adopt(name, joined_digest(digests))
                del parts[name]

    crew.run([Task("make", (b.regions,), b.cost, b.regions[0].tensor) for b in work], take)


def _tell_new(
    findings: Sequence[Finding], said: dict[tuple[str, str | None], Finding], tell: Callable[[Event], None]
) -> None:
    """Tell what was not said of a tensor yet; each of its regions finds what the whole tensor has."""
    for finding in findings:
        if said.setdefault((finding.tensor, finding.source), finding) is finding:
            tell(finding)


def _taken(
    waiting: Sequence[OutputTensor], taken: Taken | None, session: Staging, tell: Callable[[Event], None]
) -> Iterator[tuple[Region, Made]]:
    """Regions that are there already, brought into the staged output."""
    if taken is None:
        return
    for tensor in waiting:
        name, size = tensor.meta.name, tensor.meta.dtype.size
        for region in taken.gaps(tensor):
            data, hasher = taken.blocks[name](region.start, region.stop), RegionHasher()
            hasher.update(data)
            session.put(name, region.start * size, data)
            tell(Progress(name, len(data)))
            yield region, Made(region, hasher.digests(), None)


def _unseen(folder: Path) -> RunError:
    return RunError(
        "CV-E214",
        f"a worker does not see `{folder}`, where the output is staged",
        hint="choose an output on storage that every machine mounts, or `--cluster-storage driver`",
    )
