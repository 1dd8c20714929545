"""Heavy modules, imported at first use: `check`, `plan` and `--help` must never pay for torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any


class _Lazy:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(importlib.import_module(self._name), attribute)
        self.__dict__[attribute] = value  # later look-ups cost a plain attribute access
        return value


if TYPE_CHECKING:
    import numpy
    import torch
else:
    torch = _Lazy("torch")
    numpy = _Lazy("numpy")

__all__ = ["numpy", "torch"]
