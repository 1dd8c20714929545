"""Whether two machines have the same files under the same names: a few places of each are looked at.

Fine-tunes of one model have headers that are equal to the byte, so that no header tells them apart. Must not know who
compares.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from blake3 import blake3

from cuvee.plan.plan import Plan
from cuvee.sources.source import Source, unfetched, weight_files

Samples = Mapping[str, tuple[str, ...]]  # by source, one of each of its weight files, in no order of theirs

_MOST, _LEAST, _ALL = 64, 4, 1024  # places of a file, and of all files of a source
_BYTES = 256


def samples_of(plan: Plan) -> Samples:
    """Of every source of the plan whose weights are all here, the sizes of its files and what some places hold."""
    found = {key: _samples(opened.source) for key, opened in plan.sources.items()}
    return {key: told for key, told in found.items() if told}


def differing(samples: Samples, plan: Plan) -> str | None:
    """The first source of the plan that is not as sampled, by its label; None where all are.

    A source that one of the machines has to fetch, or cannot read, is not compared.
    """
    for key, there in samples.items():
        here = _samples(plan.sources[key].source) if key in plan.sources else ()
        if here and here != there:
            return plan.sources[key].source.label
    return None


def _samples(source: Source) -> tuple[str, ...]:
    files = weight_files(source)
    if not files or unfetched(source):
        return ()
    places = max(_LEAST, min(_MOST, _ALL // len(files)))
    try:
        # By content: folders, and so their order, differ from machine to machine.
        return tuple(sorted(_sample(path, places) for path in files))
    except OSError:
        return ()


def _sample(path: Path, places: int) -> str:
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        found = blake3(str(size).encode())
        for place in range(places if size else 0):
            file.seek((size - 1) * place // (places - 1) // _BYTES * _BYTES)
            found.update(file.read(_BYTES))
    return found.hexdigest()
