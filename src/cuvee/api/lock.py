"""The lock: what each source was, so that the same recipe can be held to the same inputs.

A hub source is pinned by its commit. Files on disk are known by their headers and by samples of their contents
(`core/sampling.py`), which show nearly every change at the cost of a few thousand small reads; `--sha256` reads all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cuvee.bundle.json_files import dump_json
from cuvee.core.names import printable
from cuvee.core.sampling import Span, sample
from cuvee.errors import Diagnostic, SourceError, UsageError, Where
from cuvee.plan.plan import Plan
from cuvee.sources.source import Source, weight_files

VERSION = 1


def lock_of(plan: Plan) -> dict[str, Any]:
    """Every source by its name in the recipe, and what the command line changed; no absolute paths."""
    changes = {"changes": dict(plan.recipe.changes)} if plan.recipe.changes else {}
    sources = {key: _locked(opened.source) for key, opened in plan.sources.items()}
    return {"version": VERSION, "sources": sources, **changes}


def _locked(source: Source) -> dict[str, Any]:
    """What a source is; with samples of its files where no commit says what they hold."""
    identity = source.identity()
    if _pinned(identity):
        return identity
    samples = [
        {"name": path.name, "blake3": _sampled(path, spans)} for path, spans in weight_files(source).items()
    ]
    return {**identity, "samples": samples} if samples else identity


def _pinned(identity: Mapping[str, Any]) -> bool:
    """Whether a commit on the hub says what every part of a source is."""
    parts = [part for key in ("base", "adapter") if isinstance(part := identity.get(key), Mapping)]
    if parts:
        return all(_pinned(part) for part in parts)
    return identity.get("revision") is not None


def _sampled(path: Path, spans: Sequence[Span]) -> str:
    try:
        return sample(path, spans)
    except OSError as error:
        raise SourceError(
            "CV-S110",
            f"`{printable(str(path))}` cannot be read: {(error.strerror or str(error)).lower()}",
            where=Where(file=printable(str(path))),
        ) from None


def with_sha256(plan: Plan) -> dict[str, Any]:
    """The lock with the sha256 of every weight file on disk, adapters' too (what the hub stores for large files)."""
    from cuvee.api.fetch import fetch
    from cuvee.engine.events import ignore

    fetch(plan, ignore)
    locked = lock_of(plan)
    for key, opened in plan.sources.items():
        hashes = {path.name: _sha256(path) for path in weight_files(opened.source)}
        if hashes:
            locked["sources"][key]["sha256"] = hashes
    return locked


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lock_text(plan: Plan, locked: Mapping[str, Any] | None = None) -> bytes:
    """The lock, which may be known already, as the bytes of `cuvee.lock`."""
    return dump_json(dict(lock_of(plan) if locked is None else locked))


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
        elif changed := sorted(k for k in {*now[name], *then[name]} if now[name].get(k) != then[name].get(k)):
            keys = ", ".join(changed)
            out.append(
                Diagnostic("CV-V021", f"the source `{printable(name)}` changed since it was locked ({keys})")
            )
    return out
