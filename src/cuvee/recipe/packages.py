"""The long form of a source that is a task of a package: `{package: ./p, task: math}` → `./p#math`.

Owns its keys and their mistakes. What the short form means is the business of `sources.reference`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cuvee.core.names import did_you_mean, printable
from cuvee.errors import Diagnostic
from cuvee.recipe.document import Document, Path, problem
from cuvee.sources.reference import fragment

_KEYS = ("package", "task", "tasks", "base")


def reference_text(spec: Mapping[str, Any], document: Document, path: Path, found: list[Diagnostic]) -> str:
    """The reference that a mapping with `package`, and `task` or `tasks: {name: weight}`, stands for."""
    for key in spec:
        if key not in _KEYS:
            hint = did_you_mean(str(key), _KEYS)
            message = f"unknown key `{printable(str(key))}`"
            found.append(problem(document, "CV-R004", (*path, key), message, key=True, hint=hint))
    found += [
        problem(document, "CV-R010", (*path, key), f"`{key}` must be a path")
        for key in ("package", "base")
        if not isinstance(spec.get(key, ""), str)
    ]
    tasks = _tasks(spec)
    if not tasks:
        message = "a package needs `task`, the name of one, or `tasks`, a mapping of names to weights"
        found.append(problem(document, "CV-R181", path, message))
        tasks = [("", 1.0)]
    return f"{spec['package']}#{fragment(tasks, spec.get('base'))}"


def _tasks(spec: Mapping[str, Any]) -> list[tuple[str, float]]:
    one, several = spec.get("task"), spec.get("tasks")
    if several is None and isinstance(one, str) and one:
        return [(one, 1.0)]
    if one is not None or not isinstance(several, dict):
        return []
    if not all(isinstance(w, (int, float)) and not isinstance(w, bool) for w in several.values()):
        return []
    return [(str(name), float(weight)) for name, weight in several.items()]
