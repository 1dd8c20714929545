"""JSON files in a benchmark's folder: a damaged one is told by its name, whatever is kept in it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cuvee.errors import EvaluationError


@contextmanager
def reading(path: Path, again: str = "run") -> Iterator[None]:
    """What is wrong with a file's content as EvaluationError CV-B021; `again`: what makes it anew."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EvaluationError(
            "CV-B021",
            f"`{path}` is not a result of this version: {error}",
            hint=f"remove it and {again} again",
        ) from error


def document(path: Path) -> Mapping[str, Any]:
    """The object in a file; EvaluationError CV-B021 for anything else."""
    with reading(path):
        found = json.loads(path.read_text())
        if not isinstance(found, dict):
            raise TypeError("it is no object")
    return found
