"""Where a library of kernels comes from: beside this file, in cuvee's cache, or from the system's C compiler.

Owns which source it is and which prebuilt one fits; compiling is the business of `core.native`.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

from cuvee.core import native
from cuvee.core.native import COMPILERS, FLAGS, WIDE, processor

__all__ = ["COMPILERS", "FLAGS", "HEADERS", "HERE", "LEVELS", "SOURCE", "WIDE", "built", "prebuilt"]

HERE = Path(__file__).parent
SOURCE = HERE / "cuvee_kernels.c"
# Beside the source.
HEADERS = tuple(
    f"cuvee_{name}.h"
    for name in (
        *("tiles", "balance", "crowd", "kept", "sifted", "varying", "gram", "picks", "norms", "movers"),
        *("counts", "ranks", "stream"),
    )
)
# What each level of x86-64 needs, best first.
LEVELS = {
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx2", "f16c", "fma", "bmi2"},
    "x86-64-v3": {"avx2", "f16c", "fma", "bmi2"},
}


def prebuilt() -> Path | None:
    """The library that came with the package for the best level this processor has."""
    machine = platform.machine()
    names = [level for level, needed in LEVELS.items() if machine == "x86_64" and needed <= processor()]
    for name in (*names, f"{machine}-{platform.system().lower()}"):
        path = HERE / f"cuvee_kernels-{name}.so"
        if path.is_file():
            return path
    return None


def built(failed: Callable[[str], None] = lambda reason: None) -> Path | None:
    """The library in the cache, built now when it is not there; None without a compiler or a usable cache.

    Why there is a compiler and no library is told to `failed`.
    """
    return native.built(SOURCE, [SOURCE.with_name(name) for name in HEADERS], failed)
