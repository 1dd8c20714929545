"""Upload an output folder to the hub: verified, then one commit."""

from __future__ import annotations

from pathlib import Path

from cuvee.bundle.manifest import verify_folder
from cuvee.core import settings
from cuvee.core.names import printable
from cuvee.errors import CuveeError, SourceError, VerifyError


def push(
    output: Path,
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str = "Upload a merge",
    verify: bool = True,
) -> str:
    """Upload every file of the folder in one commit and return the commit's address.

    Raises VerifyError when the folder is not what its manifest says, SourceError (CV-S019) when the hub refuses.
    The token comes from the hub's own settings and is never printed.
    """
    if settings.flag("CUVEE_OFFLINE") or settings.flag("HF_HUB_OFFLINE"):
        raise SourceError("CV-S019", "the network is forbidden (offline mode), so nothing can be pushed")
    if verify:
        found = verify_folder(output)
        if found:
            raise VerifyError.collected(found)
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            folder_path=output, repo_id=repository, revision=revision, commit_message=message
        )
    except Exception as error:  # noqa: BLE001 (the hub's HTTP client has errors of its own kind)
        raise _refused(repository, error) from None
    return str(getattr(commit, "commit_url", commit))


def _refused(repository: str, error: Exception) -> CuveeError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    what = f"status {status}" if status else type(error).__name__
    hint = "log in with `hf auth login`" if status in (401, 403) else None
    return SourceError(
        "CV-S019", f"the hub refused the upload to `{printable(repository)}` ({what})", hint=hint
    )
