"""What an interrupted run says it finished, and whether that is still true.

Owns the journal's file. Nothing it says is trusted: a claim counts when the bytes hash to what it claims.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cuvee.core.digests import REGION, TensorHasher, canonical_json, extent_digest
from cuvee.core.disk import Disk, read_bytes, write_file
from cuvee.errors import RunError
from cuvee.sinks.layout import Layout

_VERSION = 1


@dataclass(frozen=True, slots=True)
class Journal:
    """The plan and layout a staging folder belongs to, and the claimed digest of each finished tensor.

    `syncing`: the run had begun to make its files durable, so a sync may have failed.
    """

    plan: str
    layout: str
    claims: Mapping[str, str]
    syncing: bool = False


def read_journal(disk: Disk, path: Path) -> Journal | None:
    """The journal, torn or garbled lines left out; None when there is none that can be read."""
    if disk.kind(path) != "file":
        return None
    first, *rest = read_bytes(path, disk).split(b"\n")
    head = _line(first)
    plan, layout = head.get("plan"), head.get("layout")
    if head.get("version") != _VERSION or not isinstance(plan, str) or not isinstance(layout, str):
        return None
    claims = {}
    syncing = False
    for raw in rest:
        line = _line(raw)
        syncing = syncing or line == {"syncing": True}
        name, digest = line.get("name"), line.get("blake3")
        if isinstance(name, str) and isinstance(digest, str):
            claims[name] = digest
    return Journal(plan, layout, claims, syncing)


def write_journal(disk: Disk, path: Path, journal: Journal) -> None:
    """Replace the journal; durably where it claims anything."""
    head = {"version": _VERSION, "plan": journal.plan, "layout": journal.layout}
    lines = [entry(name, digest) for name, digest in journal.claims.items()]
    content = canonical_json(head) + b"".join(lines)
    if lines:
        write_file(path, content, disk)
        return
    handle = disk.create(path, len(content))  # a torn one is none, and there is no work that it could lose
    try:
        disk.pwrite(handle, content, 0)
    finally:
        disk.close(handle)


def entry(name: str, digest: str) -> bytes:
    """One claim. The line break comes first, so that a torn claim cannot spoil the next one."""
    return b"\n" + canonical_json({"name": name, "blake3": digest})


SYNCING = b"\n" + canonical_json({"syncing": True})


def still_true(
    disk: Disk, folder: Path, layout: Layout, claims: Mapping[str, str], *, device: bool = False
) -> dict[str, str]:
    """The claims whose tensors, read back from the files in `folder`, have the digest that is claimed.

    `device`: read from there, not from the cache, as far as the system can.
    """
    kept = {}
    for file in layout.files:
        claimed = [name for name in file.tensors if name in claims]
        if not claimed or disk.kind(folder / file.name) != "file":
            continue
        handle = disk.open_file(folder / file.name)
        try:
            if device:
                disk.forget(handle)
            for name in claimed:
                place = layout.place(name)
                found = None
                with contextlib.suppress(RunError):  # what cannot be read is not there
                    found = extent_digest(functools.partial(disk.pread, handle), place.offset, place.nbytes)
                if found == claims[name]:
                    kept[name] = found
        finally:
            with contextlib.suppress(RunError):
                disk.close(handle)
    return kept


def write_again(disk: Disk, folder: Path, layout: Layout, claims: Mapping[str, str]) -> dict[str, str]:
    """Write the tensors' own bytes over them, and bring these to the device.

    After a sync that failed, a system may call the pages it lost clean: they read back as they should, and no later
    sync writes or reports them. Between two looks it may drop them, too: the claims that are true of what was
    written are given back.
    """
    kept = {}
    for name, claim in claims.items():
        place, hasher = layout.place(name), TensorHasher()
        handle = disk.open_file(folder / place.file, "write")
        try:
            for at in range(place.offset, place.offset + place.nbytes, REGION):
                piece = disk.pread(handle, min(REGION, place.offset + place.nbytes - at), at)
                hasher.update(piece)
                disk.pwrite(handle, piece, at)
            disk.sync(handle)
        finally:
            with contextlib.suppress(RunError):
                disk.close(handle)
        if hasher.hexdigest() == claim:
            kept[name] = claim
    return kept


def _line(raw: bytes) -> dict[str, object]:
    try:
        value = json.loads(raw)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
