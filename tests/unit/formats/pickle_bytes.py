"""Checkpoints for the tests, written opcode by opcode and record by record, so that they may lie."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
import zlib
from pathlib import Path


def put(path: Path, data: bytes) -> Path:
    """Write a file anew without emptying it first, which some file systems make slow."""
    with path.open("r+b" if path.exists() else "wb") as out:
        out.write(data)
        out.truncate(len(data))
    return path


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(key: str = "0", numel: int = 4, kind: str = "FloatStorage", window: bytes = b"") -> bytes:
    return (
        b"("
        + text("storage")
        + name("torch", kind)
        + text(key)
        + text("cpu")
        + number(numel)
        + window
        + b"tQ"
    )


def tensor(
    stored: bytes,
    shape: tuple[int, ...] = (4,),
    stride: tuple[int, ...] = (1,),
    offset: int = 0,
    rest: bytes = b"",
) -> bytes:
    hooks = name("collections", "OrderedDict") + b")R"
    return (
        name("torch._utils", "_rebuild_tensor_v2")
        + b"("
        + stored
        + number(offset)
        + numbers(shape)
        + numbers(stride)
        + b"\x89"
        + hooks
        + rest
        + b"tR"
    )


def mapping(*items: tuple[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items) + b"u"


def whole(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


GOOD = whole(mapping(("w", tensor(storage()))))
FLOATS = struct.pack("<4f", 1, 2, 3, 4)


def archive(
    path: Path, pickled: bytes, members: dict[str, bytes] | None = None, compress: bool = False
) -> Path:
    """A zip checkpoint with this pickle and these storages."""
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as out:
        out.writestr("x/data.pkl", pickled)
        for member, data in (members if members is not None else {"data/0": FLOATS}).items():
            out.writestr(f"x/{member}", data)
    return put(path, buffer.getvalue())


def legacy(path: Path, pickled: bytes, keys: list[str], storages: bytes) -> Path:
    """A checkpoint of the old stream format."""
    facts = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    head = b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, facts))
    return put(path, head + pickled + pickle.dumps(keys, 2) + storages)


def record(entry: str, data: bytes, **lies: int) -> tuple[bytes, bytes]:
    """The local and the central record of a stored member; `lies` replace fields of the central one."""
    encoded = entry.encode("utf-8", "surrogateescape")
    crc, size = zlib.crc32(data), len(data)
    local = (
        struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 20, 0, 0, 0, 0, crc, size, size, len(encoded), 0)
        + encoded
        + data
    )
    fields = {"flags": 0, "method": 0, "packed": size, "size": size, "offset": 0} | lies
    central = struct.pack(
        "<4sHHHHHHIIIHHHHHII",
        b"PK\1\2", 20, 20, fields["flags"], fields["method"], 0, 0, crc, fields["packed"], fields["size"],
        len(encoded), 0, 0, 0, 0, 0, fields["offset"],
    )  # fmt: skip
    return local, central + encoded


def raw_archive(
    path: Path, members: list[tuple[str, bytes]], lies: dict[int, dict[str, int]] | None = None
) -> Path:
    """A zip file whose directory is written by hand; `lies` by position of the member."""
    body, directory = b"", b""
    for position, (entry, data) in enumerate(members):
        local, central = record(entry, data, **({"offset": len(body)} | (lies or {}).get(position, {})))
        body, directory = body + local, directory + central
    count = len(members)
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, count, count, len(directory), len(body), 0)
    path.write_bytes(body + directory + end)
    return path
