"""What each output tensor was made from, by content, and which tensors of an earlier output are the same again.

A key is the digest of everything that decides a tensor's bytes: its expression with the contents of the inputs, shared
thresholds' inputs among them, its type, and the versions that do the arithmetic. Contents are known from catalogues, so
nothing is read for it. A tensor with the key of one of the earlier output is copied from there; what is copied has to
have the digest that the earlier manifest tells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blake3 import blake3

import cuvee
from cuvee.api.record import libraries
from cuvee.api.sparing import spared
from cuvee.bundle.manifest_form import Manifest, parse
from cuvee.core.digests import TensorHasher, bytes_digest, canonical_json
from cuvee.core.limits import DEFAULT
from cuvee.core.names import printable
from cuvee.engine.events import Finished, Listener
from cuvee.engine.options import RunOptions
from cuvee.errors import Diagnostic, RunError, UsageError, Where
from cuvee.plan.cost import inputs_of
from cuvee.plan.explain import size
from cuvee.plan.nodes import Apply, Enter, Read, describe, walk
from cuvee.plan.plan import Opened, OutputTensor, Plan
from cuvee.sinks.target import MANIFEST
from cuvee.sources import catalogue
from cuvee.sources.bits import bits_of
from cuvee.sources.folder import open_path
from cuvee.sources.source import Source

if TYPE_CHECKING:
    from cuvee.sinks.sink import Staging

_KEY = "earlier output"
_STEP = 1 << 20  # elements hashed at once

Keys = Mapping[str, str]  # by tensor


def keys_of(plan: Plan, device: str) -> Keys:
    """The key of every tensor whose inputs are all catalogued."""
    contents = _contents(plan)
    groups = {name: [node for _, node in members] for name, members in plan.groups().items()}
    arithmetic = [cuvee.__version__, device, libraries(), catalogue.BLOCK]
    shared: dict[str, str | None] = {}

    def of_group(name: str) -> str | None:
        if name not in shared:
            told = [_told(node, contents) for node in groups.get(name, ())]
            shared[name] = None if None in told else bytes_digest(canonical_json(told))
        return shared[name]

    found = {}
    for tensor in plan.tensors:
        nodes = list(walk(tensor.node))
        joint = [of_group(n.group) for n in nodes if isinstance(n, Apply) and n.group is not None]
        told = _told(tensor.node, contents)
        if told is not None and None not in joint:
            meta = [tensor.meta.name, tensor.meta.dtype.name, list(tensor.meta.shape), tensor.compute.name]
            found[tensor.meta.name] = bytes_digest(canonical_json([arithmetic, meta, told, joint]))
    return found


def _contents(plan: Plan) -> dict[tuple[str, str], str]:
    """What the inputs hold, as far as they are catalogued."""
    digests = {  # what an adapter adds is not subtracted from anything, so equal contents do not make equal bytes
        key: None if hasattr(opened.source, "changes") else catalogue.digests_of(opened.source)
        for key, opened in plan.sources.items()
    }
    found = {}
    for key, name in inputs_of(plan.tensors):
        held = (digests[key] or {}).get(name)
        if held is not None:
            meta = plan.sources[key].source.tensors[name]
            head = canonical_json([meta.dtype.name, list(meta.shape)])
            found[key, name] = blake3(head + held.tobytes()).hexdigest()
    return found


def _told(node: Any, contents: Mapping[tuple[str, str], str]) -> Any:
    """An expression with the contents of its tensors in place of their names; None where one is not known."""
    if any(isinstance(n, Read) and (n.source, n.meta.name) not in contents for n in walk(node)):
        return None
    places = [repr(n.place) for n in walk(node) if isinstance(n, (Apply, Enter))]
    return [_replaced(describe(node), contents), places]


def _replaced(told: Any, contents: Mapping[tuple[str, str], str]) -> Any:
    if isinstance(told, dict):
        if set(told) == {"read", "tensor"}:
            return {"content": contents[told["read"], told["tensor"]]}
        return {key: _replaced(value, contents) for key, value in told.items()}
    return [_replaced(value, contents) for value in told] if isinstance(told, (list, tuple)) else told


@dataclass(frozen=True, slots=True)
class Remerge:
    """A plan that takes from an earlier output what is the same there; `keys` are those of the new output."""

    plan: Plan
    lighter: Plan
    keys: Keys
    reused: tuple[str, ...]
    earlier: Manifest | None

    def run(self, plan: Plan, session: Staging, options: RunOptions, listener: Listener) -> Finished:
        """Run it in place of `plan`, whose digest and manifest stay those of a full merge."""
        for name in self.reused:
            self._check(name, _hashed(self.lighter.sources[_KEY].source, name))
        less = spared(replace(self.lighter, notes=()), options)
        finished = less.runner(less.plan, session, options, listener)
        for name in self.reused:
            self._check(name, session.digests[name])
        return finished

    def _check(self, name: str, digest: str) -> None:
        if self.earlier is not None and digest != self.earlier.tensors[name].blake3:
            raise RunError(
                "CV-E281",
                f"`{printable(name)}` of the earlier output is not what its manifest says",
                where=Where(tensor=printable(name)),
                hint="merge again without `--from`",
            )


def _hashed(source: Source, name: str) -> str:
    """The digest of a tensor, before anything of it is written: what is wrong must not get into a journal."""
    hasher, count = TensorHasher(), source.tensors[name].numel
    for start in range(0, count, _STEP):
        hasher.update(bits_of(source, name, start, min(start + _STEP, count)).data)
    return hasher.hexdigest()


def remerge(plan: Plan, earlier: Path | None, options: RunOptions) -> Remerge:
    """What of `earlier` can be taken; UsageError when that is no output with lineage, or nothing is catalogued."""
    keys = keys_of(plan, options.device)
    if not keys:
        raise UsageError(
            "CV-U280",
            "no tensor has inputs that are all in a catalogue, and what they hold is known from there alone",
            hint="run `cuvee catalog` with the experts and their base first",
        )
    if earlier is None:
        return Remerge(plan, plan, keys, (), None)
    manifest = _manifest(earlier)
    source = open_path(earlier, str(earlier), DEFAULT)
    before: Mapping[str, str] = manifest.content["lineage"]
    same = {
        t.meta.name
        for t in plan.tensors
        if keys.get(t.meta.name, "") == before.get(t.meta.name)
        and source.tensors.get(t.meta.name) == t.meta
        and t.meta.name in manifest.tensors
    }
    tensors = tuple(_copied(t) if t.meta.name in same else t for t in plan.tensors)
    # `nested`: figures of several tensors are of all of them, also of those that are copied.
    lighter = replace(
        plan, tensors=tensors, sources={**plan.sources, _KEY: Opened(_KEY, source, None)}, nested=(plan,)
    )
    note = Diagnostic("CV-P281", _message(plan, lighter, same), severity="note")
    reused = tuple(t.meta.name for t in plan.tensors if t.meta.name in same)
    return Remerge(replace(plan, notes=(*plan.notes, note)), lighter, keys, reused, manifest)


def _copied(tensor: OutputTensor) -> OutputTensor:
    return replace(tensor, node=Read(_KEY, tensor.meta), simplest=None)


def _message(plan: Plan, lighter: Plan, same: set[str]) -> str:
    left = [tensor for tensor in lighter.tensors if tensor.meta.name not in same]
    taken = sum(t.meta.nbytes for t in lighter.tensors if t.meta.name in same)
    read, whole = (sum(m.nbytes for m in inputs_of(tensors).values()) for tensors in (left, plan.tensors))
    return (
        f"{len(same)} of {len(plan.tensors)} tensors ({size(taken)}) are taken from the earlier output; {size(read)} "
        f"of {size(whole)} of the inputs are read"
    )


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


def closed(found: Remerge) -> None:
    """Release the earlier output."""
    opened: Sequence[Opened] = [o for key, o in found.lighter.sources.items() if key == _KEY]
    for one in opened:
        one.source.close()


__all__ = ["Remerge", "closed", "keys_of", "remerge"]
