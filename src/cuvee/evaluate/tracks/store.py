"""Trained experts kept by content address, so that nothing is trained twice and an interrupted build goes on.

Files are safetensors in the cache; the address covers data, training and seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cuvee.core import disk
from cuvee.core.cache import folder as cache_folder

if TYPE_CHECKING:
    from torch import Tensor


def place(address: str, name: str) -> Path:
    """The file of a trained model."""
    return cache_folder() / "evaluate" / "experts" / f"{name}-{address}.safetensors"


def kept(address: str, name: str, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The stored tensors, made and stored first where there are none."""
    from safetensors.torch import load_file, save

    path = place(address, name)
    if not path.exists():
        made = {key: tensor.contiguous() for key, tensor in make().items()}
        disk.make_folders(path.parent)
        disk.write_file(path, save(made))
    return dict(load_file(path))
