"""Upload an output to the hub: verified, then one commit that also takes away weights of an earlier model.

One commit, because a reader must never find half a model (the client's own upload of folders may make several);
without the earlier weights, because loaders prefer an old `model.safetensors` to new shards and say nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.bundle.manifest import verify_file, verify_folder
from cuvee.core import settings
from cuvee.core.names import printable
from cuvee.errors import CuveeError, SourceError, VerifyError
from cuvee.sinks.target import beside
from cuvee.sources.hub_client import api

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_WEIGHTS = (".safetensors", ".bin", ".index.json")  # what loaders look for at the top of a repository
_HIDDEN = (".git", ".cache", ".DS_Store")


@dataclass(frozen=True, slots=True)
class Pushed:
    """The commit's address, and the weight files of an earlier model that it took away."""

    url: str
    removed: tuple[str, ...] = ()


def push(
    output: Path,
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str = "Upload a merge",
    verify: bool = True,
) -> Pushed:
    """Upload an output (a folder, or one weight file with its manifest) in one commit.

    The repository, and the branch `revision`, are made where they are not there.

    Raises VerifyError when the output is not what its manifest says, SourceError (CV-S019) when the hub refuses.
    The token comes from the hub's own settings and is never printed.
    """
    if settings.flag("CUVEE_OFFLINE") or settings.flag("HF_HUB_OFFLINE"):
        raise SourceError("CV-S019", "the network is forbidden (offline mode), so nothing can be pushed")
    if verify:
        found = verify_folder(output) if output.is_dir() else verify_file(output)
        if found:
            raise VerifyError.collected(found)
    hub = api()
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        if revision is not None:
            hub.create_branch(repository, branch=revision, exist_ok=True)
        return _committed(hub, dict(_files(output)), repository, revision, message)
    except Exception as error:  # noqa: BLE001 (the hub's HTTP client has errors of its own kind)
        raise _refused(repository, error) from None


def _committed(
    hub: HfApi, files: dict[str, Path], repository: str, revision: str | None, message: str
) -> Pushed:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    there = hub.list_repo_files(repository, revision=revision)
    stale = sorted(n for n in there if "/" not in n and n.endswith(_WEIGHTS) and n not in files)
    steps: list[Any] = [CommitOperationDelete(path_in_repo=name) for name in stale]
    steps += [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()]
    made = hub.create_commit(repository, steps, commit_message=message, revision=revision)
    return Pushed(str(made.commit_url), tuple(stale))


def _files(output: Path) -> Iterator[tuple[str, Path]]:
    """What is uploaded, by its path in the repository."""
    if not output.is_dir():
        yield from ((path.name, path) for path in (output, beside(output)))
        return
    for path in sorted(output.rglob("*")):
        inside = path.relative_to(output)
        if path.is_file() and inside.parts[0] not in _HIDDEN:
            yield inside.as_posix(), path


def _refused(repository: str, error: Exception) -> CuveeError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    what = f"status {status}" if status else type(error).__name__
    hint = "log in with `hf auth login`" if status in (401, 403) else None
    return SourceError(
        "CV-S019", f"the hub refused the upload to `{printable(repository)}` ({what})", hint=hint
    )
