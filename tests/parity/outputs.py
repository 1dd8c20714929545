"""What a merge left in a folder: tensors, the facts of config.json, token ids; and how far two sets of tensors differ.

Shared by the comparison of whole runs and the test of the stored references; imports neither program.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

# Greatest error of an element relative to the largest of its tensor. Half types: both sides round to 8 or 11 bits,
# and MergeKit rounds after every operation where we round once.
TOLERANCE = {"float64": 1e-6, "float32": 2e-6, "float16": 2e-3, "bfloat16": 1e-2}


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of an output folder (all shards), or of one file."""
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else [folder]
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


@dataclass(frozen=True)
class Difference:
    """How one tensor differs: `what` is names, shape, dtype, or values with their error."""

    tensor: str
    what: str
    error: float = 0.0


def error_of(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """max |ours − theirs| / max |theirs|, in float64."""
    if not theirs.numel():
        return 0.0
    a, b = ours.double(), theirs.double()
    size = float(b.abs().max()) or 1.0
    gap = float((a - b).abs().max())
    return gap / size if gap == gap else float("inf")


def kind(tensor: torch.Tensor) -> str:
    """`float32` for torch.float32."""
    return str(tensor.dtype).removeprefix("torch.")


def differences(
    ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]
) -> tuple[list[Difference], dict[str, float]]:
    """Every difference beyond the tolerance, and the worst error for each type."""
    found = [Difference(n, "missing from ours") for n in sorted(theirs.keys() - ours.keys())]
    found += [Difference(n, "only in ours") for n in sorted(ours.keys() - theirs.keys())]
    worst: dict[str, float] = {}
    for name in sorted(ours.keys() & theirs.keys()):
        a, b = ours[name], theirs[name]
        if a.shape != b.shape:
            found.append(Difference(name, f"shape {list(a.shape)} for {list(b.shape)}"))
            continue
        if a.dtype != b.dtype:
            found.append(Difference(name, f"type {kind(a)} for {kind(b)}"))
        error = error_of(a, b)
        coarser = kind(b) if TOLERANCE.get(kind(b), 0) >= TOLERANCE.get(kind(a), 0) else kind(a)
        worst[coarser] = max(worst.get(coarser, 0.0), error)
        if error > TOLERANCE.get(coarser, 0.0):
            found.append(Difference(name, "values", error))
    return found, worst


def facts(folder: Path) -> dict[str, Any]:
    """The facts of config.json that weights must agree with."""
    path = folder / "config.json"
    if not path.exists():
        return {}
    config = json.loads(path.read_text())
    flat = {**config, **{f"text_config.{k}": v for k, v in (config.get("text_config") or {}).items()}}
    flat |= {f"vision_config.{k}": v for k, v in (config.get("vision_config") or {}).items()}
    keys = ("num_hidden_layers", "n_layer", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers",
            "vocab_size", "tie_word_embeddings", "architectures", "model_type", "hidden_size")  # fmt: skip
    kept = {k: v for k, v in flat.items() if k.rpartition(".")[2] in keys}
    return kept | {"dtype": config.get("dtype", config.get("torch_dtype"))}


def token_ids(folder: Path) -> dict[str, int]:
    """Ids of every token of tokenizer.json."""
    path = folder / "tokenizer.json"
    if not path.exists():
        return {}
    content = json.loads(path.read_text())
    vocabulary = dict(content["model"]["vocab"])
    return vocabulary | {entry["content"]: entry["id"] for entry in content.get("added_tokens", [])}
