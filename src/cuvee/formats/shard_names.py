"""The file names that mean something in a model folder: weights, shards, adapters, training leftovers.

A table and two small questions. Must not touch the disk.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

INDEX_SUFFIX = ".index.json"
SAFETENSORS_NAMES = ("model.safetensors", "diffusion_pytorch_model.safetensors")
TORCH_NAMES = ("pytorch_model.bin", "diffusion_pytorch_model.bin")
TORCH_SUFFIXES = (".bin", ".pt", ".pth")

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{1,6})-of-(?P<total>\d{1,6})(?P<suffix>\.[a-z]+)", re.ASCII)

# Files beside a model that hold tensors, but not the model's.
_NOT_WEIGHTS = re.compile(
    r"adapter_model\.(safetensors|bin)|mmproj.*\.gguf|"
    r"(training_args|optimizer|optim|scheduler|scaler|random_states_\d+|rng_state(_\d+)?|zero_pp_rank.*)"
    r"\.(bin|pt|pth|safetensors)",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class ShardPlace:
    """`model-00002-of-00006.safetensors`: stem `model`, number 2, total 6."""

    stem: str
    number: int
    total: int
    suffix: str


def shard_place(name: str) -> ShardPlace | None:
    """Which shard of how many a file name says it is; None when it says nothing."""
    match = _SHARD.fullmatch(name)
    if match is None:
        return None
    return ShardPlace(match["stem"], int(match["number"]), int(match["total"]), match["suffix"])


def holds_weights(name: str) -> bool:
    """Whether a file of this name may be the model itself."""
    return _NOT_WEIGHTS.fullmatch(name.lower()) is None
