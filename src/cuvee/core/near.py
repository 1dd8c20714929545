"""The entry of a folder whose name is nearest to one that is not there. Reads folders, never files."""

from __future__ import annotations

from pathlib import Path

from cuvee.core.names import candidates

_MOST = 10_000  # entries looked at


def nearest(path: Path) -> str | None:
    """The hint for a path that does not exist, or None; a common suffix makes no two names alike."""
    try:
        there = sorted(entry.name for entry in path.parent.iterdir())[:_MOST]
    except OSError:
        return None
    stems = {name.removesuffix(path.suffix): name for name in there}
    found = [stems[stem] for stem in candidates(path.stem, stems)]
    return f"did you mean {' or '.join(f'`{name}`' for name in found)}?" if found else None
