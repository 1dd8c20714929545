"""Tiny Llama checkpoints whose every value is a function of a seed and the tensor's name, drawn by NumPy.

So they are the same bytes on every machine, with no model library involved. Values come in two kinds: `smooth`
(normal, no two magnitudes alike) and `coarse` (multiples of 1/64, many magnitudes alike: ties at thresholds).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import save_file

HIDDEN, INNER, HEADS, GROUPS, LAYERS, VOCABULARY = 16, 24, 4, 2, 4, 40
Dtype = Literal["float32", "bfloat16", "float16", "float64"]


@dataclass(frozen=True)
class Shape:
    """What a checkpoint looks like: number of layers, rows of the embedding, whether the head shares them."""

    layers: int = LAYERS
    vocabulary: int = VOCABULARY
    tied: bool = False
    architecture: str = "LlamaForCausalLM"
    model_type: str = "llama"


def tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor."""
    width = HIDDEN // HEADS * GROUPS
    yield "model.embed_tokens.weight", (shape.vocabulary, HIDDEN)
    for layer in range(shape.layers):
        start = f"model.layers.{layer}."
        yield f"{start}self_attn.q_proj.weight", (HIDDEN, HIDDEN)
        yield f"{start}self_attn.k_proj.weight", (width, HIDDEN)
        yield f"{start}self_attn.v_proj.weight", (width, HIDDEN)
        yield f"{start}self_attn.o_proj.weight", (HIDDEN, HIDDEN)
        yield f"{start}mlp.gate_proj.weight", (INNER, HIDDEN)
        yield f"{start}mlp.up_proj.weight", (INNER, HIDDEN)
        yield f"{start}mlp.down_proj.weight", (HIDDEN, INNER)
        yield f"{start}input_layernorm.weight", (HIDDEN,)
        yield f"{start}post_attention_layernorm.weight", (HIDDEN,)
    yield "model.norm.weight", (HIDDEN,)
    if not shape.tied:
        yield "lm_head.weight", (shape.vocabulary, HIDDEN)


def drawn(name: str, size: tuple[int, ...], seed: int, *, coarse: bool = False) -> np.ndarray:
    """Standard normal values, float32; `coarse` ones are rounded to multiples of 1/4."""
    generator = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    values = generator.standard_normal(size, dtype=np.float64).astype(np.float32)
    return np.round(values * 4) / 4 if coarse else values


def values(
    shape: Shape, base_seed: int, expert: int = 0, *, scale: float = 0.02, coarse: bool = False
) -> dict[str, torch.Tensor]:
    """The float32 tensors of the base (expert 0), or of an expert that moved away from it by `scale`."""
    out = {}
    for name, size in tensors(shape):
        value = drawn(name, size, base_seed, coarse=coarse) * np.float32(0.0625)
        if "norm" in name:
            value = value + np.float32(1)
        if expert:
            step = np.float32(1 / 64) if coarse else np.float32(scale)
            value = value + drawn(name, size, base_seed + 1000 * expert, coarse=coarse) * step
        out[name] = torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32))
    return out


def config(shape: Shape, dtype: str) -> dict[str, object]:
    """The config.json of a checkpoint."""
    return {
        "architectures": [shape.architecture],
        "model_type": shape.model_type,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS,
        "head_dim": HIDDEN // HEADS,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": shape.tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": dtype,
    }


def write(folder: Path, content: Mapping[str, torch.Tensor], shape: Shape, dtype: Dtype = "float32") -> Path:
    """A model folder with one safetensors file."""
    folder.mkdir(parents=True, exist_ok=True)
    kind = getattr(torch, dtype)
    stored = {n: t.to(kind) if t.is_floating_point() else t for n, t in content.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config(shape, dtype), indent=1))
    return folder


def write_family(
    root: Path,
    shape: Shape | None = None,
    *,
    seed: int = 1,
    experts: str = "abc",
    dtype: Dtype = "float32",
    scale: float = 0.02,
    coarse: bool = False,
) -> None:
    """`root/base` and an expert for each letter."""
    shape = shape or Shape()
    write(root / "base", values(shape, seed, coarse=coarse), shape, dtype)
    for number, letter in enumerate(experts, 1):
        moved = values(shape, seed, number, scale=scale, coarse=coarse)
        write(root / letter, moved, shape, dtype)


def write_stored(root: Path) -> None:
    """The inputs of the stored references."""
    write_family(root / "plain", seed=1)
    write_family(root / "half", seed=2, dtype="bfloat16", scale=0.05)
    write_family(root / "coarse", seed=3, coarse=True)
    write_family(root / "deep", replace(Shape(), layers=6), seed=4, experts="ab")
    write_family(root / "big", seed=9, scale=1.0)
    write_family(root / "tied", replace(Shape(), tied=True), seed=5, experts="ab")
    sparse = values(Shape(), 1)
    for number, letter in enumerate("abc", 1):
        moved = {n: t + sparse_step(n, t, number) for n, t in sparse.items()}
        write(root / "sparse" / letter, moved, Shape())
    write(root / "sparse" / "base", sparse, Shape())
    wide = replace(Shape(), vocabulary=VOCABULARY + 8)
    write(root / "wide", values(wide, 1, 1), wide)


def sparse_step(name: str, tensor: torch.Tensor, expert: int) -> torch.Tensor:
    """A step that leaves two thirds of the entries where they are."""
    step = drawn(name, tuple(tensor.shape), 7000 + expert) * np.float32(0.02)
    chosen = drawn(name + "#", tuple(tensor.shape), 7000 + expert) > 0.43
    return torch.from_numpy(np.where(chosen, step, np.float32(0)))


def write_bare(root: Path) -> None:
    """Bare weight files, without a config: a small network in three trainings."""
    sizes = {"body.0.weight": (12, 7), "body.0.bias": (12,), "body.2.weight": (5, 12), "body.2.bias": (5,)}
    folder = root / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(("zero", "one", "two", "three")):
        start = {n: torch.from_numpy(drawn(n, s, 40)) for n, s in sizes.items()}
        step = {
            n: torch.from_numpy(drawn(n, s, 40 + number)) * (0.1 if number else 0) for n, s in sizes.items()
        }
        content = {n: start[n] + step[n] for n in sizes}
        content["steps"] = torch.tensor([3, 4])
        if name == "two":
            content["extra.weight"] = torch.from_numpy(drawn("extra", (3, 3), 41))
        if name == "three":
            torch.save(content, folder / "three.pt")
        else:
            save_file(content, folder / f"{name}.safetensors")
    shrunk = {n: t[:2] if n == "body.0.weight" else t for n, t in content.items()}
    save_file({n: t.contiguous() for n, t in shrunk.items()}, folder / "small.safetensors")
    save_file({**content, "steps": torch.tensor([3, 5])}, folder / "later.safetensors")


def write_refused(root: Path) -> None:
    """Inputs of recipes that must be refused: another architecture, a missing tensor, a tokenizer."""
    shape = Shape()
    other = replace(shape, architecture="MistralForCausalLM", model_type="mistral")
    write(root / "mistral_like", values(shape, 1, 2), other)
    lacking = values(shape, 1, 2)
    del lacking["model.layers.1.mlp.up_proj.weight"]
    write(root / "lacking", lacking, shape)
    write(root / "spoken", values(shape, 1, 2), shape)
    words = {f"w{i}": i for i in range(shape.vocabulary)}
    model = {"type": "BPE", "vocab": words, "merges": [], "unk_token": "w0"}
    (root / "spoken" / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": []}))
    (root / "spoken" / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
