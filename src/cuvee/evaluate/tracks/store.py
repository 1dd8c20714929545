"""Trained experts and prepared data kept by content address: nothing is made twice, an interrupted build goes on.

Files are safetensors in the cache; the address covers data, training and seed. The state of a training that is not
finished lies in `training` under the same address.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from blake3 import blake3

from cuvee.core import disk
from cuvee.core.cache import folder as cache_folder
from cuvee.evaluate.tracks import state

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Making:
    """Something that is not in the cache is being made (`seconds` is None), or was made in so many seconds.

    `done`: the share of a training (0…1) that an earlier process did, and that it goes on from now.
    """

    name: str
    kind: str
    seconds: float | None = None
    done: float = 0.0


Listener = Callable[[Making], None]
_UNFINISHED = "training"
_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def told(listener: Listener) -> Iterator[None]:
    """Inside, the listener hears of everything that is made for the cache: training takes minutes without a word."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def _tell(making: Making) -> None:
    listener = _LISTENER.get()
    if listener is not None:
        listener(making)


def address(*parts: str) -> str:
    """The content address of what is made from these parts."""
    return blake3("/".join(parts).encode()).hexdigest(length=16)


def place(address: str, name: str, kind: str = "experts") -> Path:
    """The file of a trained model, or of another `kind` of tensors."""
    return cache_folder() / "evaluate" / kind / f"{name}-{address}.safetensors"


def kept(
    address: str, name: str, make: Callable[[], Mapping[str, Tensor]], *, kind: str = "experts"
) -> dict[str, Tensor]:
    """The stored tensors, made and stored first where there are none.

    A training inside `make` keeps its state beside them until they are stored, and goes on from one that is there.
    """
    from safetensors.torch import load_file, save

    path, unfinished = place(address, name, kind), place(address, name, _UNFINISHED)
    if not path.exists():
        _tell(Making(name, kind))
        began = time.monotonic()
        with state.kept_at(state.Place(unfinished, lambda done: _tell(Making(name, kind, done=done)))):
            made = {key: tensor.contiguous() for key, tensor in make().items()}
            disk.make_folders(path.parent)
            disk.write_file(path, save(made))
        _tell(Making(name, kind, time.monotonic() - began))
    elif unfinished.exists():  # killed between the two, or another process was faster
        state.remove(unfinished)
    return dict(load_file(path))
