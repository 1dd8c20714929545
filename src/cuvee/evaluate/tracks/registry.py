"""Tracks by name, built when asked for; plug-ins join through the entry-point group `cuvee.tracks`."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import Any

from cuvee.core.names import did_you_mean, printable
from cuvee.errors import UsageError
from cuvee.evaluate.track import Track
from cuvee.evaluate.tracks.stressed import Stressed

GROUP = "cuvee.tracks"
_TRACKS = "cuvee.evaluate.tracks"
_OWN: dict[str, tuple[str, str, dict[str, Any]]] = {
    "text": (f"{_TRACKS}.text.track", "TextTrack", {}),
    "text-short": (f"{_TRACKS}.text.track", "TextTrack", {"short": True}),
    "text-lora8": (f"{_TRACKS}.text.track", "TextTrack", {"rank": 8}),
    "text-lora32": (f"{_TRACKS}.text.track", "TextTrack", {"rank": 32}),
    "vision": (f"{_TRACKS}.vision.track", "VisionTrack", {}),
    "language": (f"{_TRACKS}.language.track", "LanguageTrack", {}),
    "language-short": (f"{_TRACKS}.language.track", "LanguageTrack", {"short": True}),
    **{
        f"initialisations-{kind}": (
            f"{_TRACKS}.initialisations.track",
            "InitialisationsTrack",
            {"kind": kind},
        )
        for kind in ("mlp", "convolution", "transformer")
    },
    **{
        f"trajectory-{shape}": (f"{_TRACKS}.trajectory.track", "TrajectoryTrack", {"shape": shape})
        for shape in ("constant", "cosine", "decayed")
    },
}


def names() -> tuple[str, ...]:
    """Names of all tracks."""
    return tuple(sorted({*_OWN, *(entry.name for entry in importlib.metadata.entry_points(group=GROUP))}))


def open_track(name: str, seed: int = 0) -> Track:
    """The track of this name for one seed of training; UsageError for an unknown name.

    `NAME+KIND` is a track under stress: see `stressed`.
    """
    name, plus, kind = name.partition("+")
    if plus:
        return Stressed(open_track(name, seed), kind, seed)
    if name in _OWN:
        module, attribute, settings = _OWN[name]
        make: Callable[..., Track] = getattr(importlib.import_module(module), attribute)
        return make(seed=seed, **settings)
    for entry in importlib.metadata.entry_points(group=GROUP):
        if entry.name == name:
            found: Track = entry.load()(seed=seed)
            return found
    hint = did_you_mean(name, names()) or f"there are {', '.join(names())}"
    raise UsageError("CV-U033", f"there is no track `{printable(name)}`", hint=hint)
