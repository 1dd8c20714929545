"""Source code as bytes to digest: what other code began, or kept, is not taken for what this code makes.

Owns how the code of a module is found. Knows nothing of what is made.
"""

from __future__ import annotations

from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from blake3 import blake3

from cuvee import __version__

_LIBRARIES = ("transformers", "peft")  # whose networks the tracks train


def source_of(module: str) -> bytes:
    """The source of a module by name; where there is none, cuvee's version."""
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):  # of a script, or of no module at all
        spec = None
    read = getattr(spec.loader, "get_source", None) if spec else None
    return ((read(module) if read else None) or __version__).encode()


@cache
def training_digest(module: str) -> str:
    """A digest of all code of the tracks, of a module beside them, and of the versions of what builds networks."""
    folder = Path(__file__).parent
    found = blake3(repr([__version__, *map(_version, _LIBRARIES)]).encode())
    for path in sorted(folder.rglob("*.py")):
        found.update(f"{path.relative_to(folder).as_posix()}\0".encode() + path.read_bytes())
    found.update(source_of(module))
    return found.hexdigest(length=16)


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return ""
