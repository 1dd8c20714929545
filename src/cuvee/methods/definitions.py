"""Which module defines a built-in method or stage, without importing the others.

A look-up costs the import of one small module, however many there are: the module named like it is tried first,
then those whose text defines the name. Names that only code puts together are found by importing the folder.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_SUFFIX = ".py"


def modules(folders: Iterable[str]) -> Iterator[Any]:
    """Every module of these folders, imported."""
    for folder in folders:
        for name in _listed(folder):
            yield importlib.import_module(name)


def likely(folders: Iterable[str], name: str) -> Iterator[Any]:
    """The modules that may define a method or stage of this name, likeliest first, each imported when it is reached."""
    defines = re.compile(rb"""(?:\bname\s*=|\bstage\()\s*["']""" + re.escape(name.encode()) + rb"""["']""")
    every = [(module, path) for folder in folders for module, path in _listed(folder).items()]
    for module, _ in every:
        if module.rpartition(".")[2] == name:
            yield importlib.import_module(module)
    for module, path in every:
        if defines.search(_text(path)):
            yield importlib.import_module(module)


@functools.cache
def _listed(folder: str) -> dict[str, Path]:
    """Modules below a folder of this package by full name, in alphabetical order."""
    here = Path(__file__).parent
    found: dict[str, Path] = {}
    folders = [here / folder] if (here / folder).is_dir() else []
    while folders:
        for path in sorted(folders.pop().iterdir()):
            if path.is_dir() and path.name != "__pycache__":
                folders.append(path)
            elif path.suffix == _SUFFIX and path.stem != "__init__":
                inside = path.relative_to(here).with_suffix("").parts
                found[".".join(("cuvee.methods", *inside))] = path
    return found


@functools.cache
def _text(path: Path) -> bytes:
    return path.read_bytes()
