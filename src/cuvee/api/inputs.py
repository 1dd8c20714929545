"""The files a plan reads: whether an output would replace one of them, and what they are right now.

A plan's digest is portable, so it knows headers, not contents: two fine-tunes of one base look alike to it. What an
interrupted run left may only be resumed from the very same files, which is what a stamp is for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from cuvee.core.digests import canonical_json
from cuvee.core.names import printable
from cuvee.core.sampling import sample
from cuvee.errors import OutputBusy, RunError, Where
from cuvee.sinks.target import MANIFEST
from cuvee.sources.reference import WEIGHT_SUFFIXES
from cuvee.sources.source import weight_files

if TYPE_CHECKING:
    from cuvee.plan.plan import Opened, Plan
    from cuvee.sources.source import Source

_BLOCK = 1 << 20  # elements hashed at once of a source that lies in memory

Stamps = Mapping[str, Any]


def refuse_inputs(plan: Plan, out: Path) -> None:
    """OutputBusy when the output is, or holds, a file that it is made from, or a folder that is not a model's.

    `--overwrite` replaces a whole folder, so it must never be given one that merely lies at that path.
    """
    target = out.resolve()
    for key, opened in plan.sources.items():
        for path in (*opened.paths, *_weight_files(opened)):
            # A model in the hub's cache is a folder of links: both the link's place and what it leads to count.
            places = (path.resolve(), path.parent.resolve() / path.name)
            if any(place == target or target in place.parents for place in places):
                raise OutputBusy(
                    "CV-E031",
                    f"`{printable(str(out))}` is a source of this merge, or holds one (`{printable(key)}`)",
                    hint="choose another output; inputs are never written to",
                )
    refuse_foreign(out)


def refuse_foreign(out: Path) -> None:
    """OutputBusy when the output is a folder that is not a model's."""
    target = out.resolve()
    if target.is_dir() and any(target.iterdir()) and not _is_model(target):
        raise OutputBusy(
            "CV-E032",
            f"`{printable(str(out))}` is a folder with other things than a model in it, and is never replaced",
            hint="choose another output, or a new folder inside it",
        )


def _is_model(folder: Path) -> bool:
    """Whether a folder is an output of cuvee, or a model as others write one, with nothing else in it."""
    if (folder / MANIFEST).is_file():
        return True
    config = (folder / "config.json").is_file()
    return config and all(path.is_file() or path.name.startswith(".") for path in folder.iterdir())


def stamps(plan: Plan) -> Stamps:
    """What every input is right now: files by path, size, time, inode and samples; what is in memory by its values."""
    found: dict[str, Any] = {}
    for key, opened in plan.sources.items():
        files = stamps_of(_weight_files(opened))
        found.update(files)
        if not files and opened.source.identity().get("revision") is None:
            found[f"{key}:"] = _values(opened.source)
    return found


def stamps_of(paths: Iterable[Path]) -> Stamps:
    """What these files are right now."""
    return {str(path.resolve()): _stamp(path) for path in paths}


def refuse_changed(plan: Plan, before: Stamps) -> None:
    """RunError when a file is not what it was when the run began: the output would be of two inputs at once."""
    refuse_other(before, (path for opened in plan.sources.values() for path in _weight_files(opened)))


def refuse_other(before: Stamps, paths: Iterable[Path] | None = None) -> None:
    """RunError when one of the files (by default those of the stamps) is not what it was."""
    for path in map(Path, before) if paths is None else paths:
        if before.get(str(path.resolve())) != _stamp(path):
            raise changed(str(path))


def changed(what: str) -> RunError:
    """The error of an input, a file or a model, that is not what it was."""
    return RunError(
        "CV-E072",
        f"`{printable(what)}` changed while it was merged",
        where=Where(file=printable(what)),
        hint="merge again with `--no-resume` when nothing writes to it any more",
    )


def resume_key(plan: Plan, before: Stamps, arithmetic: Mapping[str, Any]) -> str:
    """What an interrupted run must share with this one to be resumed: plan, inputs, and what decides bits."""
    return blake3(canonical_json([plan.digest, dict(before), dict(arithmetic)])).hexdigest()


def _weight_files(opened: Opened) -> Iterator[Path]:
    """Files on disk that hold tensors of the source, each once."""
    seen: dict[Path, None] = {}
    for path in opened.paths:
        inside = sorted(path.iterdir()) if path.is_dir() else [path]
        seen.update({p: None for p in inside if p.name.endswith(WEIGHT_SUFFIXES) and p.is_file()})
    seen.update(dict.fromkeys(weight_files(opened.source)))
    yield from {path.resolve(): path for path in seen}.values()


def _stamp(path: Path) -> list[Any]:
    """Size, both times of the last change, inode, and a digest of pieces spread evenly over the file.

    A copy that keeps a file's time of modification cannot keep the time at which that was set.
    """
    try:
        status = path.stat()
        pieces = sample(path)
    except OSError:
        return []  # gone: unlike any stamp
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, pieces]


def _values(source: Source) -> str:
    """The digest of everything a source holds; for what is in memory and has no file to ask."""
    from cuvee.core.lazy import torch

    hasher = blake3()
    for name, meta in source.tensors.items():
        hasher.update(name.encode())
        for start in range(0, meta.numel, _BLOCK):
            piece = source.read(name, start, min(start + _BLOCK, meta.numel))
            hasher.update(piece.contiguous().view(torch.uint8).numpy().data)
    return hasher.hexdigest()
