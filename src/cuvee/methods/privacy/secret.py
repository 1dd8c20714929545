"""The secret behind a lock: read from the environment, named in recipes by its fingerprint, stretched to any numbers.

Owns how a secret becomes reproducible random numbers (BLAKE3 as a keyed stream) and that it is never shown. Must not
know what the numbers are used for.
"""

from __future__ import annotations

import math
import secrets
from typing import TYPE_CHECKING

from blake3 import blake3

from cuvee.core import settings
from cuvee.core.lazy import numpy as np
from cuvee.core.lazy import torch
from cuvee.core.names import printable
from cuvee.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor

VARIABLE = "CUVEE_LOCK_KEY"
_SHORTEST = 32  # characters; `new_secret` gives 64
_NUMBERS = "cuvee 2026 lock of attention heads"  # contexts of BLAKE3's key derivation: never change them
_NAME = "cuvee 2026 fingerprint of a lock's secret"


def new_secret() -> str:
    """A fresh secret: 256 bits of the operating system's randomness as 64 hexadecimal digits."""
    return secrets.token_hex(32)


def fingerprint(secret: str) -> str:
    """16 hexadecimal digits that name a secret without telling it, for recipes and manifests."""
    return blake3(secret.encode(), derive_key_context=_NAME).hexdigest(length=8)


def secret_of(named: str) -> bytes:
    """The key behind the secret in the environment, 32 bytes.

    Raises:
        RunError: CV-E190 where none is set or it is too short, CV-E191 where it has another fingerprint than `named`.
    """
    secret = settings.get(VARIABLE)
    if secret is None or len(secret) < _SHORTEST:
        what = "is not set" if secret is None else f"has {len(secret)} characters, fewer than {_SHORTEST}"
        hint = "`python -c 'from cuvee import privacy; print(privacy.new_secret())'` makes one"
        raise RunError("CV-E190", f"the secret of the lock, `{VARIABLE}`, {what}", hint=hint)
    if fingerprint(secret) != named:
        message = (
            f"the secret in `{VARIABLE}` has the fingerprint `{fingerprint(secret)}`, "
            f"the recipe's `key` is `{printable(named)}`"
        )
        raise RunError("CV-E191", message)
    return blake3(secret.encode(), derive_key_context=_NUMBERS).digest(length=32)


def uniforms(key: bytes, label: str, count: int) -> Tensor:
    """`count` float64 in (0, 1) with 53 bits each, the same for the same key and label on every machine."""
    data = blake3(label.encode("utf-8", "surrogatepass"), key=key).digest(length=8 * count)
    words = np.frombuffer(data, dtype="<u8") >> np.uint64(11)
    return torch.from_numpy((words.astype(np.float64) + 0.5) * 2.0**-53)


def normals(key: bytes, label: str, count: int) -> Tensor:
    """`count` independent standard normal float64 (Box and Muller)."""
    pairs = uniforms(key, label, 2 * count).reshape(2, count)
    return torch.sqrt(-2 * torch.log(pairs[0])) * torch.cos(2 * math.pi * pairs[1])
