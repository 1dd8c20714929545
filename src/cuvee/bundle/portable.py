"""Texts without absolute paths: what a manifest or card may say of a user's machine (the last name of a
path).

Pure. Must not know what the texts mean.
"""

from __future__ import annotations

import re
from typing import Any

_STOP = r"\s'\"`,;:\[\]{}()+@#<>|*?"
_POSIX = re.compile(rf"(?<![\w:/.~\\%-])(?:file://(?:localhost)?|~\w*)?/[^{_STOP}/]+(?:/+[^{_STOP}/]+)*/*")
_WINDOWS = re.compile(rf"(?<![\w\\])(?:[A-Za-z]:[\\/]|\\\\[^{_STOP}\\/]+\\)[^{_STOP}]*")


def portable_text(text: str) -> str:
    """The text with every absolute or home path replaced by its last part; URLs and relative paths stay."""
    return _POSIX.sub(_last, _WINDOWS.sub(_last, text))


def portable(value: Any) -> Any:
    """The JSON value with `portable_text` applied to every string in it, keys included."""
    if isinstance(value, str):
        return portable_text(value)
    if isinstance(value, dict):
        return {portable_text(key): portable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [portable(item) for item in value]
    return value


def _last(match: re.Match[str]) -> str:
    return re.split(r"[\\/]", match.group().rstrip("\\/"))[-1]
