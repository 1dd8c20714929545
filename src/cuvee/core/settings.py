"""The only reader of the environment. Everything else asks here, so that `cuvee config` can show origins."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable that cuvee honours; a `secret` one is never shown."""

    name: str
    default: str | None
    effect: str
    secret: bool = False


VARIABLES = (
    Variable("CUVEE_CACHE", None, "folder of cuvee's own cache (default: XDG cache home)"),
    Variable("CUVEE_MEMORY", "128MiB", "budget of block buffers"),
    Variable("CUVEE_THREADS", None, "worker threads (default: cores)"),
    Variable(
        "CUVEE_DECOMPOSITIONS", "8GB", "room in the cache for decompositions of matrices; off keeps none"
    ),
    Variable(
        "CUVEE_CATALOG",
        "cold",
        "merges catalogue what they read from a slow disk; on: whatever they read, off: nothing",
    ),
    Variable("CUVEE_KERNELS", "on", "off computes everything with torch"),
    Variable("CUVEE_OFFLINE", None, "1 forbids every network connection"),
    Variable(
        "CUVEE_SLOWEST",
        "8192",
        "bytes a second below which, over 30 seconds, a server's answer is given up and asked for again; 0: never",
    ),
    Variable("CUVEE_LOCK_KEY", None, "secret of `mergelock` and `mergeunlock`; never printed", secret=True),
    Variable("CUVEE_DEBUG", None, "1 shows tracebacks of errors"),
    Variable("HF_HUB_OFFLINE", None, "1 forbids every connection to the hub"),
    Variable("HF_HOME", None, "the hub's cache folder"),
    Variable("HF_ENDPOINT", None, "address of the hub"),
    Variable("HF_TOKEN", None, "access token; never printed", secret=True),
    Variable("NO_COLOR", None, "any value turns colour off"),
    Variable("FORCE_COLOR", None, "any value turns colour on"),
    Variable("XDG_CACHE_HOME", None, "parent of the cache folder"),
    Variable("XDG_CONFIG_HOME", None, "parent of the user's configuration"),
    Variable("TMPDIR", None, "folder for temporary files"),
    Variable("SOURCE_DATE_EPOCH", None, "a fixed clock for reproducible cards"),
)
_KNOWN = {v.name: v for v in VARIABLES}
_TRUE = {"1", "true", "yes", "on"}


def get(name: str) -> str | None:
    """Value of a known variable, else its default."""
    return os.environ.get(name) or _KNOWN[name].default


def preset(name: str, value: str) -> None:
    """Set a variable of a library that is about to be loaded, unless the user did."""
    os.environ.setdefault(name, value)


def flag(name: str) -> bool:
    """Whether a known variable is set to a true word."""
    return (os.environ.get(name) or "").lower() in _TRUE


def origin(name: str) -> str:
    """`environment` or `default`."""
    return "environment" if os.environ.get(name) else "default"


def environment() -> Mapping[str, str]:
    """The whole environment, for child processes only."""
    return os.environ
