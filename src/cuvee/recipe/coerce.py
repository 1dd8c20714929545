"""Scalars as MergeKit reads them: `"1e-3"` is a number, `yes` and `1` are true where a boolean is expected."""

from __future__ import annotations

import math
from typing import Any, Literal

_TRUE = {"true", "yes", "on", "t", "y", "1"}
_FALSE = {"false", "no", "off", "f", "n", "0"}


class Refused(ValueError):
    """The scalar cannot be read as the type."""


def coerce(value: Any, kind: Literal["float", "int", "bool"]) -> bool | int | float:
    """The scalar as `kind`; Refused with what was expected."""
    if kind == "bool":
        return _boolean(value)
    try:
        number = float(value) if isinstance(value, (str, int, float)) else math.nan
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise Refused("must be a number" if kind == "float" else "must be a whole number")
    if kind == "float":
        return number
    if not number.is_integer():
        raise Refused("must be a whole number")
    return int(number)


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, (int, float)) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.lower() in _TRUE | _FALSE:
        return value.lower() in _TRUE
    raise Refused("must be true or false")
