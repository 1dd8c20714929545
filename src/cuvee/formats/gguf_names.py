"""A GGUF file seen as the Hugging Face checkpoint it was converted from: names, shapes, row order, values.

Reverses what llama.cpp's converter does to the architectures of `gguf_arch`: names, stacked experts, the
order of query and key rows, norm weights stored plus one. Must not open files.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cuvee.core.lazy import torch
from cuvee.core.tensors import Extent, TensorMeta
from cuvee.formats.bytes_file import element_range
from cuvee.formats.file import TensorFile
from cuvee.formats.gguf import GgufFile
from cuvee.formats.gguf_arch import ARCHITECTURES, COMPUTED, OUTER, Architecture
from cuvee.formats.gguf_config import hf_config
from cuvee.formats.refusals import corrupt, quoted, unusable

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["hf_config", "hf_view"]

_BLOCK = re.compile(r"blk\.(\d{1,6})\.(.+)", re.ASCII)
_OLD_EXPERT = re.compile(r"ffn_(gate|down|up)\.(\d{1,6})", re.ASCII)  # Mixtral before experts were stacked
_TABLE_LENGTH = 4096


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where a Hugging Face tensor comes from: `begin` is its first element in the GGUF tensor `name`."""

    name: str
    begin: int
    change: Literal["none", "rotated", "shifted"]
    heads: int = 0


class HfView:
    """A GGUF file under Hugging Face names; see `TensorFile`.

    `metadata` is the file's, with entries under `cuvee.` that `hf_config` needs.
    """

    format = "gguf"

    def __init__(
        self, file: GgufFile, found: dict[str, tuple[TensorMeta, _Origin]], notes: dict[str, Any]
    ) -> None:
        self.path = file.path
        self.tensors: Mapping[str, TensorMeta] = {name: meta for name, (meta, _) in found.items()}
        self.metadata: Mapping[str, Any] = {**file.metadata, **notes}
        self._origins = {name: origin for name, (_, origin) in found.items()}
        self.encodings: Mapping[str, str] = {
            name: file.encodings[origin.name]
            for name, origin in self._origins.items()
            if origin.name in file.encodings
        }
        self._file = file

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Elements [start, stop) of the tensor as its Hugging Face original orders them."""
        meta, origin = self.tensors[name], self._origins[name]
        first, last = element_range(meta, start, stop)
        if origin.change == "rotated" and meta.numel:
            return self._unrotated(meta, origin, first, last)
        out = self._file.read(origin.name, origin.begin + first, origin.begin + last)
        return out.sub_(1) if origin.change == "shifted" else out

    def _unrotated(self, meta: TensorMeta, origin: _Origin, first: int, last: int) -> Tensor:
        """Rows of each head from interleaved pairs (x₀ y₀ x₁ y₁ …) back to halves (x₀ x₁ … y₀ y₁ …)."""
        out = torch.empty(last - first, dtype=meta.dtype.torch)
        size = meta.numel // origin.heads
        half = meta.shape[0] // origin.heads // 2
        for head in range(first // size, -(-last // size)):
            begin, end = max(first, head * size), min(last, (head + 1) * size)
            stored = self._file.read(origin.name, head * size, (head + 1) * size)
            rows = stored.view(half, 2, -1).transpose(0, 1).reshape(-1)
            out[begin - first : end - first] = rows[begin - head * size : end - head * size]
        return out

    def extent(self, name: str) -> Extent | None:
        """Where the bytes lie, for plain tensors whose values and order were not changed."""
        meta, origin = self.tensors[name], self._origins[name]
        whole = self._file.extent(origin.name) if origin.change == "none" else None
        if whole is None:
            return None
        return Extent(whole.path, whole.offset + origin.begin * meta.dtype.size, meta.nbytes)

    def close(self) -> None:
        """Close the file; reads fail afterwards."""
        self._file.close()


def hf_view(file: GgufFile) -> TensorFile:
    """The file under Hugging Face names; the file itself when its architecture is not in the table.

    SourceError when the architecture is known but a tensor is not, for such a model would be incomplete.
    """
    architecture = ARCHITECTURES.get(str(file.metadata.get("general.architecture")))
    if architecture is None:
        return file
    found: dict[str, tuple[TensorMeta, _Origin]] = {}
    notes: dict[str, Any] = {}
    for meta in file.tensors.values():
        stem = meta.name.rpartition(".")[0] or meta.name
        if stem in COMPUTED:
            notes[f"cuvee.{stem}"] = _numbers(file, meta)
            continue
        for target, origin in _targets(file, meta, architecture):
            if target.name in found:
                message = f"{quoted(meta.name)} and another tensor are both {quoted(target.name)}"
                raise corrupt("CV-S058", file.path, message, tensor=meta.name)
            found[target.name] = (target, origin)
    return HfView(file, found, notes | _facts(found))


def _facts(found: dict[str, tuple[TensorMeta, _Origin]]) -> dict[str, Any]:
    """What only the tensors tell about the config."""
    embedding = found.get("model.embed_tokens.weight")
    return {
        "cuvee.tie_word_embeddings": "lm_head.weight" not in found,
        "cuvee.attention_bias": "model.layers.0.self_attn.q_proj.bias" in found,
        "cuvee.mlp_bias": "model.layers.0.mlp.up_proj.bias" in found,
        "cuvee.query_norm": any(".q_layernorm." in name for name in found),
        "cuvee.second_norm": "model.layers.0.post_attention_layernorm.weight" in found,
        "cuvee.vocab_size": embedding[0].shape[0] if embedding and embedding[0].shape else None,
    }


def _targets(file: GgufFile, meta: TensorMeta, known: Architecture) -> Iterator[tuple[TensorMeta, _Origin]]:
    """The Hugging Face tensors that one GGUF tensor holds."""
    stem, suffix = meta.name, ""
    if meta.name.endswith((".weight", ".bias")):
        stem, _, suffix = meta.name.rpartition(".")
    target = _target(stem, known)
    if target is None:
        raise unusable(
            "CV-S079",
            file.path,
            f"the tensor {quoted(meta.name)} is not one that its architecture is known to have",
            tensor=meta.name,
            hint="use the original safetensors checkpoint",
        )
    ending = f".{suffix}" if suffix else ""
    if "{}" not in target:
        yield _whole(file, meta, known, stem, target + ending)
        return
    if not meta.shape:
        raise corrupt("CV-S065", file.path, "a stack of tensors is a single number", tensor=meta.name)
    size = meta.numel // max(meta.shape[0], 1)
    for entry in range(meta.shape[0]):
        name = target.format(entry) + ending
        yield TensorMeta(name, meta.dtype, meta.shape[1:]), _Origin(meta.name, entry * size, "none")


def _target(stem: str, known: Architecture) -> str | None:
    """The Hugging Face stem of a GGUF stem."""
    block = _BLOCK.fullmatch(stem)
    if block is None:
        return OUTER.get(stem)
    part = block[2]
    old = _OLD_EXPERT.fullmatch(part)
    if old is not None and "ffn_gate_exps" in known.blocks:
        inner: str | None = known.blocks[f"ffn_{old[1]}_exps"].format(int(old[2]))
    else:
        inner = known.blocks.get(part)
    return None if inner is None else f"model.layers.{int(block[1])}.{inner}"


def _whole(
    file: GgufFile, meta: TensorMeta, known: Architecture, stem: str, name: str
) -> tuple[TensorMeta, _Origin]:
    """A tensor that maps to one tensor, with the change its values or rows went through."""
    if name.endswith("shared_expert_gate.weight") and len(meta.shape) == 1:
        return TensorMeta(name, meta.dtype, (1, *meta.shape)), _Origin(meta.name, 0, "none")
    target = TensorMeta(name, meta.dtype, meta.shape)
    if known.shifted and stem.endswith("norm") and meta.dtype.is_float:
        return target, _Origin(meta.name, 0, "shifted")
    if known.rotated and stem.endswith((".attn_q", ".attn_k")):
        heads = _heads(file, stem.endswith(".attn_k"))
        if not meta.shape or meta.shape[0] % (2 * heads):
            message = f"{list(meta.shape)[:1]} rows do not divide into {heads} heads of pairs"
            raise corrupt("CV-S065", file.path, message, tensor=meta.name)
        return target, _Origin(meta.name, 0, "rotated", heads)
    return target, _Origin(meta.name, 0, "none")


def _heads(file: GgufFile, keys: bool) -> int:
    """The number of query or key heads; SourceError when the file does not say one number."""
    prefix = f"{file.metadata['general.architecture']}.attention.head_count"
    count = file.metadata.get(prefix)
    if keys:
        count = file.metadata.get(f"{prefix}_kv", count)
    if type(count) is not int or count < 1:
        raise unusable("CV-S065", file.path, f"`{prefix}` is {quoted(str(count))}, expected one whole number")
    return count


def _numbers(file: GgufFile, meta: TensorMeta) -> tuple[float, ...]:
    """The values of a small float32 table, read without torch."""
    extent = file.extent(meta.name)
    if extent is None or meta.dtype.code != "F32" or meta.numel > _TABLE_LENGTH:
        raise corrupt(
            "CV-S065", file.path, "a table of rope factors is not a short float32 list", tensor=meta.name
        )
    return struct.unpack(f"<{meta.numel}f", file.raw_bytes(meta.name))
