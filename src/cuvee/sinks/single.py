"""One weight file, written all or nothing: the output of raw tensor merges.

Owns only the choice of a file as the target; the protocol is in `begin` and `staging`.
"""

from __future__ import annotations

from pathlib import Path

from cuvee.core.disk import REAL, Disk
from cuvee.sinks.begin import Request, begin
from cuvee.sinks.layout import Layout
from cuvee.sinks.staging import StagedSession
from cuvee.sinks.target import Target


class SingleFileSink:
    """The file `out`, with its manifest beside it as `<out>.cuvee-manifest.json`.

    The manifest appears first and the file last; a crash in between is finished by the next run.
    """

    def __init__(self, out: Path, disk: Disk = REAL, *, paranoid: bool = False) -> None:
        self._out = out
        self._disk = disk
        self._paranoid = paranoid

    def begin(self, layout: Layout, plan_digest: str, *, resume: bool, overwrite: bool) -> StagedSession:
        """Claim the file; see `Sink.begin`.

        ValueError unless the layout is one file called as `out`: `plan_layout(..., max_shard_bytes=None,
        stem=out.stem)`.
        """
        target = Target(self._disk.real_path(self._out), "file")
        if [file.name for file in layout.files] != [target.out.name]:
            raise ValueError(f"the layout of a single file must be one file called {target.out.name!r}")
        return begin(self._disk, Request(target, layout, plan_digest, resume, overwrite, self._paranoid))
