"""The zip container of PyTorch checkpoints: one pickle (`data.pkl`), one member per storage (`data/0`).

Must not interpret the pickle or read elements.
"""

from __future__ import annotations

from cuvee.core.limits import Limits
from cuvee.errors import CorruptFile
from cuvee.formats.bytes_file import ByteFile
from cuvee.formats.pickle_machine import PickleMachine
from cuvee.formats.pickle_values import Checkpoint, Storage
from cuvee.formats.refusals import corrupt, over_limit, quoted, unusable
from cuvee.formats.zip_archive import Member, read_directory


def read_zip(raw: ByteFile, limits: Limits) -> Checkpoint:
    """The value of the archive's pickle, every storage it names checked against its member."""
    members = read_directory(raw, limits)
    folder = _folder(raw, members)
    if f"{folder}/constants.pkl" in members or any(name.startswith(f"{folder}/code/") for name in members):
        raise unusable(
            "CV-S062",
            raw.path,
            "this is a TorchScript archive, which holds a program",
            hint="save the state dict of the module instead",
        )
    order = members.get(f"{folder}/byteorder")
    if order is not None and raw.bytes_at(order.offset, min(order.size, 16)) != b"little":
        raise unusable("CV-S062", raw.path, "the elements are not stored in little-endian order")
    pickled = members[f"{folder}/data.pkl"]
    if pickled.size > limits.header_bytes:
        raise over_limit(raw.path, "size of the pickle in bytes", pickled.size, limits.header_bytes)
    machine = PickleMachine(raw.bytes_at(pickled.offset, pickled.size), raw.path, limits)
    value = machine.load()
    if machine.position != pickled.size:
        raise _damaged(raw, "bytes follow the end of its pickle")
    storages = machine.rebuilder.storages
    begins = {key: _begin(raw, members, folder, storage) for key, storage in storages.items()}
    return Checkpoint(value, begins)


def _damaged(raw: ByteFile, message: str) -> CorruptFile:
    return corrupt("CV-S062", raw.path, f"the archive is damaged: {message}")


def _folder(raw: ByteFile, members: dict[str, Member]) -> str:
    """The one folder that holds everything."""
    folders = {name.split("/")[0] for name in members if "/" in name}
    loose = [name for name in members if "/" not in name]
    folder = next(iter(folders), "")
    if len(folders) != 1 or loose or f"{folder}/data.pkl" not in members:
        raise unusable(
            "CV-S062", raw.path, "this zip archive is not a PyTorch checkpoint: no single `data.pkl`"
        )
    return folder


def _begin(raw: ByteFile, members: dict[str, Member], folder: str, storage: Storage) -> int:
    """Where a storage's bytes begin; its member must have exactly the claimed size."""
    member = members.get(f"{folder}/data/{storage.key}")
    if member is None:
        raise _damaged(raw, f"the storage {quoted(storage.key)} has no member")
    claimed = storage.numel * storage.dtype.size
    if member.size != claimed:
        raise _damaged(
            raw, f"the storage {quoted(storage.key)} claims {claimed:,} bytes, its member has {member.size:,}"
        )
    return member.offset
