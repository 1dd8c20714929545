"""Every cap on untrusted input, in one table (PROMISES 17). Flags may raise them; nothing else may."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """Caps on what a file may ask a parser to do."""

    header_bytes: int = 32 * MIB  # safetensors header, GGUF key-values, pickle stream
    tensors: int = 200_000
    rank: int = 8
    name_bytes: int = 512
    json_bytes: int = 64 * MIB  # index and config files; tokenizer.json of large vocabularies
    json_depth: int = 64
    yaml_bytes: int = 4 * MIB
    yaml_depth: int = 32
    yaml_aliases: int = 1_000
    pickle_ops: int = 20_000_000
    archive_entries: int = 400_000
    shards: int = 20_000


DEFAULT = Limits()
