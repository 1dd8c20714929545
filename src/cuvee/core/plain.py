"""Values as JSON can hold them: arrays become lists, and numbers that JSON does not have become null.

Knows nothing of what the values say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """The same data as dicts, lists and numbers; NaN and the infinities are None. What is no data stays as it is."""
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return plain(value.tolist()) if hasattr(value, "tolist") else value
