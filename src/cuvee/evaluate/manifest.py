"""What a result was made with: versions, arithmetic threads and the kind of machine, kept beside every score.

No name of a person, a host or a folder: results are meant to be passed on.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from typing import Any

from cuvee import __version__
from cuvee.core.lazy import torch
from cuvee.evaluate.task import groups_of
from cuvee.evaluate.track import Track

_PACKAGES = ("torch", "numpy", "scipy", "transformers")


@cache
def surroundings() -> Mapping[str, Any]:
    """Versions of cuvee and of the packages that scores depend on (None: not installed), and the machine."""
    return {
        "cuvee": __version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def described(track: Track) -> dict[str, Any]:
    """A track's digest, the size of its base, and its tasks.

    Of each task its digest, the numbers of items and of their groups in each part, metric, head and provenance.
    """
    return {
        "track": track.name,
        "digest": track.digest,
        "parameters": sum(tensor.numel() for tensor in track.base.values()),
        "tasks": {
            name: {
                "digest": task.digest,
                "items": [len(task.train), len(task.selection), len(task.test)],
                "groups": [groups_of(task.train), groups_of(task.selection), task.test.groups],
                "metric": task.metric.name,
                "head": task.head,
                "unseen": task.unseen,
                "source": task.provenance.source,
                "version": task.provenance.version,
                "licence": task.provenance.licence,
                "split": task.provenance.split,
            }
            for name, task in track.tasks.items()
        },
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
