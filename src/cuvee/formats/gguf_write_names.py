"""The tensors of a Hugging Face checkpoint as a GGUF file orders, names and stacks them.

The inverse of `gguf_names`, from the same table (`gguf_arch`): query and key rows interleaved for rotary
embedding, norms stored plus one, experts stacked, a tied output left out. Must not read files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from cuvee.core.names import natural, printable
from cuvee.core.tensors import TensorMeta
from cuvee.errors import SourceError, Where
from cuvee.formats.gguf_arch import ARCHITECTURES, OUTER, Architecture
from cuvee.formats.refusals import quoted

_LAYER = re.compile(r"model\.layers\.(\d{1,6})\.(.+)", re.ASCII)
_BUFFERS = (".rotary_emb.inv_freq", ".attention.masked_bias")  # computed from the config by every loader
_WIDE = ("F16", "BF16", "Q8_0")


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One GGUF tensor: what it is called, and the Hugging Face tensors whose elements it joins.

    `change` says what happens to each on the way; `heads` belongs to `interleaved`.
    """

    name: str
    shape: tuple[int, ...]
    origins: tuple[str, ...]
    change: Literal["none", "interleaved", "shifted"] = "none"
    heads: int = 0


@dataclass(frozen=True, slots=True)
class Heads:
    """How many query and key heads a layer has."""

    query: int
    key: int


def outgoing(
    architecture: str, tensors: Mapping[str, TensorMeta], heads: Heads, *, tied: bool
) -> list[Outgoing]:
    """All tensors of the file, in the order they are written.

    Raises:
        SourceError: CV-S090 a tensor that the architecture does not have in GGUF, or one that does not fit;
            CV-S091 a layer or an expert lacks tensors that others have.
    """
    known = ARCHITECTURES[architecture]
    inverse = {target: part for part, target in known.blocks.items()}
    whole: dict[str, Outgoing] = {}
    stacks: dict[str, dict[int, TensorMeta]] = {}
    for name, meta in tensors.items():
        if name.endswith(_BUFFERS) or (tied and name == "lm_head.weight"):
            continue
        target, entry = _target(name, inverse)
        if target is None:
            raise _misfit(name, f"a GGUF file of the architecture `{architecture}` has no place for it")
        if not meta.dtype.is_float:
            raise _misfit(name, f"its elements are {meta.dtype}, expected a float type")
        if entry is not None:
            stacks.setdefault(target, {})[entry] = meta
        else:
            whole[target] = _single(target, meta, known, heads)
    found = whole | {name: _stacked(name, stack) for name, stack in stacks.items()}
    _check_layers(found)
    return sorted(found.values(), key=_order)


def encoding_of(tensor: Outgoing, wanted: str) -> str:
    """How a tensor is stored when `wanted` is asked for: vectors, norms and routers stay F32.

    Rows that are not made of whole Q8_0 blocks are stored as F16.
    """
    if wanted not in _WIDE or len(tensor.shape) < 2 or tensor.name.endswith("_norm.weight"):
        return "F32"
    if ".ffn_gate_inp." in tensor.name:
        return "F32"
    if wanted == "Q8_0" and tensor.shape[-1] % 32:
        return "F16"
    return wanted


def _target(name: str, inverse: Mapping[str, str]) -> tuple[str | None, int | None]:
    """The GGUF name and, for one entry of a stack, its number."""
    stem, dot, suffix = name.rpartition(".")
    if suffix not in ("weight", "bias"):
        return None, None
    layer = _LAYER.fullmatch(stem)
    if layer is None:
        outer = next((part for part, target in OUTER.items() if target == stem), None)
        return (None if outer is None else outer + dot + suffix), None
    prefix = f"blk.{int(layer[1])}."
    if layer[2] in inverse:
        return prefix + inverse[layer[2]] + dot + suffix, None
    numbers = list(re.finditer(r"(?<=\.)\d{1,6}(?=\.|$)", layer[2]))
    if numbers:
        at = numbers[-1]
        part = inverse.get(layer[2][: at.start()] + "{}" + layer[2][at.end() :])
        if part is not None:
            return prefix + part + dot + suffix, int(at[0])
    return None, None


def _single(target: str, meta: TensorMeta, known: Architecture, heads: Heads) -> Outgoing:
    stem = target.rpartition(".")[0]
    if stem.endswith("ffn_gate_inp_shexp") and len(meta.shape) == 2 and meta.shape[0] == 1:
        return Outgoing(target, meta.shape[1:], (meta.name,))
    if known.shifted and stem.endswith("norm"):
        return Outgoing(target, meta.shape, (meta.name,), "shifted")
    if known.rotated and stem.endswith((".attn_q", ".attn_k")):
        count = heads.key if stem.endswith(".attn_k") else heads.query
        if not meta.shape or count < 1 or meta.shape[0] % (2 * count):
            rows = list(meta.shape)[:1]
            raise _misfit(meta.name, f"its {rows} rows do not divide into {count} heads of pairs")
        return Outgoing(target, meta.shape, (meta.name,), "interleaved", count)
    return Outgoing(target, meta.shape, (meta.name,))


def _stacked(name: str, entries: Mapping[int, TensorMeta]) -> Outgoing:
    """One tensor of all experts; SourceError when one is missing or shaped otherwise."""
    first = next(iter(entries.values()))
    missing = sorted(set(range(len(entries))) - set(entries))
    if missing:
        raise SourceError(
            "CV-S091", f"{quoted(name)} would stack {len(entries)} tensors, number {missing[0]} is missing"
        )
    for meta in entries.values():
        if meta.shape != first.shape:
            raise _misfit(meta.name, f"its shape {list(meta.shape)} is not that of `{printable(first.name)}`")
    origins = tuple(entries[number].name for number in range(len(entries)))
    return Outgoing(name, (len(entries), *first.shape), origins)


def _check_layers(found: Mapping[str, Outgoing]) -> None:
    """SourceError unless every layer has the same tensors, and the layers are 0, 1, 2, …"""
    parts: dict[int, set[str]] = {}
    for name in found:
        if name.startswith("blk."):
            _, number, part = name.split(".", 2)
            parts.setdefault(int(number), set()).add(part)
    everything = set().union(*parts.values()) if parts else set()
    for layer in range(max(parts, default=-1) + 1):
        missing = sorted(everything - parts.get(layer, set()))
        if missing:
            raise SourceError(
                "CV-S091", f"layer {layer} has nothing for `{missing[0]}`, which other layers have"
            )
    if "token_embd.weight" not in found:
        raise SourceError("CV-S091", "there is no tensor `model.embed_tokens.weight`")


def _order(tensor: Outgoing) -> tuple[int, list[tuple[int, int | str]]]:
    rank = {"token_embd": 0, "output_norm": 2, "output": 3}.get(tensor.name.split(".")[0], 1)
    return rank, natural(tensor.name)


def _misfit(name: str, reason: str) -> SourceError:
    return SourceError(
        "CV-S090",
        f"{quoted(name)} cannot be written to GGUF: {reason}",
        where=Where(tensor=printable(name)),
        hint="write a folder of safetensors instead: `-o FOLDER`",
    )
