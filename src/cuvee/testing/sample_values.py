"""Values with which any method runs: what it requires, so that a test can go over the whole registry.

Owns the values alone. A plug-in whose parameters are not known here passes its own.
"""

from __future__ import annotations

from typing import Any

from cuvee.methods.contract import Method
from cuvee.methods.registry import parameters_for

_NEEDED = {"t": 0.3, "scale": 0.5, "radius": 0.5, "key": "0" * 16}
_MEASURED = (0.3, 0.2, 0.1, 0.4)  # one for each expert
_CHOICES = ("restore", "take")  # exactly one expert must be chosen


def sample_values(method: Method, experts: int) -> dict[str, Any]:
    """Parameter values under which the method merges this many experts: required ones, and a choice of one expert."""
    out: dict[str, Any] = {}
    for name, parameter in parameters_for(method).items():
        if name in _CHOICES and parameter.per_expert:
            out[name] = [i == 0 for i in range(experts)]
        elif parameter.required and parameter.per_expert and name == "metric":
            out[name] = [_MEASURED[i % 4] for i in range(experts)]
        elif parameter.required:
            out[name] = _NEEDED[name]
    return out
