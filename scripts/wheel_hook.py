"""Hatch's hook: a wheel that holds compiled kernels is for one platform, any other is pure Python."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelsHook(BuildHookInterface):  # type: ignore[misc]
    """Sets the tag where `build_kernels.py` has put libraries beside the source."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        folder = Path(self.root) / "src" / "cuvee" / "engine" / "kernels"
        if self.target_name != "wheel" or not any(folder.glob("*.so")):
            return
        here = f"{platform.system().lower()}_{platform.machine()}"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{os.environ.get('CUVEE_WHEEL_PLATFORM', here)}"
