"""Files for the tests: safetensors written byte by byte, so that headers may lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def entry(code: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": code, "shape": shape, "data_offsets": [begin, end]}


def write(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    """A file with this header (JSON text, bytes, or a value to encode) and data part."""
    if not isinstance(header, (str, bytes)):
        header = json.dumps(header)
    raw = header.encode() if isinstance(header, str) else header
    size = len(raw) if length is None else length
    path.write_bytes((size & (2**64 - 1)).to_bytes(8, "little") + raw + data)
    return path
