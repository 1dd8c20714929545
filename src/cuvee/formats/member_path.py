"""Names found in files, turned into paths that stay inside their folder (PROMISES 19).

The rules hold on every platform: a name that would be dangerous on Windows is refused on Linux too.
Knows nothing about weight files.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path

from cuvee.formats.refusals import quoted, unsafe

_DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$", "clock$"} | {
    f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789¹²³"
}
_FORBIDDEN = set('\\:<>"|?*')
_REPOSITORY_PREFIXES = ("models--", "datasets--", "spaces--")


def safe_member(folder: Path, name: str) -> Path:
    """The path of `name` in `folder`; UnsafeFile when it could lie anywhere else.

    `name` uses forward slashes. Links are followed only to places inside the folder or, in a cache of the
    Hugging Face hub, inside the same repository. The file need not exist.
    """
    plain = unicodedata.normalize("NFKC", name)
    lookalike = "holds a character that looks like `/`" if plain.count("/") != name.count("/") else None
    for flaw in (name_flaw(name), name_flaw(plain), lookalike):
        if flaw:
            raise unsafe(
                "CV-S071",
                folder,
                f"the file name {quoted(name)} {flaw}",
                hint="a name in a file may only point at a file beside it",
            )
    path = folder.joinpath(*name.split("/"))
    if not _inside(folder, path):
        raise unsafe(
            "CV-S071",
            folder,
            f"{quoted(name)} is a link that leads out of the folder",
            hint="replace the link by the file itself",
        )
    return path


def name_flaw(name: str) -> str | None:
    """What is wrong with a relative file name, as the end of a sentence; None when nothing is."""
    if not name:
        return "is empty"
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "is not valid text"
    if size > 1024:
        return f"has {size:,} bytes"
    if name.startswith("/"):
        return "is absolute"
    if any(unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") for c in name):
        return "holds an invisible character"
    found = sorted(_FORBIDDEN.intersection(name))
    if found:
        return f"holds `{found[0]}`"
    for part in name.split("/"):
        flaw = _part_flaw(part)
        if flaw:
            return flaw
    return None


def _part_flaw(part: str) -> str | None:
    if part in ("", "."):
        return "has an empty part"
    if part == "..":
        return "leaves its folder by `..`"
    if part[-1] in ". " or part[0] == " ":
        return "has a part that begins or ends with a space or ends with a dot"
    if len(part.encode()) > 255:
        return "has a part longer than 255 bytes"
    if part.split(".")[0].rstrip().lower() in _DEVICES:
        return "is the name of a device on Windows"
    return None


def _inside(folder: Path, path: Path) -> bool:
    """Whether the path, all links followed, lies in the folder or in the folder's own hub repository."""
    try:
        root, real = folder.resolve(), path.resolve()
    except (OSError, RuntimeError):  # a loop of links
        return False
    if real.is_relative_to(root):
        return True
    for parent in root.parents:
        repository = parent.parent
        if parent.name == "snapshots" and repository.name.startswith(_REPOSITORY_PREFIXES):
            return real.is_relative_to(repository)
    return False
