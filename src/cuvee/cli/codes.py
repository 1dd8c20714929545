"""The table of error codes (`codes.toml` of the package)."""

from __future__ import annotations

import tomllib
from importlib import resources
from typing import Any


def codes() -> dict[str, dict[str, Any]]:
    """Code → title and text, sorted."""
    text = (resources.files("cuvee") / "codes.toml").read_text(encoding="utf-8")
    return dict(sorted(tomllib.loads(text).items()))
