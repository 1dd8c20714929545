"""The lock: what each source was, so that the same recipe can be held to the same inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cuvee.bundle.json_files import dump_json
from cuvee.core.names import printable
from cuvee.errors import Diagnostic, UsageError
from cuvee.plan.plan import Plan

VERSION = 1


def lock_of(plan: Plan) -> dict[str, Any]:
    """Identity of every source by its name in the recipe, and what the command line changed; no absolute paths."""
    changes = {"changes": dict(plan.recipe.changes)} if plan.recipe.changes else {}
    return {
        "version": VERSION,
        "sources": {k: o.source.identity() for k, o in plan.sources.items()},
        **changes,
    }


def with_sha256(plan: Plan) -> dict[str, Any]:
    """The lock with the sha256 of every weight file that lies on disk (what the hub stores for large files)."""
    locked = lock_of(plan)
    for key, opened in plan.sources.items():
        extents = (opened.source.extent(name) for name in opened.source.tensors)
        paths = dict.fromkeys(extent.path for extent in extents if extent is not None)
        locked["sources"][key]["sha256"] = {path.name: _sha256(path) for path in paths}
    return locked


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lock_text(plan: Plan) -> bytes:
    """The lock as the bytes of `cuvee.lock`."""
    return dump_json(lock_of(plan))


def differences(plan: Plan, locked: Mapping[str, Any]) -> list[Diagnostic]:
    """What of the plan's sources is not as it was locked; UsageError when `locked` is no lock."""
    then = locked.get("sources")
    if not isinstance(then, Mapping) or not all(isinstance(entry, Mapping) for entry in then.values()):
        raise UsageError("CV-U014", "the file is not a lock", hint="make one with `cuvee lock`")
    hashed = any("sha256" in entry for entry in then.values())
    now = (with_sha256(plan) if hashed else lock_of(plan))["sources"]
    out = []
    for name in sorted({*now, *then}):
        if name not in then or name not in now:
            what = "is not in the lock" if name not in then else "is in the lock only"
            out.append(Diagnostic("CV-V020", f"the source `{printable(name)}` {what}"))
        elif now[name] != then[name]:
            changed = sorted(k for k in {*now[name], *then[name]} if now[name].get(k) != then[name].get(k))
            keys = ", ".join(changed)
            out.append(
                Diagnostic("CV-V021", f"the source `{printable(name)}` changed since it was locked ({keys})")
            )
    return out
