"""GGUF files for the tests: sound ones by the `gguf` package, hostile ones byte by byte."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quants
from gguf.constants import GGML_QUANT_SIZES


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def info(name: str, lengths: tuple[int, ...], kind: int, offset: int) -> bytes:
    dims = struct.pack(f"<{len(lengths)}Q", *lengths)
    return string(name) + struct.pack("<I", len(lengths)) + dims + struct.pack("<IQ", kind, offset)


def raw(
    path: Path,
    pairs: list[bytes],
    infos: list[bytes],
    data: bytes = b"",
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> Path:
    """A file of these parts; `counts` may lie about how many there are."""
    tensors, keys = counts or (len(infos), len(pairs))
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + b"".join(pairs) + b"".join(infos)
    path.write_bytes(head + bytes(-len(head) % 32) + data)
    return path


def packed(kind: GGMLQuantizationType, rows: int, seed: int = 0) -> np.ndarray:
    """Two blocks a row of any encoding: quantised where the package can, arbitrary bytes elsewhere."""
    elements, size = GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(seed + int(kind))
    values = random.normal(size=(rows, 2 * elements)).astype(np.float32)
    try:
        return quants.quantize(values, kind)
    except NotImplementedError:
        return random.integers(0, 60, size=(rows, 2 * size), dtype=np.uint8)


def write(
    path: Path, architecture: str, tensors: dict[str, Any], settings: dict[str, Any] | None = None
) -> Path:
    """A sound file; tensors are arrays, or (bytes, encoding)."""
    writer = GGUFWriter(path, architecture)
    for key, value in (settings or {}).items():
        add = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
        }
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            add[type(value)](key, value)
    for name, value in tensors.items():
        if isinstance(value, tuple):
            writer.add_tensor(name, value[0], raw_dtype=value[1])
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
