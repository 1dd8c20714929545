"""Which files of a folder make up its model, opened and compared, or the reason why that cannot be told.

States that loaders accept in silence (a stale file beside an index, shards the index forgets) are refused.
Must not know what tensors mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cuvee.core.limits import DEFAULT, Limits
from cuvee.core.names import printable
from cuvee.errors import Diagnostic, SourceError, Where
from cuvee.formats.file import TensorFile, open_file
from cuvee.formats.index_file import ShardIndex, check_against_shards, read_index
from cuvee.formats.json_file import read_json
from cuvee.formats.member_path import safe_member
from cuvee.formats.refusals import corrupt, quoted, unusable
from cuvee.formats.shard_names import (
    INDEX_SUFFIX,
    SAFETENSORS_NAMES,
    TORCH_NAMES,
    TORCH_SUFFIXES,
    holds_weights,
    shard_place,
)

__all__ = ["ShardIndex", "WeightSet", "read_index", "read_json", "safe_member", "weight_files"]


@dataclass(frozen=True, slots=True)
class WeightSet:
    """The model of a folder: its open files in order, the index they came from, and what was left aside."""

    folder: Path
    files: tuple[TensorFile, ...]
    index_path: Path | None
    index: ShardIndex | None
    notes: tuple[Diagnostic, ...]

    @property
    def format(self) -> str:
        """`safetensors`, `torch` or `gguf`; one folder never mixes them."""
        return self.files[0].format

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files' paths, in order."""
        return tuple(file.path for file in self.files)

    def close(self) -> None:
        """Close every file."""
        for file in self.files:
            file.close()


def weight_files(
    folder: Path, limits: Limits = DEFAULT, away: Mapping[str, TensorFile] | None = None
) -> WeightSet:
    """Open the weights of a model folder, safetensors before PyTorch before GGUF; SourceError in doubt.

    `away` are files that belong to the folder and are not in it yet, by name, open already.
    """
    away = away or {}
    names = sorted({*_listing(folder), *away})
    kinds = [
        ([n for n in names if n.endswith(".safetensors")], SAFETENSORS_NAMES),
        ([n for n in names if n.endswith(TORCH_SUFFIXES)], TORCH_NAMES),
        ([n for n in names if n.endswith(".gguf")], ()),
    ]
    for position, (candidates, canonical) in enumerate(kinds):
        index = next((c + INDEX_SUFFIX for c in canonical if c + INDEX_SUFFIX in names), None)
        weights = [name for name in candidates if holds_weights(name)]
        if not weights and index is None:
            continue
        others = [name for later, _ in kinds[position + 1 :] for name in later if holds_weights(name)]
        notes = _left_aside(folder, others, "another format of the model is there too")
        if index is not None:
            return _indexed(folder, index, weights, notes, limits, away)
        return _single(folder, weights, canonical, notes, limits, away)
    raise _nothing(folder, names)


def _listing(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir() if not entry.is_dir())
    except OSError as error:
        reason = (error.strerror or "unknown error").lower()
        raise unusable("CV-S050", folder, f"the folder cannot be listed: {reason}") from None


def _indexed(
    folder: Path,
    index_name: str,
    weights: list[str],
    notes: tuple[Diagnostic, ...],
    limits: Limits,
    away: Mapping[str, TensorFile],
) -> WeightSet:
    """The shards that an index lists, none missing, none stale beside them."""
    index_path = safe_member(folder, index_name)
    index = read_index(index_path, limits)
    unlisted = [name for name in weights if name not in index.files]
    _refuse_stale(index_path, index, unlisted)
    for name in index.files:
        if name not in away and not safe_member(folder, name).is_file():
            raise unusable(
                "CV-S072",
                index_path,
                f"the index lists {quoted(name)}, which is not there",
                hint="the model is incomplete: fetch the missing file",
            )
    opened = _open_all(folder, index.files, limits, away)
    try:
        check_against_shards(index_path, index, opened)
    except SourceError:
        _close_all(opened)
        raise
    aside = _left_aside(folder, unlisted, "the index does not list it")
    return WeightSet(folder, tuple(opened.values()), index_path, index, notes + aside)


def _refuse_stale(index_path: Path, index: ShardIndex, unlisted: list[str]) -> None:
    """Files that a loader would take instead of, or that belong to, what the index lists."""
    whole = index_path.name.removesuffix(INDEX_SUFFIX)
    if whole in unlisted:
        raise unusable(
            "CV-S074",
            index_path,
            f"the folder holds both `{whole}` and `{index_path.name}`, which does not list it",
            hint=f"loaders take `{whole}`; delete whichever of the two is out of date",
        )
    stems = {found.stem for name in index.files if (found := shard_place(name))}
    for name in unlisted:
        found = shard_place(name)
        if found and (found.stem in stems or name.startswith(whole.split(".")[0])):
            raise corrupt(
                "CV-S073",
                index_path,
                f"the shard {quoted(name)} lies beside the index, which does not list it",
                hint="the index is incomplete, or the shard is left over from another model; delete it then",
            )


def _single(
    folder: Path,
    weights: list[str],
    canonical: tuple[str, ...],
    notes: tuple[Diagnostic, ...],
    limits: Limits,
    away: Mapping[str, TensorFile],
) -> WeightSet:
    """The one file that is the model: of a canonical name, or alone."""
    chosen = next((name for name in canonical if name in weights), None)
    stem = (chosen or "").split(".")[0]
    for name in weights:
        found = shard_place(name)
        if found is None or (chosen is not None and found.stem != stem):
            continue
        if chosen is None and len(weights) == 1 and found.total == 1:
            continue
        raise unusable(
            "CV-S075",
            folder,
            f"{quoted(name)} is one shard of {found.total}, but the folder has no index for them",
            hint=f"fetch the missing `{INDEX_SUFFIX}` file, or delete shards left over from another model",
        )
    if chosen is None and len(weights) > 1:
        listed = ", ".join(quoted(name) for name in weights[:4]) + (" …" if len(weights) > 4 else "")
        raise unusable(
            "CV-S075",
            folder,
            f"{len(weights)} files could be the model: {listed}",
            hint="name the file itself instead of the folder",
        )
    name = chosen or weights[0]
    opened = _open_all(folder, (name,), limits, away)
    aside = _left_aside(folder, [other for other in weights if other != name], f"the model is `{name}`")
    return WeightSet(folder, tuple(opened.values()), None, None, notes + aside)


def _open_all(
    folder: Path, names: tuple[str, ...], limits: Limits, away: Mapping[str, TensorFile]
) -> dict[str, TensorFile]:
    opened: dict[str, TensorFile] = {}
    try:
        for name in names:
            opened[name] = away.get(name) or open_file(safe_member(folder, name), limits)
    except BaseException:
        _close_all(opened)
        raise
    return opened


def _close_all(opened: dict[str, TensorFile]) -> None:
    for file in opened.values():
        file.close()


def _left_aside(folder: Path, names: list[str], reason: str) -> tuple[Diagnostic, ...]:
    where = Where(file=printable(str(folder), 1000))
    return tuple(
        Diagnostic("CV-S078", f"{quoted(name)} is not read: {reason}", where, severity="note")
        for name in names
    )


def _nothing(folder: Path, names: list[str]) -> SourceError:
    adapter = next((n for n in names if n.startswith("adapter_model.")), None)
    found = f"only the adapter `{adapter}`" if adapter else "no safetensors, PyTorch or GGUF file"
    hint = "write `base+adapter` to use an adapter" if adapter else None
    return unusable(
        "CV-S077", folder, f"the folder holds {found}, expected the weights of a model", hint=hint
    )
