"""Merging again: what is the same in an earlier output is taken from there, tensors and blocks of them.

Owns the way from a plan and an earlier output to a plan that reads only what changed, and the copying. What is copied
is held against the digests of the earlier manifest before anything is written. What is the same says `api.lineage`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from cuvee.api.lineage import Key, Keys, key_of, keys_of
from cuvee.api.sparing import Prints, Spared, prints_of, refuse_others, spared
from cuvee.bundle.manifest_form import Manifest, parse
from cuvee.core.digests import TensorHasher
from cuvee.core.limits import DEFAULT
from cuvee.core.names import printable
from cuvee.engine.events import Event, Finished, Listener, Progress
from cuvee.engine.options import RunOptions
from cuvee.engine.run import serialised
from cuvee.errors import Diagnostic, RunError, UsageError, Where
from cuvee.plan.explain import size
from cuvee.plan.nodes import Read
from cuvee.plan.plan import Opened, OutputTensor, Plan
from cuvee.plan.sharing import StandIns, unneeded
from cuvee.sinks.target import MANIFEST
from cuvee.sinks.watched import Watched
from cuvee.sources.bits import bits_of
from cuvee.sources.folder import open_path
from cuvee.sources.source import Source

if TYPE_CHECKING:
    from cuvee.api.execute import Runner
    from cuvee.sinks.sink import Staging

_KEY = "earlier output"
_STEP = 1 << 20  # elements hashed at once


@dataclass(frozen=True, slots=True)
class Remerge:
    """A plan that takes from an earlier output what is the same there; `keys` are those of the new output.

    `reused` are the tensors that are taken whole; those with `parts` in `lighter` are taken but for these. `left_out`
    are the blocks of inputs that nothing asks for then; `prints` are the inputs' fingerprints from before the keys were
    made.
    """

    plan: Plan
    lighter: Plan
    keys: Keys
    reused: tuple[str, ...]
    earlier: Manifest | None
    left_out: StandIns = field(default_factory=dict)
    prints: Prints = ()

    @property
    def lineage(self) -> Mapping[str, Any]:
        """What the manifest says."""
        return {name: key.as_json() for name, key in self.keys.items()}

    def less(self, options: RunOptions) -> Spared:
        """What is read, without what a catalogue proves needless."""
        found = spared(replace(self.lighter, notes=()), options, self.left_out)
        earlier = self.lighter.sources.get(_KEY)  # which is held against its manifest
        others = (p for p in found.prints if earlier is None or p[0] is not earlier.source)
        return replace(found, prints=tuple(others))

    def runner(self, less: Spared) -> Runner:
        """What runs `less` in place of the plan, whose digest and manifest stay those of a full merge."""

        def run(plan: Plan, session: Staging, options: RunOptions, listener: Listener) -> Finished:
            tell = serialised(listener)
            mended = self.checked(tell)
            session = mended.around(session) if mended is not None else session
            finished = less.runner(less.plan, session, options, tell)
            for name in self.reused:
                self._check(name, session.digests[name])
            return finished

        return run

    @property
    def nbytes_checked(self) -> int:
        """Bytes of the earlier output that are held against its manifest before anything is written."""
        whole = set(self.reused)
        return sum(t.meta.nbytes for t in self.lighter.tensors if t.parts or t.meta.name in whole)

    @property
    def nbytes_filled(self) -> int:
        """Bytes of tensors made in parts that are copied between these."""
        return sum(_between(tensor) for tensor in self.lighter.tensors if tensor.parts)

    def checked(self, tell: Callable[[Event], None]) -> Mended | None:
        """Hold all that is taken against the earlier manifest; what fills up tensors that are taken in part.

        RunError when an input is not what it was when its key was made.
        """
        refuse_others(self.prints)
        if self.earlier is None:
            return None
        source = self.lighter.sources[_KEY].source
        for name in self.reused:
            self._check(name, _hashed(source, name)[0])
        mended = Mended(source, tell)
        for tensor in self.lighter.tensors:
            if tensor.parts:
                step = self.keys[tensor.meta.name].step
                whole, blocks = _hashed(source, tensor.meta.name, step)
                self._check(tensor.meta.name, whole)
                mended.take(tensor, step, blocks)
        return mended

    def copy(self, name: str, session: Staging, told: Callable[[int], None]) -> None:
        """Bring a whole tensor into the session; RunError when it is not what was looked at."""
        source = self.lighter.sources[_KEY].source
        meta = source.tensors[name]
        for start in range(0, meta.numel, _STEP):
            bits = bits_of(source, name, start, min(start + _STEP, meta.numel)).view("u1").data
            session.write(name, start * meta.dtype.size, bits)
            told(len(bits))
        session.finish(name)
        self._check(name, session.digests[name])

    def _check(self, name: str, digest: str) -> None:
        if self.earlier is not None and digest != self.earlier.tensors[name].blake3:
            raise damaged(name)


def damaged(name: str) -> RunError:
    """What is to be copied is not what was written."""
    return RunError(
        "CV-E281",
        f"`{printable(name)}` of the earlier output is not what its manifest says",
        where=Where(tensor=printable(name)),
        hint="merge again without `--from`",
    )


def _hashed(source: Source, name: str, step: int = 0) -> tuple[str, list[bytes]]:
    """The digests of a tensor and its blocks, before anything is written: nothing wrong must get into a journal."""
    hasher, count, blocks = TensorHasher(), source.tensors[name].numel, []
    every = step or _STEP
    for start in range(0, count, every):
        bits = bits_of(source, name, start, min(start + every, count))
        hasher.update(bits.data)
        if step:
            blocks.append(blake3(bits.view("u1").data).digest())
    return hasher.hexdigest(), blocks


@dataclass(slots=True)
class Mended:
    """Tensors of which an engine makes parts, filled up from the earlier output wherever it leaves something out."""

    source: Source
    tell: Callable[[Event], None]
    _cut: dict[str, tuple[int, int, list[bytes]]] = field(
        default_factory=dict
    )  # step, size and digests of blocks
    _ends: dict[str, int] = field(default_factory=dict)  # bytes so far
    _told: dict[str, int] = field(default_factory=dict)  # of these, copied ones
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def take(self, tensor: OutputTensor, step: int, blocks: list[bytes]) -> None:
        """A tensor is made in parts; its blocks have these digests."""
        self._cut[tensor.meta.name] = step, tensor.meta.dtype.size, blocks

    def around(self, session: Staging) -> Watched:
        """The session that is filled up."""

        def writing(name: str, offset: int) -> None:
            if name in self._cut:
                self._fill(session, name, offset)

        def written(name: str, end: int) -> None:
            if name in self._cut:
                with self._guard:
                    self._ends[name] = end

        def finishing(name: str) -> None:
            if name in self._cut:
                width = self._cut[name][1]
                self._fill(session, name, self.source.tensors[name].numel * width)

        return Watched(session, writing=writing, written=written, finishing=finishing)

    def _fill(self, session: Staging, name: str, offset: int) -> None:
        """Copy up to `offset`; from the start again where the tensor was begun again."""
        with self._guard:
            done = self._ends.get(name, 0)
            if offset < done:
                done = 0
                if again := self._told.pop(name, 0):
                    self.tell(Progress(name, -again))  # as who began again did with what it had made
        step, width, _ = self._cut[name]
        for start in range(done, offset, step * width):  # what is left out are whole blocks
            bits = self.block(name, start // (step * width))
            session.write(name, start, bits)
            self._told[name] = self._told.get(name, 0) + len(bits)
            self.tell(Progress(name, len(bits)))

    def run(self, name: str) -> Callable[[int, int], memoryview]:
        """What gives the bytes of elements [start, stop) of a tensor that is made in parts, from between these."""
        step, width, _ = self._cut[name]

        def taken(start: int, stop: int) -> memoryview:
            found = bytearray()
            for first in range(start // step * step, stop, step):
                inside = slice(max(0, start - first) * width, min(step, stop - first) * width)
                found += self.block(name, first // step)[inside]
            return memoryview(found)

        return taken

    def block(self, name: str, number: int) -> memoryview:
        """A block of the earlier output, as it was when it was looked at first."""
        step, _, blocks = self._cut[name]
        count = self.source.tensors[name].numel
        bits = bits_of(self.source, name, number * step, min((number + 1) * step, count)).view("u1").data
        if blake3(bits).digest() != blocks[number]:
            raise damaged(name)
        return bits


def remerge(plan: Plan, earlier: Path | None, options: RunOptions) -> Remerge:
    """What of `earlier` can be taken; UsageError when that is no output with lineage, or nothing is catalogued."""
    prints = prints_of(plan)
    keys = keys_of(plan, options)
    if not keys and (earlier is not None or options.recording != "on"):
        raise UsageError(
            "CV-U280",
            "no tensor has inputs that are all in a catalogue, and what they hold is known from there alone",
            hint="run `cuvee catalog` with the experts and their base first, or merge with `--catalog`",
        )
    if earlier is None:
        return Remerge(plan, plan, keys, (), None, prints=prints)
    manifest = _manifest(earlier)
    source = open_path(earlier, str(earlier), DEFAULT)
    before: Mapping[str, Any] = manifest.content["lineage"]
    tensors, reused = [], []
    for tensor in plan.tensors:
        name, old = tensor.meta.name, key_of(before.get(tensor.meta.name))
        there = old is not None and source.tensors.get(name) == tensor.meta and name in manifest.tensors
        if old is None or not there or name not in keys:
            tensors.append(tensor)
        elif keys[name].whole == old.whole:
            tensors.append(_copied(tensor))
            reused.append(name)
        else:
            tensors.append(replace(tensor, parts=_parts(tensor, keys[name], old)))
    opened = {**plan.sources, _KEY: Opened(_KEY, source, None)}
    # `nested`: figures of several tensors are of all of them, also of those that are copied.
    lighter = replace(plan, tensors=tuple(tensors), sources=opened, nested=(plan,))
    left_out = unneeded(lighter)
    note = Diagnostic("CV-P281", _message(plan, lighter, reused, left_out), severity="note")
    plan = replace(plan, notes=(*plan.notes, note))
    return Remerge(plan, lighter, keys, tuple(reused), manifest, left_out, prints)


def _copied(tensor: OutputTensor) -> OutputTensor:
    return replace(tensor, node=Read(_KEY, tensor.meta), simplest=None)


def _parts(tensor: OutputTensor, key: Key, old: Key) -> tuple[tuple[int, int], ...]:
    """The runs of elements that have to be made; nothing where that is all of them, or blocks are not known."""
    same = key.same(old)
    if not any(same) or len(same) != -(-tensor.meta.numel // key.step):
        return ()
    found = []
    for is_same, run in groupby(range(len(same)), key=same.__getitem__):
        numbers = list(run)
        if not is_same:
            stop = min((numbers[-1] + 1) * key.step, tensor.meta.numel)
            found.append((numbers[0] * key.step, stop))
    return tuple(found)


def _between(tensor: OutputTensor) -> int:
    """Bytes of a tensor that are not of its parts."""
    return tensor.meta.nbytes - tensor.meta.dtype.size * sum(stop - start for start, stop in tensor.parts)


def _message(plan: Plan, lighter: Plan, reused: list[str], left_out: StandIns) -> str:
    parts = [tensor for tensor in lighter.tensors if tensor.parts]
    taken = sum(t.meta.nbytes for t in lighter.tensors if t.meta.name in reused)
    taken += sum(map(_between, parts))
    read, whole = nbytes_read(lighter, left_out), nbytes_read(plan, {})
    some = f", and parts of {len(parts)} others" if parts else ""
    return (
        f"{len(reused)} of {len(plan.tensors)} tensors{some} ({size(taken)}) are taken from the earlier output; "
        f"{size(read)} of {size(whole)} of the inputs are read"
    )


def nbytes_read(plan: Plan, left_out: StandIns) -> int:
    """Bytes of the inputs of a plan, each counted once, without blocks that are left out and the earlier output."""
    from cuvee.plan.cost import inputs_of
    from cuvee.plan.sharing import nbytes_of

    found = {place: meta for place, meta in inputs_of(plan.tensors).items() if place[0] != _KEY}
    less = sum(
        nbytes_of(plan, key, name, number)
        for key, tensors in left_out.items()
        for name, blocks in tensors.items()
        for number in blocks
    )
    return sum(meta.nbytes for meta in found.values()) - less


def _manifest(earlier: Path) -> Manifest:
    path = earlier / MANIFEST
    found = parse(path.read_bytes(), str(path)) if path.is_file() else None
    if found is None or "lineage" not in found.content:
        raise UsageError(
            "CV-U281",
            f"`{printable(str(earlier))}` does not tell what its tensors were made from",
            hint="outputs of `cuvee merge --lineage` do",
        )
    return found


def lineage_of(plan: Plan, options: RunOptions) -> Mapping[str, Any]:
    """What the manifest says when the inputs were catalogued in the run itself."""
    return {name: key.as_json() for name, key in keys_of(plan, options).items()}


def closed(found: Remerge) -> None:
    """Release the earlier output."""
    for key, opened in found.lighter.sources.items():
        if key == _KEY:
            opened.source.close()


__all__ = ["Remerge", "closed", "lineage_of", "remerge"]
