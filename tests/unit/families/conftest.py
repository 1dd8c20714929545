"""Tiny models of every family, built once for the whole folder of tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Built:
    """A tiny model on disk: its folder, config and tensor shapes."""

    folder: Path
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]


def shapes_of(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by name, read by the safetensors library (not by our own reader)."""
    from safetensors import safe_open

    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found.update({name: tuple(file.get_slice(name).get_shape()) for name in file.keys()})  # noqa: SIM118
    return found


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Built]:
    """Builds `tiny(family, **options)` once and remembers it."""
    from cuvee.testing.tiny_models import tiny

    done: dict[str, Built] = {}

    def make(family: str, **options: Any) -> Built:
        key = json.dumps([family, options], sort_keys=True)
        if key not in done:
            folder = tiny(family, folder=tmp_path_factory.mktemp(family), **options)
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            done[key] = Built(folder, config, shapes_of(folder))
        return done[key]

    return make
