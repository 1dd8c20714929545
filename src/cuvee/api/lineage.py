"""What each output tensor was made from, by content: the whole of it, and each of its blocks where that can be told.

A key is the digest of everything that decides bytes: an expression with the contents of its inputs, shared thresholds'
inputs among them, its type, what is done about NaN, and the versions that do the arithmetic. Contents are known from
catalogues, so nothing is read for it. Blocks have keys where each element follows from the same element of the inputs
alone: no stage needs figures of a tensor, or these are thresholds that the catalogue knows, and no tie is broken by
where it stands. Must not know what is done with keys.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from blake3 import blake3

import cuvee
from cuvee.api.record import libraries
from cuvee.api.sparing import tables_of
from cuvee.core.digests import bytes_digest, canonical_json
from cuvee.engine.blocks import access_of
from cuvee.engine.fused.figures import wanted
from cuvee.engine.options import RunOptions
from cuvee.engine.tables import Tables
from cuvee.methods.registry import stage
from cuvee.plan.cost import inputs_of
from cuvee.plan.nodes import Apply, Convert, Difference, Enter, Node, Read, Sum, describe, walk
from cuvee.plan.plan import OutputTensor, Plan
from cuvee.sources import catalogue

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

_SHORT = 16  # bytes of a block's key

Blocks = Mapping[tuple[str, str], "Array"]  # digests of blocks by source and tensor


@dataclass(frozen=True, slots=True)
class Key:
    """What a tensor was made from; `blocks` are keys of runs of `step` elements, joined, where these have their own."""

    whole: str
    step: int = 0
    blocks: bytes = b""

    def as_json(self) -> Any:
        """What a manifest says."""
        if not self.blocks:
            return self.whole
        return {"whole": self.whole, "step": self.step, "blocks": self.blocks.hex()}

    def same(self, other: Key) -> list[bool]:
        """For each block whether the other has it, too; nothing where they are not cut alike."""
        if self.step != other.step or len(self.blocks) != len(other.blocks):
            return []
        starts = range(0, len(self.blocks), _SHORT)
        return [self.blocks[i : i + _SHORT] == other.blocks[i : i + _SHORT] for i in starts]


Keys = Mapping[str, Key]  # by tensor


def key_of(told: Any) -> Key | None:
    """A key as a manifest says it; None for what is none."""
    if isinstance(told, str):
        return Key(told)
    if not isinstance(told, dict) or set(told) != {"whole", "step", "blocks"}:
        return None
    whole, step, blocks = told["whole"], told["step"], told["blocks"]
    right = isinstance(whole, str) and type(step) is int and step > 0 and isinstance(blocks, str)
    if not right or re.fullmatch(f"([0-9a-f]{{{2 * _SHORT}}})+", blocks) is None:
        return None
    return Key(whole, step, bytes.fromhex(blocks))


def keys_of(plan: Plan, options: RunOptions) -> Keys:
    """The key of every tensor whose inputs are all catalogued."""
    digests = _digests(plan)
    contents = {place: _content(plan, place, digests[place]) for place in digests}
    groups = {name: [node for _, node in members] for name, members in plan.groups().items()}
    versions = [cuvee.__version__, options.device, libraries(), catalogue.BLOCK, options.non_finite]
    tables = tables_of(plan, options) if digests else None
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
            whole = bytes_digest(canonical_json([versions, meta, told, joint]))
            found[tensor.meta.name] = Key(whole, *_blocks(tensor, [versions, meta], digests, tables))
    return found


def _digests(plan: Plan) -> Blocks:
    """Digests of the blocks of all inputs, as far as they are catalogued."""
    digests = {  # what an adapter adds is not subtracted from anything, so equal contents do not make equal bytes
        key: None if hasattr(opened.source, "changes") else catalogue.digests_of(opened.source)
        for key, opened in plan.sources.items()
    }
    return {
        (key, name): held
        for key, name in inputs_of(plan.tensors)
        if (held := (digests[key] or {}).get(name)) is not None
    }


def _content(plan: Plan, place: tuple[str, str], held: Array) -> Any:
    meta = plan.sources[place[0]].source.tensors[place[1]]
    head = canonical_json([meta.dtype.name, list(meta.shape)])
    return blake3(head + held.tobytes()).hexdigest()


def _told(node: Any, contents: Mapping[tuple[str, str], Any]) -> Any:
    """An expression with the contents of its tensors in place of their names; None where one is not known."""
    if any(isinstance(n, Read) and (n.source, n.meta.name) not in contents for n in walk(node)):
        return None
    places = [repr(n.place) for n in walk(node) if isinstance(n, (Apply, Enter))]
    return [_replaced(describe(node), contents), places]


def _replaced(told: Any, contents: Mapping[tuple[str, str], Any]) -> Any:
    if isinstance(told, dict):
        if set(told) == {"read", "tensor"}:
            return {"content": contents[told["read"], told["tensor"]]}
        return {key: _replaced(value, contents) for key, value in told.items()}
    return [_replaced(value, contents) for value in told] if isinstance(told, (list, tuple)) else told


def _blocks(
    tensor: OutputTensor, head: Sequence[Any], digests: Blocks, tables: Tables | None
) -> tuple[int, bytes] | tuple[()]:
    """Elements of a block, and the keys of all; nothing where blocks have no keys, or there is only one."""
    nodes = list(walk(tensor.node))
    reads = list({(n.source, n.meta.name): n.meta for n in nodes if isinstance(n, Read)}.items())
    cuts = _cuts(nodes, tables)
    if cuts is None or not reads or any(meta.numel != tensor.meta.numel for _, meta in reads):
        return ()
    step = max(catalogue.step_of(meta.dtype.size) for _, meta in reads)
    if tensor.meta.numel <= step or any(step % catalogue.step_of(m.dtype.size) for _, m in reads):
        return ()
    places = {place: [number, meta.dtype.name] for number, (place, meta) in enumerate(reads)}
    first = canonical_json([*head, _told(tensor.node, places), cuts, step])
    rows = [(digests[place], step // catalogue.step_of(meta.dtype.size)) for place, meta in reads]
    found = bytearray()
    for number in range(-(-tensor.meta.numel // step)):
        own = blake3(first)  # keys of one number are compared, so its place needs no telling
        for held, many in rows:
            own.update(held[number * many : (number + 1) * many].tobytes())
        found += own.digest(_SHORT)
    return step, bytes(found)


def _cuts(nodes: Sequence[Node], tables: Tables | None) -> list[Any] | None:
    """The thresholds of an expression of which each element follows from its inputs' same element; None for others."""
    found: list[Any] = []
    for node in nodes:
        if isinstance(node, (Read, Convert, Difference, Sum)):
            continue
        if not isinstance(node, Apply) or node.group is not None or access_of(node) != "element":
            return None
        if stage(node.stage).scope_for(dict(node.values)) is None:
            continue
        told = tables.settled(node) if tables is not None and wanted(node) == ("cuts",) else None
        if told is None:
            return None
        found.append(told)
    return found
