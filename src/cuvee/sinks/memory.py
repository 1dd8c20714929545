"""Tensors kept in memory: what `.load()` of a merge gives, and tensors that are filled again and again.

Same contract as a folder, nothing on disk and nothing to resume.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cuvee.core.digests import as_bytes
from cuvee.core.lazy import numpy, torch
from cuvee.core.tensors import Held
from cuvee.sinks.layout import Layout
from cuvee.sinks.progress import Progress
from cuvee.sinks.sink import MakeManifest

if TYPE_CHECKING:
    from types import TracebackType

    import numpy.typing as npt
    from torch import Tensor
    from typing_extensions import Buffer

    Array = npt.NDArray[Any]


class MemorySink:
    """After a commit: `tensors` by name in the order of the layout, side `files`, and the `manifest`."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.files: dict[str, bytes] = {}
        self.manifest: bytes | None = None

    def begin(self, layout: Layout, plan_digest: str, *, resume: bool, overwrite: bool) -> MemorySession:
        """A fresh session; what earlier runs left has no effect, since nothing outlives the process."""
        return MemorySession(self, layout)


class MemorySession:
    """Blocks land in the memory of the final tensors."""

    def __init__(self, sink: MemorySink, layout: Layout) -> None:
        self._sink = sink
        self._progress = Progress(layout)
        self._tensors = {
            meta.name: torch.empty(meta.shape, dtype=meta.dtype.torch) for meta in layout.tensors.values()
        }
        self._bytes = {
            name: memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data)
            if tensor.numel()
            else memoryview(b"")
            for name, tensor in self._tensors.items()
        }

    @property
    def done(self) -> set[str]:
        """Always empty."""
        return set()

    @property
    def digests(self) -> dict[str, str]:
        return self._progress.digests

    def write(self, name: str, offset: int, data: Buffer) -> None:
        view = as_bytes(data)
        self._progress.take(name, offset, view)
        if view:
            self._bytes[name][offset : offset + len(view)] = view

    def finish(self, name: str) -> None:
        self._progress.finish(name)

    def commit(self, side_files: Mapping[str, bytes], manifest: MakeManifest) -> None:
        """Hand tensors, side files and manifest to the sink."""
        self._progress.require_all()
        content = manifest(self._progress.records(dict(side_files)))
        self._sink.tensors = self._tensors
        self._sink.files = dict(side_files)
        self._sink.manifest = content

    def abort(self) -> None:
        """Nothing to keep."""

    def __enter__(self) -> MemorySession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abort()


class FilledSession:
    """Blocks land in tensors that are given, and no digest is taken of them: for candidates that are scored, not kept.

    The tensors (or NumPy arrays) are contiguous, on the CPU, and have the sizes and types of the layout.
    """

    def __init__(self, tensors: Mapping[str, Tensor | Array]) -> None:
        held = {name: _array(tensor) for name, tensor in tensors.items()}
        self._places = {name: Held(array.ctypes.data, array.nbytes) for name, array in held.items()}
        self._bytes = {name: memoryview(array.data) for name, array in held.items() if array.nbytes}
        self.done: set[str] = set()  # nothing is, before a run
        self.digests: dict[str, str] = {}

    def held(self, name: str) -> Held | None:
        """Where the tensor lies; blocks may be made there instead of being written."""
        return self._places[name]

    def write(self, name: str, offset: int, data: Buffer) -> None:
        view = as_bytes(data)
        if view:
            self._bytes[name][offset : offset + len(view)] = view

    def finish(self, name: str) -> None:
        """Nothing to do: the tensor is where it belongs."""

    def commit(self, side_files: Mapping[str, bytes], manifest: MakeManifest) -> None:
        """Nothing to do: the tensors are the caller's."""

    def abort(self) -> None:
        """Nothing to keep."""

    def __enter__(self) -> FilledSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abort()


def _array(tensor: Tensor | Array) -> Array:
    """The bytes of a tensor or array, in its own memory."""
    if isinstance(tensor, numpy.ndarray):
        return tensor.reshape(-1).view(numpy.uint8)
    found: Array = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return found
