"""The directory of a zip archive, read strictly: stored members only, each apart from the others.

PyTorch writes such archives. Everything that makes two readers see two archives (duplicates, overlaps, bytes
before the first or after the last record, headers that disagree) is refused. Must not know what members hold.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from cuvee.core.limits import Limits
from cuvee.errors import CorruptFile
from cuvee.formats.bytes_file import ByteFile
from cuvee.formats.member_path import name_flaw
from cuvee.formats.refusals import corrupt, over_limit, quoted, unsafe, unusable

_END = struct.Struct("<4sHHHHIIH")
_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQHHIIQQQQ")
_ENTRY = struct.Struct("<4sHHHHHHIIIHHHHHII")
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_UNKNOWN32 = 0xFFFFFFFF
_SIZES_FOLLOW = 0x0008  # the local header leaves the sizes to a record behind the data
_ALLOWED_FLAGS = _SIZES_FOLLOW | 0x0800  # and names in UTF-8


@dataclass(frozen=True, slots=True)
class Member:
    """Where a member's bytes lie in the archive's file."""

    name: str
    header: int
    offset: int
    size: int


def read_directory(raw: ByteFile, limits: Limits) -> dict[str, Member]:
    """Every member by name, in the order of their bytes."""
    start, size, count = _find_directory(raw)
    if size > limits.header_bytes:
        raise over_limit(raw.path, "size of the archive's directory in bytes", size, limits.header_bytes)
    if count > limits.archive_entries:
        raise over_limit(raw.path, "number of archive members", count, limits.archive_entries)
    data = raw.bytes_at(start, size)
    members: list[Member] = []
    position = 0
    for _ in range(count):
        member, position = _entry(raw, data, position, start)
        members.append(member)
    if position != len(data):
        raise _damaged(raw, f"its directory has {len(data) - position:,} bytes too many")
    members.sort(key=lambda member: member.header)
    _check_layout(raw, members, start)
    return {member.name: member for member in members}


def _damaged(raw: ByteFile, message: str) -> CorruptFile:
    return corrupt("CV-S062", raw.path, f"the archive is damaged: {message}")


def _find_directory(raw: ByteFile) -> tuple[int, int, int]:
    """Offset, size and number of entries of the central directory."""
    if raw.size < _END.size:
        raise _damaged(raw, "it is too short")
    end = raw.size - _END.size
    magic, disk, first_disk, here, count, size, start, comment = _END.unpack(raw.bytes_at(end, _END.size))
    if magic != b"PK\x05\x06" or comment:
        raise _damaged(
            raw, "its last record is not the end of a directory; the file was cut short or added to"
        )
    if disk or first_disk or here != count:
        raise _damaged(raw, "it is split over several disks")
    if end >= _LOCATOR.size + _END64.size:
        locator = _LOCATOR.unpack(raw.bytes_at(end - _LOCATOR.size, _LOCATOR.size))
        if locator[0] == b"PK\x06\x07":
            end = locator[2]
            start, size, count = _wide_directory(raw, end, (start, size, count))
    if start + size != end:
        raise _damaged(raw, "its directory does not end where the last record begins")
    return start, size, count


def _wide_directory(raw: ByteFile, at: int, narrow: tuple[int, int, int]) -> tuple[int, int, int]:
    """The 64-bit form of the last record, checked against the 32-bit one."""
    if at + _END64.size + _LOCATOR.size + _END.size != raw.size:
        raise _damaged(raw, "its 64-bit end record is not where it should be")
    magic, _, _, _, disk, first_disk, here, count, size, start = _END64.unpack(raw.bytes_at(at, _END64.size))
    if magic != b"PK\x06\x06" or disk or first_disk or here != count:
        raise _damaged(raw, "its 64-bit end record is malformed")
    for wide, short, unknown in zip(
        (start, size, count), narrow, (_UNKNOWN32, _UNKNOWN32, 0xFFFF), strict=True
    ):
        if short not in (unknown, wide):
            raise _damaged(raw, "its two end records disagree")
    return start, size, count


def _entry(raw: ByteFile, data: bytes, position: int, end: int) -> tuple[Member, int]:
    """One record of the directory, compared with the local header it points at."""
    if position + _ENTRY.size > len(data):
        raise _damaged(raw, "its directory is cut short")
    fields = _ENTRY.unpack_from(data, position)
    flags, method, packed, size, name_size, extra_size, comment_size = (
        fields[i] for i in (3, 4, 8, 9, 10, 11, 12)
    )
    body = position + _ENTRY.size
    after = body + name_size + extra_size + comment_size
    if fields[0] != b"PK\x01\x02" or after > len(data):
        raise _damaged(raw, "its directory is malformed")
    name = _name(raw, data[body : body + name_size])
    extra = data[body + name_size : body + name_size + extra_size]
    size, packed, header = _wide_fields(raw, extra, (size, packed, fields[16]))
    if flags & ~_ALLOWED_FLAGS:
        raise unusable("CV-S062", raw.path, f"the archive member {quoted(name)} is encrypted or unknown")
    if method != 0 or packed != size:
        raise unusable(
            "CV-S062",
            raw.path,
            f"the archive member {quoted(name)} is compressed; a checkpoint's members are stored as they are",
        )
    offset = _data_offset(raw, name, header, flags, size)
    if offset + size > end:
        raise _damaged(raw, f"the member {quoted(name)} of {size:,} bytes reaches beyond the data")
    return Member(name, header, offset, size), after


def _name(raw: ByteFile, encoded: bytes) -> str:
    try:
        name = encoded.decode("utf-8")
    except UnicodeDecodeError:
        raise _damaged(raw, "a member's name is not valid UTF-8") from None
    flaw = name_flaw(name)
    if flaw:
        raise unsafe("CV-S071", raw.path, f"the archive member {quoted(name)} {flaw}")
    return name


def _wide_fields(raw: ByteFile, extra: bytes, fields: tuple[int, int, int]) -> tuple[int, int, int]:
    """Size, packed size and header offset, from the 64-bit extra field where they do not fit 32 bits."""
    out, position = list(fields), 0
    if _UNKNOWN32 not in fields:
        return fields
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, position)
        if kind == 1:
            values = extra[position + 4 : position + 4 + length]
            for index, field in enumerate(fields):
                if field == _UNKNOWN32:
                    if len(values) < 8:
                        break
                    out[index], values = int.from_bytes(values[:8], "little"), values[8:]
            break
        position += 4 + length
    if _UNKNOWN32 in out:
        raise _damaged(raw, "a member has no 64-bit size")
    return out[0], out[1], out[2]


def _data_offset(raw: ByteFile, name: str, header: int, flags: int, size: int) -> int:
    """Where the member's bytes begin, after a local header that agrees with the directory."""
    if header + _LOCAL.size > raw.size:
        raise _damaged(raw, f"the member {quoted(name)} begins beyond the end of the file")
    encoded = name.encode()
    data = raw.bytes_at(header, min(_LOCAL.size + len(encoded), raw.size - header))
    fields = _LOCAL.unpack_from(data)
    local_size, name_size, extra_size = fields[8], fields[9], fields[10]
    if fields[0] != b"PK\x03\x04" or fields[2] != flags or fields[3] != 0 or data[_LOCAL.size :] != encoded:
        raise _damaged(raw, f"the member {quoted(name)} is described in two ways")
    follows = bool(flags & _SIZES_FOLLOW) and local_size == 0
    if name_size != len(encoded) or not (follows or local_size in (min(size, _UNKNOWN32), _UNKNOWN32)):
        raise _damaged(raw, f"the member {quoted(name)} is described in two ways")
    return header + int(_LOCAL.size + name_size + extra_size)


def _check_layout(raw: ByteFile, members: list[Member], directory: int) -> None:
    """No name twice, no overlap, nothing before the first member."""
    end = 0
    names: set[str] = set()
    for member in members:
        if member.name in names:
            raise corrupt("CV-S058", raw.path, f"the archive holds {quoted(member.name)} twice")
        names.add(member.name)
        if member.header < end:
            raise _damaged(raw, f"the member {quoted(member.name)} overlaps another")
        end = member.offset + member.size
    if members and members[0].header != 0:
        raise _damaged(raw, f"{members[0].header:,} bytes lie before its first member")
    if end > directory:
        raise _damaged(raw, "its last member overlaps its directory")
