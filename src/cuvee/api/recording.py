"""A catalogue made by the merge itself, of what it reads: when asked for, or when reading is so slow that it is free.

Owns which of a plan's sources are catalogued together, and the session that tells how far tensors have come. The output
has the same bytes with it and without; a catalogue that cannot be made is none, and no error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cuvee.engine.options import RunOptions
from cuvee.engine.tables import task_vector
from cuvee.errors import Diagnostic
from cuvee.plan.cost import inputs_of
from cuvee.plan.nodes import Difference, Read, walk
from cuvee.plan.plan import Plan
from cuvee.sinks.watched import Watched
from cuvee.sources.catalogue import catalogued, changes_of, digests_of, fingerprint
from cuvee.sources.residency import cold
from cuvee.sources.spared import SparedSource

if TYPE_CHECKING:
    from cuvee.core.tensors import Extent
    from cuvee.sinks.sink import Staging
    from cuvee.sources.catalogue_live import Recording
    from cuvee.sources.source import Source

_ROOM = 64 << 20  # bytes that a catalogue nobody asked for may take while it is made
Follows = Mapping[
    str, tuple[tuple[str, int], ...]
]  # by output tensor: the inputs it is made of, and their elements


@dataclass(frozen=True, slots=True)
class Recorder:
    """What a merge catalogues while it runs, and what of it each output tensor reads."""

    recordings: tuple[Recording, ...]
    follows: Follows

    def keep(self) -> bool:
        """Keep what was found of whole tensors, if no source changed meanwhile; whether anything is kept."""
        kept = [recording.keep() for recording in self.recordings]  # all of them, whatever the first says
        return any(kept)


def told_of(recorder: Recorder | None, options: RunOptions) -> tuple[Diagnostic, ...]:
    """Keep what was recorded, when a run is over and before its output is visible; what to say about it."""
    if recorder is None:
        return ()
    if recorder.keep():
        count = sum(recording.tensors for recording in recorder.recordings)
        return (
            Diagnostic("CV-P350", f"{count} tensors are catalogued now, for later merges", severity="note"),
        )
    if options.recording == "cold":
        return ()
    return (
        Diagnostic(
            "CV-P351",
            "no catalogue was made: a source changed, could not be read again, or the cache cannot be written",
            severity="warning",
            hint="`cuvee catalog` makes one by itself",
        ),
    )


def recorder_of(plan: Plan, options: RunOptions) -> Recorder | None:
    """What there is to catalogue of a plan: None where it is not wanted, or known already."""
    if options.recording == "off" or any(isinstance(o.source, SparedSource) for o in plan.sources.values()):
        return None
    parts = _together(plan)
    if options.recording == "cold":
        if not cold(_extents(plan, parts)):
            return None
        from cuvee.sources.catalogue_live import room_of  # what records is imported where it is asked for

        if options.threads * sum(map(room_of, (len(keys) for _, keys in parts))) > _ROOM:
            return None
    parts = [part for part in parts if not _known(plan, part)]
    if not parts:
        return None
    made = [_recording(plan, part, missing=options.recording == "missing") for part in parts]
    made = [recording for recording in made if recording.read]
    return Recorder(tuple(made), _follows(plan)) if made else None


def _recording(plan: Plan, part: Part, *, missing: bool) -> Recording:
    """Of the tensors that the plan reads of a part's sources; `missing`: of those alone that are not known."""
    from cuvee.sources.catalogue_live import Recording

    based, keys = part
    sources = [plan.sources[key].source for key in keys]
    known = _told(sources, based) if missing else frozenset()
    read: dict[str, set[int]] = {}
    for key, name in inputs_of(plan.tensors):
        if key in keys and name not in known:
            read.setdefault(name, set()).add(keys.index(key))
    return Recording(sources, {name: frozenset(places) for name, places in read.items()}, based)


def _told(sources: Sequence[Source], based: bool) -> frozenset[str]:
    """The tensors of which the cache has all digests and every expert's change, whatever these are together."""
    from cuvee.sources.catalogue_scan import measurable

    digests = [digests_of(source) or {} for source in sources]
    changes = [changes_of(sources[0], expert) or {} for expert in sources[1:]] if based else []
    ground = sources[0].tensors if based else {}

    def known(name: str) -> bool:
        meta = ground.get(name)
        hashed = all(
            name in own for source, own in zip(sources, digests, strict=True) if name in source.tensors
        )
        alike = [
            own for expert, own in zip(sources[1:], changes, strict=False) if expert.tensors.get(name) == meta
        ]
        return hashed and (not measurable(meta) or all(name in own for own in alike))

    return frozenset(name for source in sources for name in source.tensors if known(name))


Part = tuple[bool, tuple[str, ...]]  # whether the first of the sources is the base of the others


def _together(plan: Plan) -> list[Part]:
    """The sources that lie plainly in files, each base with its experts, and what is of no base by itself."""
    read: dict[str, set[str]] = {key: set() for key in plan.sources}
    for key, name in inputs_of(plan.tensors):
        read[key].add(name)
    plain = {key for key, names in read.items() if _is_plain(plan, key, names)}
    experts: dict[str, dict[str, None]] = {}
    for tensor in plan.tensors:
        for node in walk(tensor.node):
            taken = task_vector(node) if isinstance(node, Difference) else None
            if taken is not None and {taken[0].source, taken[1].source} <= plain:
                experts.setdefault(taken[1].source, {})[taken[0].source] = None
    found: list[Part] = [
        (True, (base, *(key for key in plan.sources if key in own))) for base, own in experts.items()
    ]
    inside = {key for _, keys in found for key in keys}
    return found + [(False, (key,)) for key in plan.sources if key in plain - inside]


def _is_plain(plan: Plan, key: str, names: set[str]) -> bool:
    """Whether a source is nothing but tensors in files, as far as the plan reads it."""
    source = plan.sources[key].source
    if not names or hasattr(source, "changes") or fingerprint(source) is None:
        return False
    extents = {name: source.extent(name) for name in names}
    return all(e is not None and e.nbytes == source.tensors[name].nbytes for name, e in extents.items())


def _known(plan: Plan, part: Part) -> bool:
    """Whether the cache has all that a run of the plan could find out."""
    from cuvee.sources.catalogue_scan import measurable

    based, keys = part
    sources = [plan.sources[key].source for key in keys]
    read = {key: {name for other, name in inputs_of(plan.tensors) if other == key} for key in keys}
    if any(read[key] - set(digests_of(plan.sources[key].source) or ()) for key in keys):
        return False
    if not based or catalogued(sources[0], sources[1:]) is not None:
        return True
    whole = all(
        name in read[keys[0]] & read[key]
        for key, expert in zip(keys[1:], sources[1:], strict=True)
        for name, meta in sources[0].tensors.items()
        if measurable(meta) and expert.tensors.get(name) == meta
    )
    return not whole and all(changes_of(sources[0], expert) is not None for expert in sources[1:])


def _extents(plan: Plan, parts: list[Part]) -> list[Extent]:
    inside = {key for _, keys in parts for key in keys}
    found = [plan.sources[key].source.extent(name) for key, name in inputs_of(plan.tensors) if key in inside]
    return [extent for extent in found if extent is not None]


def _follows(plan: Plan) -> Follows:
    return {
        tensor.meta.name: tuple(
            {node.meta.name: node.meta.numel for node in walk(tensor.node) if isinstance(node, Read)}.items()
        )
        for tensor in plan.tensors
    }


def watched(session: Staging, recorder: Recorder, plan: Plan) -> Staging:
    """The session, telling the recorder how far each tensor has come, in the thread that makes it."""
    sizes = {name: max(1, place.nbytes) for name, place in plan.layout.places.items()}

    def written(name: str, end: int) -> None:
        for source, elements in recorder.follows.get(name, ()):
            for recording in recorder.recordings:
                recording.reach(source, end * elements // sizes[name])

    def finished(name: str) -> None:
        for source, _ in recorder.follows.get(name, ()):
            for recording in recorder.recordings:
                recording.end(source)

    return Watched(session, written=written, finished=finished)
