"""A model folder as `from_pretrained` expects it, written all or nothing.

Owns only the choice of a folder as the target; the protocol is in `begin` and `staging`.
"""

from __future__ import annotations

from pathlib import Path

from cuvee.core.disk import REAL, Disk
from cuvee.sinks.begin import Request, begin
from cuvee.sinks.layout import Layout
from cuvee.sinks.staging import StagedSession
from cuvee.sinks.target import Target


class FolderSink:
    """The folder `out`: absent (or the previous model) until a commit, complete ever after.

    With `paranoid`, every file is read back, from the device as far as the system can, before the output appears.
    """

    def __init__(self, out: Path, disk: Disk = REAL, *, paranoid: bool = False) -> None:
        self._out = out
        self._disk = disk
        self._paranoid = paranoid

    def begin(self, layout: Layout, plan_digest: str, *, resume: bool, overwrite: bool) -> StagedSession:
        """Claim the folder; see `Sink.begin`. An empty folder at `out` counts as nothing."""
        target = Target(self._disk.real_path(self._out), "folder")
        return begin(self._disk, Request(target, layout, plan_digest, resume, overwrite, self._paranoid))
