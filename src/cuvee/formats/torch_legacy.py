"""The container of checkpoints before PyTorch 1.6: five pickles, then the storages one after another.

The pickles are a magic number, a protocol version, facts about the machine, the state dict, the storage keys.
Must not interpret the pickles or read elements.
"""

from __future__ import annotations

from typing import Any

from cuvee.core.limits import MIB, Limits
from cuvee.errors import CorruptFile
from cuvee.formats.bytes_file import ByteFile
from cuvee.formats.pickle_machine import PickleMachine
from cuvee.formats.pickle_values import Checkpoint
from cuvee.formats.refusals import corrupt, over_limit, quoted, unusable

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001


def read_legacy(raw: ByteFile, limits: Limits) -> Checkpoint:
    """The value of the state dict's pickle, with the place of every storage."""
    size = min(raw.size, MIB)
    while True:  # how long the pickles are shows only when they have been read
        machine = PickleMachine(raw.bytes_at(0, size), raw.path, limits)
        try:
            value, keys = _pickles(machine, raw)
            break
        except CorruptFile:
            if size >= raw.size:
                raise
            if size >= limits.header_bytes:
                what = "size of the pickles in bytes (at least)"
                raise over_limit(raw.path, what, size + 1, limits.header_bytes) from None
            size = min(8 * size, raw.size, limits.header_bytes)
    return Checkpoint(value, _places(raw, machine, keys))


def _damaged(raw: ByteFile, message: str) -> CorruptFile:
    return corrupt("CV-S062", raw.path, f"the checkpoint is damaged: {message}")


def _pickles(machine: PickleMachine, raw: ByteFile) -> tuple[Any, list[str]]:
    if machine.load() != _MAGIC:
        raise unusable("CV-S051", raw.path, "this is not a PyTorch checkpoint: its magic number is missing")
    if machine.load() != _PROTOCOL:
        raise unusable("CV-S062", raw.path, f"the checkpoint's protocol is not {_PROTOCOL}")
    facts = machine.load()
    if not isinstance(facts, dict) or facts.get("little_endian") is not True:
        raise unusable("CV-S062", raw.path, "the elements are not stored in little-endian order")
    value = machine.load()
    keys = machine.load()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise _damaged(raw, "its last pickle is not a list of storage keys")
    return value, keys


def _places(raw: ByteFile, machine: PickleMachine, keys: list[str]) -> dict[str, int]:
    """Where each storage's elements begin: a count of eight bytes goes before them."""
    begins: dict[str, int] = {}
    storages, position = machine.rebuilder.storages, machine.position
    for key in keys:
        storage = storages.get(key)
        if storage is None or key in begins:
            raise _damaged(raw, f"the storage {quoted(key)} is listed but not described, or listed twice")
        count = int.from_bytes(raw.bytes_at(position, 8), "little")
        if count != storage.numel:
            raise _damaged(
                raw, f"the storage {quoted(key)} claims {storage.numel:,} elements, the file has {count:,}"
            )
        begins[key] = position + 8
        position += 8 + count * storage.dtype.size
    missing = next((key for key in storages if key not in begins), None)
    if missing is not None:
        raise _damaged(raw, f"the storage {quoted(missing)} is not in the file")
    if position != raw.size:
        raise _damaged(raw, f"its storages end at byte {position:,}, the file at {raw.size:,}")
    return begins
