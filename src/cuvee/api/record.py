"""Facts of a run → the manifest."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cuvee
from cuvee.api.lock import lock_of
from cuvee.bundle.manifest_form import Origin, build
from cuvee.core.digests import FileRecord
from cuvee.engine.events import Figures
from cuvee.plan.locks import locked_with
from cuvee.plan.plan import Plan


def manifest_of(
    plan: Plan,
    digests: Mapping[str, str],
    records: dict[str, FileRecord],
    device: str = "cpu",
    figures: Figures | None = None,
    lineage: Mapping[str, Any] | None = None,
    locked: Mapping[str, Any] | None = None,
) -> bytes:
    """The manifest of an output: what went in, what came out, and the figures that stages record for later runs.

    With `lineage`, also what each tensor was made from. `locked`: what the sources are, where it is known already.
    """
    lock = locked_with(plan.recipe)
    origin = Origin(
        recipe=plan.recipe.text,
        plan_digest=plan.digest,
        lock=dict(lock_of(plan) if locked is None else locked),
        methods={plan.method_label: cuvee.__version__},
        numerics={
            "compute": sorted({t.compute.name for t in plan.tensors}),
            "device": device,
            "libraries": libraries(),
            **({"figures": figures} if figures else {}),
            **({"lock": lock} if lock else {}),  # the fingerprint of its secret
        },
        version=cuvee.__version__,
        lineage=lineage,
    )
    return build(origin, plan.layout, digests, records)


@functools.cache
def libraries() -> Mapping[str, str]:
    """Versions of the libraries that decide bits."""
    found = ((name, _version(name)) for name in ("torch", "numpy"))
    return {name: version for name, version in found if version is not None}


def _version(name: str) -> str | None:
    """The installed version: by the name of the library's metadata folder, `torch-2.9.0.dist-info`, where it has one.

    The reader of the metadata themselves takes longer to import than that.
    """
    for entry in dict.fromkeys(sys.path):
        for folder in Path(entry).glob(f"{name}-[0-9]*.dist-info"):
            return folder.name.removeprefix(f"{name}-").removesuffix(".dist-info")
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
