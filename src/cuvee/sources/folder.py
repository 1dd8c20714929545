"""Folders of models as `save_pretrained` leaves them, and single weight files.

Owns what a folder source consists of. Which files hold the weights is decided in `formats.weight_set`;
adapters alone are refused here with the way out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.core.limits import Limits
from cuvee.core.names import printable
from cuvee.core.near import nearest
from cuvee.core.sampling import Span
from cuvee.core.tensors import Extent, Stored, TensorMeta
from cuvee.errors import CorruptFile, Diagnostic, SourceError, Where
from cuvee.formats.file import TensorFile, open_file
from cuvee.formats.json_file import read_json
from cuvee.formats.member_path import safe_member
from cuvee.formats.shard_index import weight_files
from cuvee.formats.shard_names import holds_weights
from cuvee.sources.reference import WEIGHT_SUFFIXES
from cuvee.sources.remote_file import RemoteFile
from cuvee.sources.side_files import SideFiles
from cuvee.sources.source import note
from cuvee.sources.stored import StoredTensors

if TYPE_CHECKING:
    from torch import Tensor

    from cuvee.sources.carried import CarriedFiles

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True, slots=True)
class Origin:
    """What a source is called in plans and locks."""

    kind: str
    name: str
    revision: str | None = None


class FolderSource:
    """Weights, config and side files of one folder, or the weights of one file."""

    def __init__(
        self,
        stored: StoredTensors,
        side: SideFiles | CarriedFiles,
        config: Mapping[str, Any] | None,
        *,
        origin: Origin,
        notes: tuple[Diagnostic, ...] = (),
    ) -> None:
        self.label = stored.label
        self.config = config
        self.notes = notes + stored.notes
        self.tensors: Mapping[str, TensorMeta] = stored.tensors
        self._origin = origin
        self._stored = stored
        self._side = side

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Elements [start, stop) of a tensor, 1-D, fresh memory."""
        return self._stored.read(name, start, stop)

    def stored(self, name: str) -> Stored:
        """How the tensor lies in its file."""
        return self._stored.stored(name)

    def extent(self, name: str) -> Extent | None:
        """Where the tensor's bytes lie."""
        return self._stored.extent(name)

    def file(self, name: str) -> bytes | None:
        """A side file of the folder, or of what a GGUF file carries; other single weight files have none."""
        return self._side.file(name)

    def files(self) -> list[str]:
        """Names of side files."""
        return self._side.files()

    def weight_files(self) -> Mapping[Path, tuple[Span, ...]]:
        """The files that hold the tensors."""
        return self._stored.weight_files()

    def unfetched(self) -> list[RemoteFile]:
        """Files of which only the header is here."""
        return self._stored.unfetched()

    def identity(self) -> dict[str, Any]:
        """Folder or file name, sizes, header digests of weights, digests of configs and tokenizer files."""
        files = [*self._stored.identity(), *self._side.identity()]
        origin = self._origin
        return {"kind": origin.kind, "name": origin.name, "revision": origin.revision, "files": files}

    def close(self) -> None:
        """Close all files."""
        self._stored.close()


def open_path(path: Path, label: str, limits: Limits) -> FolderSource:
    """The model in a folder or a weight file; SourceError with what was looked for when there is none."""
    if path.is_dir():
        return open_folder(path, label, limits)
    if not path.exists():
        raise not_found(path, label)
    return open_single(path, label, limits, origin=Origin("file", path.name))


def open_single(
    path: Path,
    label: str,
    limits: Limits,
    *,
    origin: Origin,
    notes: tuple[Diagnostic, ...] = (),
    away: TensorFile | None = None,
) -> FolderSource:
    """One weight file alone, `away` where it is not here yet; what lies beside it is not looked at."""
    file = away or open_file(path, limits)
    config, remarks = _own_config(file, label)
    stored = StoredTensors([file], label, limits, root=path.parent)
    side, more = _side_files(SideFiles(None, label, limits), file, label)
    return FolderSource(stored, side, config, origin=origin, notes=(*notes, *remarks, *more))


def open_folder(
    folder: Path,
    label: str,
    limits: Limits,
    *,
    origin: Origin | None = None,
    notes: tuple[Diagnostic, ...] = (),
    away: Mapping[str, TensorFile] | None = None,
) -> FolderSource:
    """The model in a folder; `origin` says what it is when that is not simply the folder.

    `away` are weight files that belong to it and are not here yet.
    """
    if is_adapter(folder):
        raise _adapter_alone(folder, label, limits)
    try:
        weights = weight_files(folder, limits, away)
    except SourceError as error:
        raise error.at(source=label) from None
    try:
        config = read_config(folder, "config.json", limits)
    except BaseException:
        weights.close()
        raise
    if config is None:
        config, remarks = _own_config(weights.files[0], label)
        notes = (*notes, *remarks)
    stored = StoredTensors(weights.files, label, limits, root=folder)
    origin = origin or Origin("folder", folder.resolve().name)
    side, more = _side_files(SideFiles(folder, label, limits), weights.files[0], label)
    return FolderSource(stored, side, config, origin=origin, notes=(*notes, *weights.notes, *more))


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter and no weights of a model."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return False
    names = [path.name for path in folder.iterdir()]
    weights = [
        n for n in names if (n.endswith(WEIGHT_SUFFIXES) and holds_weights(n)) or n.endswith(".index.json")
    ]
    return not weights


def open_adapter(
    path: Path, label: str, limits: Limits
) -> tuple[StoredTensors, Mapping[str, Any], SideFiles]:
    """An adapter's tensors, configuration and side files, from its folder."""
    if not path.exists():
        raise not_found(path, label)
    folder = path if path.is_dir() else path.parent
    raw = read_config(folder, ADAPTER_CONFIG, limits)
    found = [path] if path.is_file() else [folder / n for n in ADAPTER_WEIGHTS if (folder / n).is_file()]
    if raw is None or not found:
        lacks = f"`{ADAPTER_CONFIG}`" if raw is None else " or ".join(f"`{name}`" for name in ADAPTER_WEIGHTS)
        raise SourceError(
            "CV-S022",
            f"`{printable(label)}` is not an adapter: it has no {lacks}",
            where=Where(source=label, file=str(folder)),
        )
    file = open_file(safe_member(folder, found[0].name), limits)
    return StoredTensors([file], label, limits, root=folder), raw, SideFiles(folder, label, limits)


def read_config(folder: Path, name: str, limits: Limits) -> Mapping[str, Any] | None:
    """A JSON object beside the weights, or None when there is no such file."""
    path = safe_member(folder, name)
    if not path.is_file():
        return None
    value = read_json(path, limits)
    if not isinstance(value, dict):
        raise CorruptFile("CV-S048", f"`{name}` must hold a JSON object", where=Where(file=str(path)))
    return value


def not_found(path: Path, label: str) -> SourceError:
    """No such path; the shell's `~` and near misses are explained."""
    hint = None
    if label.startswith("~"):
        hint = "`~` is expanded by the shell only; write the whole path"
    elif path.parent.is_dir():
        hint = nearest(path)
    where = Where(source=label, file=str(path))
    return SourceError("CV-S001", f"there is no file or folder `{printable(label)}`", where=where, hint=hint)


def _own_config(file: TensorFile, label: str) -> tuple[Mapping[str, Any] | None, tuple[Diagnostic, ...]]:
    """The configuration that a GGUF file carries, in the words of `config.json`; a note when it has none."""
    if file.format != "gguf":
        return None, ()
    from cuvee.formats.gguf_config import hf_config

    try:
        return hf_config(file.metadata), ()
    except SourceError as error:
        reason = error.diagnostics[0].message
        return None, (note("CV-S049", f"the GGUF file is read without a config: {reason}", label),)


def _side_files(
    beside: SideFiles, file: TensorFile, label: str
) -> tuple[SideFiles | CarriedFiles, tuple[Diagnostic, ...]]:
    """What lies beside the weights, with the tokenizer that a GGUF file carries."""
    if file.format != "gguf":
        return beside, ()
    from cuvee.formats.gguf_tokenizer import tokenizer_remark
    from cuvee.sources.carried import CarriedFiles

    side = CarriedFiles(beside, file.metadata)
    remark = None if side.complete else tokenizer_remark(file.metadata)
    return side, () if remark is None else (note("CV-S095", remark, label),)


def _adapter_alone(folder: Path, label: str, limits: Limits) -> SourceError:
    """An adapter is not a model; say which base it belongs to when that can be told."""
    raw = read_config(folder, ADAPTER_CONFIG, limits) or {}
    base = raw.get("base_model_name_or_path")
    written = printable(base) if isinstance(base, str) and base else None
    message = f"`{printable(label)}` holds an adapter, not a model"
    if written is not None and _resolves(base, folder):
        message += f"; it was trained on `{written}`, which is there"
    hint = f"write `{written or 'BASE'} + {printable(label)}`"
    return SourceError("CV-S003", message, where=Where(source=label, file=str(folder)), hint=hint)


def _resolves(base: Any, folder: Path) -> bool:
    try:
        return Path(base).is_dir() or (folder.parent / base).is_dir()
    except (OSError, ValueError, TypeError):
        return False
