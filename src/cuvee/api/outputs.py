"""Outputs by path: whether there is one, and whether it is what its manifest says.

A model folder and a single weight file are told apart here, for notebooks and the command line alike.
"""

from __future__ import annotations

from pathlib import Path

from cuvee.bundle.manifest import verify_file, verify_folder
from cuvee.core.names import printable
from cuvee.core.near import nearest
from cuvee.errors import Diagnostic, RunError, UsageError, Where
from cuvee.sinks.target import beside


def existing_output(path: Path) -> Path:
    """The path; UsageError when there is neither an output nor, for a single file, a manifest beside it."""
    if path.exists() or beside(path).exists():
        return path
    raise UsageError("CV-U100", f"there is nothing at `{printable(str(path))}`", hint=nearest(path))


def verified(output: Path, sample: float | None = None) -> list[Diagnostic]:
    """What in an output, folder or single file, is not as its manifest says; errors as `cuvee.verify`."""
    try:
        check = verify_folder if existing_output(output).is_dir() else verify_file
        return check(output, sample=sample)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        place = Where(file=printable(str(error.filename or output)))
        raise RunError("CV-E005", f"a file operation failed: {reason}", where=place) from None
