"""Facts about the machine and the installed packages, without importing them."""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import cuvee
from cuvee.core.cache import folder
from cuvee.engine.kernels import state
from cuvee.plan.explain import size


def report(needed: tuple[str, ...], optional: tuple[str, ...]) -> dict[str, Any]:
    """Versions of packages (None where missing) and figures of the machine."""
    disk = shutil.disk_usage(Path())
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "needed": {name: _version(name) for name in needed},
        "optional": {name: _version(name) for name in optional},
        "machine": {
            "cuvee": cuvee.__version__,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            "memory": size(pages),
            "free disk here": size(disk.free),
            "cache": str(folder()),
            "kernels": state().reason,
        },
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
