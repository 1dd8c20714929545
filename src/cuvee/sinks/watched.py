"""A staged session that others look at and add to while it is written: what hooks see, and what they may do.

Owns nothing but the passing on. Must not know why anybody looks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cuvee.sinks.sink import MakeManifest, Staging

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Buffer

Named = Callable[[str], None]
At = Callable[[str, int], None]


def _nobody(*_: object) -> None:
    """Who does not look."""


@dataclass(slots=True)
class Watched:
    """A session with hooks around it, called in the thread that writes; a context manager.

    `writing(name, offset)` comes before bytes are written from there on, `written(name, end)` after those up to there;
    `finishing(name)` before a tensor is finished and `finished(name)` after. `besides`: tensors that somebody made.
    """

    session: Staging
    writing: At = _nobody
    written: At = _nobody
    finishing: Named = _nobody
    finished: Named = _nobody
    besides: Collection[str] = ()

    @property
    def done(self) -> set[str]:
        """Tensors that need not be written."""
        return self.session.done | set(self.besides)

    @property
    def digests(self) -> dict[str, str]:
        """Tensor digests so far."""
        return self.session.digests

    @property
    def folder(self) -> Path:
        """Where weight files are staged."""
        return self.session.folder

    def write(self, name: str, offset: int, data: Buffer) -> None:
        """Take bytes of a tensor."""
        self.writing(name, offset)
        self.session.write(name, offset, data)
        self.written(name, offset + memoryview(data).nbytes)

    def put(self, name: str, offset: int, data: Buffer) -> None:
        """Write bytes that were hashed elsewhere."""
        self.session.put(name, offset, data)

    def adopt(self, name: str, digest: str) -> None:
        """A tensor was made elsewhere."""
        self.session.adopt(name, digest)

    def finish(self, name: str) -> None:
        """All bytes of a tensor are there."""
        self.finishing(name)
        self.session.finish(name)
        self.finished(name)

    def commit(self, side_files: Mapping[str, bytes], manifest: MakeManifest) -> None:
        """Make the output visible."""
        self.session.commit(side_files, manifest)

    def abort(self) -> None:
        """Stop."""
        self.session.abort()

    def __enter__(self) -> Watched:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.session.abort()


__all__ = ["Watched"]
