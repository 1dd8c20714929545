"""Facts of a run → the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
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
) -> bytes:
    """The manifest of an output: what went in, what came out, and the figures that stages record for later runs.

    With `lineage`, also what each tensor was made from.
    """
    lock = locked_with(plan.recipe)
    origin = Origin(
        recipe=plan.recipe.text,
        plan_digest=plan.digest,
        lock=lock_of(plan),
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


def libraries() -> dict[str, str]:
    """Versions of the libraries that decide bits."""
    found = {}
    for name in ("torch", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
