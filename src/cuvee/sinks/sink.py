"""What every destination of tensors offers, whatever lies behind it.

Owns the two protocols and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from cuvee.core.digests import FileRecord
from cuvee.sinks.layout import Layout

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Buffer

MakeManifest = Callable[[dict[str, FileRecord]], bytes]


class Session(Protocol):
    """One output on its way. Leaving its `with` block without `commit` is `abort`.

    Different tensors may be written from different threads at once; the blocks of one tensor come in order,
    from one thread at a time.
    """

    @property
    def done(self) -> set[str]:
        """Tensors that need not be written: an earlier run did it, and their bytes were hashed again."""
        ...

    @property
    def digests(self) -> dict[str, str]:
        """Tensor digest of each tensor finished so far, by this run or an earlier one."""
        ...

    def write(self, name: str, offset: int, data: Buffer) -> None:
        """Take bytes of a tensor at `offset` within it; offset 0 begins the tensor (again).

        ValueError when the offset is not where the last block ended, or the data pass the tensor's end.
        """
        ...

    def finish(self, name: str) -> None:
        """All bytes of the tensor are there; ValueError when they are not."""
        ...

    def commit(self, side_files: Mapping[str, bytes], manifest: MakeManifest) -> None:
        """Make the output visible and durable, or raise and leave what was there.

        `side_files` maps names (`config.json`, `sub/x.json`) to contents. `manifest` is called once with a
        record for every other file of the output and returns the manifest's bytes, which are written last.
        """
        ...

    def abort(self) -> None:
        """Stop. What is finished stays where the next run finds it. Twice, or after commit, is fine."""
        ...

    def __enter__(self) -> Session: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Staging(Session, Protocol):
    """A session whose weight files others may write into at the layout's places."""

    @property
    def folder(self) -> Path:
        """Where the weight files are staged."""
        ...

    def put(self, name: str, offset: int, data: Buffer) -> None:
        """Write bytes of a tensor that was made and hashed elsewhere, in any order; `adopt` finishes it."""
        ...

    def adopt(self, name: str, digest: str) -> None:
        """A tensor is staged that was made elsewhere, with this digest."""
        ...


class Sink(Protocol):
    """A destination."""

    def begin(self, layout: Layout, plan_digest: str, *, resume: bool, overwrite: bool) -> Session:
        """Claim the destination and prepare it for the layout.

        `plan_digest` names what is about to be computed: with `resume`, tensors that an interrupted run of
        the same plan finished are kept. OutputBusy when another run holds the destination, or something is
        there already and `overwrite` is false; OutOfSpace before anything large is written.
        """
        ...
