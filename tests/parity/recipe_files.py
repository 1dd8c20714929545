"""The recipes of this folder, and what each says in its first comment lines.

A recipe may start with `# command: pytorch` (or `multi`; else `yaml`), `# theirs: FLAGS` and `# ours: FLAGS`: the
command of MergeKit that runs it and flags added on either side. Imports neither program.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class RecipeFile:
    """One recipe."""

    name: str
    path: Path
    command: str
    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    refused: bool  # stands in the folder of recipes that both programs must refuse

    @property
    def text(self) -> str:
        return self.path.read_text()


def recipe_files(
    only: tuple[str, ...] = (), folders: tuple[str, ...] = ("recipes", "refused")
) -> list[RecipeFile]:
    """All recipes by name, or those whose name contains one of `only`."""
    found = [_read(path) for folder in folders for path in sorted((HERE / folder).glob("*.yml"))]
    return [r for r in found if not only or any(word in r.name for word in only)]


def _read(path: Path) -> RecipeFile:
    said = dict(re.findall(r"^# (command|theirs|ours): (.*)$", path.read_text(), re.MULTILINE))
    flags = {key: tuple(shlex.split(said.get(key, ""))) for key in ("theirs", "ours")}
    refused = path.parent.name == "refused"
    name = f"refused_{path.stem}" if refused else path.stem
    return RecipeFile(name, path, said.get("command", "yaml"), flags["theirs"], flags["ours"], refused)
