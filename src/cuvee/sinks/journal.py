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

from cuvee.core.digests import canonical_json, extent_digest
from cuvee.core.disk import Disk, read_bytes, write_file
from cuvee.errors import RunError
from cuvee.sinks.layout import Layout

_VERSION = 1


@dataclass(frozen=True, slots=True)
class Journal:
    """The plan and layout a staging folder belongs to, and the claimed digest of each finished tensor."""

    plan: str
    layout: str
    claims: Mapping[str, str]


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
    for raw in rest:
        line = _line(raw)
        name, digest = line.get("name"), line.get("blake3")
        if isinstance(name, str) and isinstance(digest, str):
            claims[name] = digest
    return Journal(plan, layout, claims)


def write_journal(disk: Disk, path: Path, journal: Journal) -> None:
    """Replace the journal, durably."""
    head = {"version": _VERSION, "plan": journal.plan, "layout": journal.layout}
    lines = [entry(name, digest) for name, digest in journal.claims.items()]
    write_file(path, canonical_json(head) + b"".join(lines), disk)


def entry(name: str, digest: str) -> bytes:
    """One claim. The line break comes first, so that a torn claim cannot spoil the next one."""
    return b"\n" + canonical_json({"name": name, "blake3": digest})


def still_true(disk: Disk, folder: Path, layout: Layout, claims: Mapping[str, str]) -> dict[str, str]:
    """The claims whose tensors, read back from the files in `folder`, have the digest that is claimed."""
    kept = {}
    for file in layout.files:
        claimed = [name for name in file.tensors if name in claims]
        if not claimed or disk.kind(folder / file.name) != "file":
            continue
        handle = disk.open_file(folder / file.name)
        try:
            for name in claimed:
                place = layout.place(name)
                found = extent_digest(functools.partial(disk.pread, handle), place.offset, place.nbytes)
                if found == claims[name]:
                    kept[name] = found
        finally:
            with contextlib.suppress(RunError):
                disk.close(handle)
    return kept


def _line(raw: bytes) -> dict[str, object]:
    try:
        value = json.loads(raw)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
