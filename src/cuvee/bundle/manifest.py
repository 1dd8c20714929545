"""The proof of a run: writing it, reading it, and checking an output against it.

Owns verification: which file and which tensor is not what the manifest says. Reads only, and needs no torch.
"""

from __future__ import annotations

import functools
import math
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from cuvee.bundle.manifest_form import Manifest, Origin, TensorRecord, build, parse
from cuvee.core.digests import bytes_digest, digest_file, extent_digest, weight_file_digest
from cuvee.core.limits import DEFAULT
from cuvee.core.names import printable
from cuvee.errors import Diagnostic, VerifyError, Where
from cuvee.sinks.target import MANIFEST, beside

__all__ = ["Manifest", "Origin", "TensorRecord", "build", "parse", "verify_file", "verify_folder"]

# What version control and the hub's client put into a folder by themselves.
_FOREIGN = {".git", ".gitattributes", ".gitignore", ".cache"}


def verify_folder(folder: Path, *, sample: float | None = None, seed: int = 0) -> list[Diagnostic]:
    """Everything in which a model folder differs from its manifest; an empty list is a proof that it does
    not.

    `sample` (0 < sample <= 1) hashes that part of the tensors, drawn by `seed`; names, sizes, headers and
    side files are always checked in full. Only reading problems of the folder itself raise.
    """
    return _verify(folder, folder / MANIFEST, _listing(folder), sample, seed)


def verify_file(file: Path, *, sample: float | None = None, seed: int = 0) -> list[Diagnostic]:
    """As `verify_folder`, for an output that is one weight file with its manifest beside it."""
    here = [file.name] if file.is_file() else []
    return _verify(file.parent, beside(file), here, sample, seed)


def _verify(
    folder: Path, manifest_path: Path, here: list[str], sample: float | None, seed: int
) -> list[Diagnostic]:
    if sample is not None and not 0 < sample <= 1:
        raise ValueError(f"a sample must be more than 0 and at most 1, got {sample}")
    try:
        with manifest_path.open("rb") as file:
            manifest = parse(file.read(DEFAULT.json_bytes + 1), manifest_path.name)
    except VerifyError as error:
        return list(error.diagnostics)
    except OSError as error:
        reason = "there is no" if isinstance(error, FileNotFoundError) else "cannot read the"
        hint = "only outputs of cuvee can be verified"
        return [
            _finding("CV-V001", f"{reason} manifest `{manifest_path.name}`", manifest_path.name, hint=hint)
        ]
    findings = list(_names(folder, manifest, here))
    chosen = _chosen(manifest, sample, seed)
    for name in sorted(set(here) & set(manifest.files)):
        try:
            findings += _content(folder / name, name, manifest, chosen)
        except OSError as error:
            message = f"`{name}` cannot be read: {(error.strerror or str(error)).lower()}"
            findings.append(_finding("CV-V009", message, name))
    return findings


def _listing(folder: Path) -> list[str]:
    """Relative names of all files below the folder, manifest and foreign ones left out."""
    found = []
    for root, folders, files in os.walk(folder, onerror=_raise):
        inner = Path(root).relative_to(folder)
        if inner == Path():
            folders[:] = [name for name in folders if name not in _FOREIGN]
            files = [name for name in files if name not in _FOREIGN and name != MANIFEST]
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        found += [(inner / name).as_posix() for name in (*files, *links)]
    return sorted(found)


def _names(folder: Path, manifest: Manifest, here: list[str]) -> Iterator[Diagnostic]:
    missing = sorted(set(manifest.files) - set(here))
    added = sorted(set(here) - set(manifest.files))
    for name in missing:
        twin = next((other for other in added if _is_copy(folder / other, name, manifest)), None)
        if twin is None:
            yield _finding("CV-V003", f"the file `{name}` is missing", name)
        else:
            added.remove(twin)
            yield _finding("CV-V010", f"the file `{name}` is now called `{printable(twin)}`", name)
    for name in added:
        yield _finding(
            "CV-V004",
            f"the file `{printable(name)}` is not part of the output",
            printable(name),
            hint="a loader may read it in place of the model; move it away",
        )


def _is_copy(path: Path, name: str, manifest: Manifest) -> bool:
    try:
        same_size = path.is_file() and path.stat().st_size == manifest.files[name].size
        return same_size and not list(_content(path, name, manifest, set(manifest.tensors)))
    except OSError:
        return False


def _chosen(manifest: Manifest, sample: float | None, seed: int) -> set[str]:
    names = sorted(manifest.tensors)
    if sample is None:
        return set(names)
    return set(random.Random(seed).sample(names, math.ceil(sample * len(names))))


def _content(path: Path, name: str, manifest: Manifest, chosen: set[str]) -> Iterator[Diagnostic]:
    record = manifest.files[name]
    if not path.is_file():  # opening a pipe would wait for ever
        yield _finding("CV-V009", f"`{name}` is not a regular file", name)
        return
    size = path.stat().st_size
    if size != record.size:
        how = "was cut short" if size < record.size else "has grown"
        message = f"`{name}` {how}: {size:,} bytes, expected {record.size:,}"
        yield _finding("CV-V005", message, name)
    elif record.kind == "plain":
        if digest_file(path) != record.digest:
            yield _finding("CV-V007", f"the content of `{name}` has changed", name)
    else:
        with path.open("rb", buffering=0) as file:
            yield from _weights(file, name, manifest, chosen)


def _weights(file: BinaryIO, name: str, manifest: Manifest, chosen: set[str]) -> Iterator[Diagnostic]:
    read = functools.partial(_read_at, file)
    inside = manifest.tensors_of(name)
    for tensor in inside:
        place = manifest.tensors[tensor]
        if tensor in chosen and extent_digest(read, place.offset, place.nbytes) != place.blake3:
            yield _finding(
                "CV-V006",
                f"the values of tensor `{printable(tensor)}` in `{name}` have changed",
                name,
                tensor,
            )
    record = manifest.files[name]
    header = bytes_digest(_read_at(file, record.header, 0))
    # With the tensors' recorded digests: what is left to differ is the header.
    if weight_file_digest(header, (manifest.tensors[t].blake3 for t in inside)) != record.digest:
        yield _finding("CV-V007", f"the header of `{name}` has changed", name)


def _read_at(file: BinaryIO, count: int, offset: int) -> bytes:
    file.seek(offset)
    pieces = []
    while count > 0 and (piece := file.read(count)):
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)


def _raise(error: OSError) -> None:
    raise error


def _finding(
    code: str, message: str, file: str, tensor: str | None = None, hint: str | None = None
) -> Diagnostic:
    return Diagnostic(
        code, message, Where(file=file, tensor=None if tensor is None else printable(tensor)), hint
    )
