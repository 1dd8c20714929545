"""Models on the hub, through `huggingface_hub` and its cache: only the files that are needed, weights when they are.

Owns which files those are and what the hub's failures mean to a person. No connection is made offline; tokens
and server texts never reach a message. Progress is not drawn here.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cuvee.core import settings
from cuvee.core.limits import Limits
from cuvee.core.names import did_you_mean, printable
from cuvee.errors import Diagnostic, SourceError, Where
from cuvee.formats.file import TensorFile
from cuvee.formats.index_file import read_index
from cuvee.formats.shard_names import (
    INDEX_SUFFIX,
    SAFETENSORS_NAMES,
    TORCH_NAMES,
    TORCH_SUFFIXES,
    holds_weights,
)
from cuvee.sources.folder import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    FolderSource,
    Origin,
    not_found,
    open_folder,
    open_single,
)
from cuvee.sources.hub_client import api, tell_nothing
from cuvee.sources.hub_header import Commit, NoRanges, ranged
from cuvee.sources.pipeline import INDEX, is_pipeline, open_pipeline
from cuvee.sources.reference import WEIGHT_SUFFIXES, Reference
from cuvee.sources.remote_file import RemoteFile, Whereabouts
from cuvee.sources.side_files import is_weights
from cuvee.sources.source import note

_FORMATS = (
    ((".safetensors",), SAFETENSORS_NAMES),
    (TORCH_SUFFIXES, TORCH_NAMES),
    ((".gguf",), ()),
)
_GATED = "ask for access on its page on the hub, then log in or set `HF_TOKEN`"
LATE = ".safetensors"  # of such files the header, which comes first, is enough to plan with
_SIDE = (".json", ".txt", ".model", ".jinja", ".md")
_SIDE_NAMES = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")


def open_hub(
    reference: Reference, label: str, limits: Limits, *, offline: bool, notes: tuple[Diagnostic, ...] = ()
) -> FolderSource:
    """The model at `hf://owner/name[@rev][/sub]`, fetched into the hub's cache; `sub` may be a file."""
    fetched = _Repository(reference, label, limits, offline=offline)
    snapshot = fetched.snapshot(lambda names: _wanted(fetched, names), late=True)
    origin = Origin("hub", _origin_name(reference), snapshot.name)
    path = snapshot / reference.subfolder if reference.subfolder else snapshot
    away = fetched.away(snapshot)
    notes = (*notes, *fetched.notes)
    if not (path.exists() or path == snapshot or away):
        raise not_found(path, label)
    try:
        if reference.subfolder in away or path.is_file():
            whole = away.get(reference.subfolder or "")
            return open_single(path, label, limits, origin=origin, notes=notes, away=whole)
        below = f"{reference.subfolder}/" if reference.subfolder else ""
        inside: dict[str, TensorFile] = {name.removeprefix(below): file for name, file in away.items()}
        if is_pipeline(path):
            return open_pipeline(path, label, limits, origin=origin, notes=notes, away=inside)
        return open_folder(path, label, limits, origin=origin, notes=notes, away=inside)
    except SourceError as error:
        if fetched.offline and error.diagnostics[0].code in ("CV-S072", "CV-S077"):
            raise _offline(label, "is not completely in the hub's cache") from None
        raise


def fetch_adapter(reference: Reference, label: str, limits: Limits, *, offline: bool) -> tuple[Path, Origin]:
    """The folder of an adapter on the hub, in the cache, and what it is called."""
    fetched = _Repository(reference, label, limits, offline=offline)
    below = f"{reference.subfolder}/" if reference.subfolder else ""

    def wanted(names: Sequence[str]) -> list[str]:
        there = [name.removeprefix(below) for name in names if name.startswith(below)]
        weights = next((name for name in ADAPTER_WEIGHTS if name in there), None)
        return [below + name for name in there if name in (ADAPTER_CONFIG, weights) or beside(name)]

    snapshot = fetched.snapshot(wanted)
    return _inside(snapshot, reference, label), Origin("adapter", _origin_name(reference), snapshot.name)


def _origin_name(reference: Reference) -> str:
    return reference.name + (f"/{reference.subfolder}" if reference.subfolder else "")


def _inside(snapshot: Path, reference: Reference, label: str) -> Path:
    """The subfolder (or file) of a snapshot."""
    path = snapshot / reference.subfolder if reference.subfolder else snapshot
    if not path.exists():
        raise not_found(path, label)
    return path


class _Repository:
    """One repository at one revision, asked with the user's endpoint and cache."""

    def __init__(self, reference: Reference, label: str, limits: Limits, *, offline: bool) -> None:
        self.reference = reference
        self.label = label
        self.limits = limits
        self.offline = offline or settings.flag("HF_HUB_OFFLINE") or settings.flag("CUVEE_OFFLINE")
        self.notes: list[Diagnostic] = []
        self.late: list[str] = []  # weight files that are not fetched before they are read

    def snapshot(self, wanted: Callable[[Sequence[str]], list[str]], *, late: bool = False) -> Path:
        """The snapshot's folder with the wanted files; what is cached serves when the hub is away.

        With `late` safetensors files are left for later, unless nothing else is wanted.
        """
        if not self.offline:
            try:
                names = wanted(self.names())
                now = [name for name in names if not (late and name.endswith(LATE))]
                self.late = [name for name in names if name not in now] if now else []
                return self.download([glob.escape(name) for name in now or names])
            except _UnreachableError as error:
                self.offline = True
                unreachable = error
        else:
            unreachable = None
        try:
            found = self.download([])  # nothing is asked for: the folder itself, if it was ever fetched
        except SourceError:
            if unreachable is None:
                raise
            raise unreachable.as_error(self.label) from None
        if unreachable is not None:
            message = f"the hub cannot be reached ({unreachable}); the cached copy is read"
            self.notes.append(note("CV-S016", message, self.label, warning=True))
        return found

    def names(self) -> list[str]:
        """Names of all files of the repository."""
        with self.explained():
            info = api().model_info(self.reference.name, revision=self.reference.revision)
        return [sibling.rfilename for sibling in info.siblings or ()]

    def download(self, patterns: list[str], commit: str | None = None) -> Path:
        """The snapshot's folder, with the files that match (offline: as it is)."""
        from huggingface_hub import snapshot_download

        tell_nothing()
        with self.explained():
            return Path(
                snapshot_download(
                    self.reference.name,
                    revision=commit or self.reference.revision,
                    endpoint=settings.get("HF_ENDPOINT"),
                    cache_dir=_cache(),
                    allow_patterns=patterns,
                    local_files_only=self.offline,
                    tqdm_class=_silent(),
                )
            )

    def away(self, snapshot: Path) -> dict[str, RemoteFile]:
        """The files left for later that the cache does not have, each known by its header."""
        missing = [name for name in self.late if not (snapshot / name).is_file()]
        patterns = [glob.escape(name) for name in missing]
        at = Commit(self.reference.name, snapshot.name, settings.get("HF_ENDPOINT"))

        def fetch() -> None:
            try:
                self.download(patterns, snapshot.name)
            except _UnreachableError as error:
                raise error.as_error(self.label) from None

        found = {}
        for name in missing:
            try:
                with self.explained():
                    size, read = ranged(at, name)
                    place = Whereabouts(snapshot / name, size, read, fetch)
                    found[name] = RemoteFile(place, self.limits)
            except (_UnreachableError, NoRanges):
                fetch()  # a hub that does not serve parts of files
                return {}
        return found

    def index(self, name: str) -> list[str]:
        """The files that a shard index lists, before any of them is fetched."""
        return list(read_index(self.download([glob.escape(name)]) / name, self.limits).files)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Failures of the hub as SourceErrors without addresses or server texts, or as _UnreachableError."""
        from huggingface_hub import errors as hub

        try:
            yield
        except hub.GatedRepoError:
            raise self.refused("CV-S013", "is gated: access must be granted first", _GATED) from None
        except hub.RevisionNotFoundError:
            revision = printable(self.reference.revision or "main")
            raise self.refused("CV-S014", f"has no revision `{revision}`", None) from None
        except hub.RepositoryNotFoundError:
            raise self.refused("CV-S011", "is not on the hub, or is private", self.missing_hint()) from None
        except hub.HFValidationError:
            raise self.refused("CV-S011", "is not a name the hub allows", None) from None
        except hub.LocalEntryNotFoundError:
            if self.offline:
                raise _offline(self.label, "is not in the hub's cache") from None
            raise _UnreachableError("no connection") from None
        except hub.HfHubHTTPError as error:
            raise _UnreachableError(f"status {error.response.status_code}") from None
        except Exception as error:
            if isinstance(error, (SourceError, _UnreachableError)) or not _is_network(error):
                raise
            raise _UnreachableError("no connection") from None

    def refused(self, code: str, message: str, hint: str | None) -> SourceError:
        """An answer of the hub that trying again will not change."""
        name = printable(self.reference.name)
        return SourceError(code, f"`{name}` {message}", where=Where(source=self.label), hint=hint)

    def missing_hint(self) -> str:
        """What to try for a repository that is not there."""
        if self.reference.assumed:
            return f"there is no folder `{self.reference.name}` here either; for private ones set `HF_TOKEN`"
        return "check the name; for a private repository set `HF_TOKEN`"


class _UnreachableError(Exception):
    """The hub gave no usable answer; the cache may do."""

    def as_error(self, label: str) -> SourceError:
        return SourceError(
            "CV-S015",
            f"the hub cannot be reached ({self}), and `{printable(label)}` is not in its cache",
            where=Where(source=label),
            hint="check the connection and `HF_ENDPOINT`, or name a local folder",
        )


def _wanted(repository: _Repository, names: Sequence[str]) -> list[str]:
    """The side files, and the weights that a reader of the folder would take."""
    below = repository.reference.subfolder
    if below is not None and below.endswith(WEIGHT_SUFFIXES):
        if below not in names:
            hint = did_you_mean(below, names)
            raise repository.refused("CV-S017", f"has no file `{printable(below)}`", hint)
        return [below]
    prefix = f"{below}/" if below else ""
    there = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    if not there:
        raise repository.refused("CV-S017", f"has no folder `{printable(below or '')}`", None)
    if INDEX in there:
        return list(_wanted_of_pipeline(repository, prefix, there))
    weights = _weights(repository, prefix, [name for name in there if "/" not in name])
    return [prefix + name for name in (*filter(beside, there), *weights)]


def _wanted_of_pipeline(repository: _Repository, prefix: str, there: Sequence[str]) -> Iterator[str]:
    """The side files of a pipeline and of its components, and each component's weights."""
    yield from (prefix + name for name in there if "/" not in name and beside(name))
    for part in sorted({name.partition("/")[0] for name in there if name.count("/") == 1}):
        inside = [
            name.partition("/")[2] for name in there if name.startswith(f"{part}/") and name.count("/") == 1
        ]
        weights = _weights(repository, f"{prefix}{part}/", inside)
        yield from (f"{prefix}{part}/{name}" for name in (*filter(beside, inside), *weights))


def _weights(repository: _Repository, prefix: str, names: Sequence[str]) -> list[str]:
    """Weights in the first format there is: what its index lists, its usual name, or the only candidate."""
    for suffixes, usual in _FORMATS:
        index = next((name + INDEX_SUFFIX for name in usual if name + INDEX_SUFFIX in names), None)
        found = [name for name in names if name.endswith(suffixes) and holds_weights(name)]
        if index is not None:
            return [index, *(n for n in repository.index(prefix + index) if n in names)]
        chosen = [name for name in usual if name in found][:1] or found
        if len(chosen) > 1:
            shown = ", ".join(f"`{printable(name)}`" for name in chosen[:4])
            example = f"hf://{repository.reference.name}/{prefix}{chosen[0]}"
            message = f"has {len(chosen)} files that could be the model: {shown}"
            raise repository.refused("CV-S018", message, f"name one of them: `{printable(example)}`")
        if chosen:
            return chosen
    return [name for name in names if name in ADAPTER_WEIGHTS][:1]


def beside(name: str) -> bool:
    """Whether a file of the folder travels with the model: configs, tokenizer, templates, licence."""
    if "/" in name:
        return name.startswith("additional_chat_templates/") and name.endswith(".jinja")
    wanted = name.endswith(_SIDE) or name.upper().startswith(_SIDE_NAMES)
    return wanted and not is_weights(name) and not name.startswith(".")


def _offline(label: str, state: str) -> SourceError:
    return SourceError(
        "CV-S012",
        f"`{printable(label)}` {state}, and connections are forbidden",
        where=Where(source=label),
        hint="run once online (without `--offline` and `HF_HUB_OFFLINE`), or name a local folder",
    )


def _is_network(error: Exception) -> bool:
    """Whether an error comes from the transport, whichever HTTP library the hub client is built on."""
    modules = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return bool(modules & {"httpx", "httpx2", "httpcore", "requests", "urllib3"}) or isinstance(
        error, (ConnectionError, TimeoutError)
    )


def _cache() -> Path | None:
    """The hub's cache when `HF_HOME` was set after the client was imported; else the client knows best."""
    from huggingface_hub import constants

    home = settings.get("HF_HOME")
    return None if home is None or Path(home) == Path(constants.HF_HOME) else Path(home) / "hub"


def _silent() -> Any:
    """A progress bar that draws nothing (the client's interface asks for a subclass of its own)."""
    from huggingface_hub.utils import tqdm

    class Silent(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

    return Silent
