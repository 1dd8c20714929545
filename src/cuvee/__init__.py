"""Cuvée blends neural-network checkpoints: every merging method, out of core, from one recipe.

import cuvee
blend = cuvee.merge(["./math", "./code"], base="./base", method="ties", density=0.3)
print(blend.plan())      # nothing has been read yet
blend.save("./blend")    # or .load() for a dictionary of tensors, or .into(module)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cuvee.api import Blend as Blend
    from cuvee.api import Checkpoint as Checkpoint
    from cuvee.api import curve as curve
    from cuvee.api import diff as diff
    from cuvee.api import extract_lora as extract_lora
    from cuvee.api import inspect as inspect
    from cuvee.api import load as load
    from cuvee.api import merge as merge
    from cuvee.api import open as open
    from cuvee.api import verify as verify
    from cuvee.api.candidates import Candidates as Candidates
    from cuvee.api.candidates import hold as hold
    from cuvee.api.package import save_as_package as save_as_package
    from cuvee.api.soup import greedy_soup as greedy_soup
    from cuvee.errors import CuveeError as CuveeError
    from cuvee.methods.contract import Method as Method
    from cuvee.methods.contract import Stage as Stage
    from cuvee.methods.contract import stage as stage
    from cuvee.methods.parameters import PerExpert as PerExpert
    from cuvee.methods.registry import register as register

_HOMES = {
    "cuvee.api": (
        "Blend",
        "Checkpoint",
        "curve",
        "diff",
        "extract_lora",
        "inspect",
        "load",
        "merge",
        "open",
        "verify",
    ),
    "cuvee.api.candidates": ("Candidates", "hold"),
    "cuvee.api.package": ("save_as_package",),
    "cuvee.api.soup": ("greedy_soup",),
    "cuvee.errors": ("CuveeError",),
    "cuvee.methods.contract": ("Method", "Stage", "stage"),
    "cuvee.methods.parameters": ("PerExpert",),
    "cuvee.methods.registry": ("register",),
}
_WHERE = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    """Public names are imported when first used; `import cuvee` costs nothing."""
    if name not in _WHERE:
        raise AttributeError(f"module 'cuvee' has no attribute {name!r}")
    value = getattr(import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
