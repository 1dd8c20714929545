"""Blocks that need not be read because another input of the same plan holds the same bytes.

Decided from digests alone; changes no byte of the output, whatever the method. Must not read weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cuvee.plan.cost import inputs_of
from cuvee.plan.plan import Plan
from cuvee.sources.catalogue import blocks_of, span_of, step_of
from cuvee.sources.source import unfetched
from cuvee.sources.spared import SparedSource

Digests = Mapping[str, Mapping[str, Any]]  # by source key and tensor: (blocks, 16) bytes
Place = tuple[str, str]  # source key, tensor
StandIns = dict[str, dict[str, dict[int, str]]]  # by source key, tensor and block: the source to read instead


def shared(plan: Plan, digests: Digests) -> StandIns:
    """For each source the blocks that an earlier one of the plan holds too, under the same name and number."""
    found: StandIns = {}
    read: dict[str, list[str]] = {}
    for key, name in inputs_of(plan.tensors):
        read.setdefault(name, []).append(key)
    order = {key: place for place, key in enumerate(plan.sources)}
    for name, keys in read.items():
        first: dict[tuple[int, bytes], str] = {}
        for key in sorted(keys, key=order.__getitem__):
            for number, digest in enumerate(_own(plan, digests, key, name)):
                told = number, digest.tobytes()
                holder = first.setdefault(told, key)
                if holder != key and _alike(plan, holder, key, name):
                    found.setdefault(key, {}).setdefault(name, {})[number] = holder
    return found


def _own(plan: Plan, digests: Digests, key: str, name: str) -> Any:
    """Digests of a tensor that lies plainly in a file; empty for others."""
    found = digests.get(key, {}).get(name, ())
    source = plan.sources[key].source
    if not len(found) or unfetched(source):  # asking where a tensor lies would fetch it
        return ()
    extent = source.extent(name)
    return found if extent is not None and extent.nbytes == source.tensors[name].nbytes else ()


def _alike(plan: Plan, one: str, other: str, name: str) -> bool:
    return plan.sources[one].source.tensors[name] == plan.sources[other].source.tensors[name]


def wrapped(
    plan: Plan, stand_ins: Mapping[str, Any], facts: Mapping[str, Mapping[str, Any]] | None = None
) -> Plan:
    """The plan with its sources behind `SparedSource`; stand-ins are keys of sources.

    `facts` tell what is lost of those sources of which something is.
    """
    sources, facts = dict(plan.sources), facts or {}
    for key, tensors in stand_ins.items():
        blocks = {
            name: {number: plan.sources[other].source for number, other in found.items()}
            for name, found in tensors.items()
        }
        sources[key] = replace(
            plan.sources[key], source=SparedSource(plan.sources[key].source, blocks, facts.get(key))
        )
    return replace(plan, sources=sources)


def unneeded(plan: Plan) -> StandIns:
    """Blocks of inputs that no tensor of the plan asks for, since it is made in parts; they stand in for themselves,
    so that they are there should anybody ask.
    """
    found: dict[Place, set[int]] = {}
    for tensor in plan.tensors:
        for place, meta in inputs_of([tensor]).items():
            step = step_of(meta.dtype.size)
            every = set(range(blocks_of(meta)))
            asked = {b for start, stop in tensor.parts for b in range(start // step, -(-stop // step))}
            found[place] = found.get(place, every) & (every - asked if tensor.parts else set())
    for members in plan.groups().values():  # what figures of several tensors are found in
        for place in inputs_of([tensor for tensor, _ in members]):
            found.pop(place, None)
    told: StandIns = {}
    for (key, name), blocks in found.items():
        if blocks:
            told.setdefault(key, {})[name] = dict.fromkeys(sorted(blocks), key)
    return told


def nbytes_of(plan: Plan, key: str, name: str, number: int) -> int:
    """Bytes of one block."""
    meta = plan.sources[key].source.tensors[name]
    start, stop = span_of(meta, number)
    return meta.dtype.size * (stop - start)
