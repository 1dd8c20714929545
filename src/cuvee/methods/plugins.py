"""Whether any installed package declares methods of its own, without loading the library that reads such declarations.

`importlib.metadata` takes longer to import than all else that `cuvee check` does with methods, and hardly anybody
has a plug-in. Folders of metadata are looked through for the group's name; where that cannot be done the answer is yes.
"""

from __future__ import annotations

import sys
from pathlib import Path

_METADATA = (".dist-info", ".egg-info")


def may_declare(group: str) -> bool:
    """False only when no package on `sys.path` declares entry points of the group."""
    wanted = f"[{group}]".encode()
    return any(_folder_declares(Path(entry), wanted) for entry in dict.fromkeys(sys.path))


def _folder_declares(folder: Path, wanted: bytes) -> bool:
    try:
        names = [p for p in folder.iterdir() if p.suffix in _METADATA]
    except FileNotFoundError:
        return False
    except OSError:  # an archive, or a folder that may not be listed
        return True
    return any(_file_declares(path / "entry_points.txt", wanted) for path in names)


def _file_declares(path: Path, wanted: bytes) -> bool:
    try:
        return wanted in path.read_bytes()
    except OSError:  # most packages have none
        return False
