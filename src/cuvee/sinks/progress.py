"""How far each tensor of a session has come, and its digest: the bookkeeping that all sinks share.

Thread-safe. Must not know where the bytes go.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from cuvee.core.digests import FileRecord, TensorHasher, bytes_digest, weight_file_digest
from cuvee.core.names import printable
from cuvee.errors import RunError, Where
from cuvee.sinks.layout import Layout

if TYPE_CHECKING:
    from typing_extensions import Buffer


class Progress:
    """Hashes each tensor's bytes as they come by and keeps the digests of finished tensors."""

    def __init__(self, layout: Layout, digests: dict[str, str] | None = None) -> None:
        self._layout = layout
        self._digests = dict(digests or {})
        self._hashers: dict[str, TensorHasher] = {}
        self._guard = threading.Lock()

    @property
    def digests(self) -> dict[str, str]:
        """Digests of the finished tensors, in the order of the layout."""
        with self._guard:
            return {name: self._digests[name] for name in self._layout.tensors if name in self._digests}

    def take(self, name: str, offset: int, data: Buffer) -> None:
        """Account for a block; ValueError when it is out of order or too long."""
        length = memoryview(data).nbytes
        with self._guard:
            if offset == 0:
                self._hashers[name] = TensorHasher()
                self._digests.pop(name, None)
            hasher = self._hashers.get(name)
        position = 0 if hasher is None else hasher.position
        if hasher is None or position != offset:
            raise ValueError(f"{name}: block at {offset}, expected {position}")
        if offset + length > self._layout.place(name).nbytes:
            raise ValueError(f"{name}: block ends at {offset + length} of {self._layout.place(name).nbytes}")
        hasher.update(data)

    def finish(self, name: str) -> str:
        """The digest of a tensor all of whose bytes came by; ValueError otherwise."""
        with self._guard:
            hasher = self._hashers.pop(name, None) or TensorHasher()
            if hasher.position != self._layout.place(name).nbytes:
                raise ValueError(f"{name}: {hasher.position} of {self._layout.place(name).nbytes} bytes came")
            digest = hasher.hexdigest()
            self._digests[name] = digest
        return digest

    def adopt(self, name: str, digest: str) -> None:
        """Take a tensor for finished that was hashed elsewhere; KeyError when the layout has no such tensor."""
        self._layout.place(name)
        with self._guard:
            self._digests[name] = digest

    def require_all(self) -> None:
        """RunError naming a tensor that is not finished."""
        missing = [name for name in self._layout.tensors if name not in self._digests]
        if missing:
            raise RunError(
                "CV-E010",
                f"the output cannot be completed: {len(missing)} of {len(self._layout.tensors)} tensors"
                f" are not written, the first is `{printable(missing[0])}`",
                where=Where(tensor=printable(missing[0])),
            )

    def records(self, side_files: dict[str, bytes]) -> dict[str, FileRecord]:
        """A record for each weight file and each side file (the index among them), by name."""
        found = {}
        for file in self._layout.files:
            digest = weight_file_digest(bytes_digest(file.header), (self._digests[n] for n in file.tensors))
            found[file.name] = FileRecord("tensors", file.size, digest, len(file.header))
        for name, content in side_files.items():
            found[name] = FileRecord("plain", len(content), bytes_digest(content))
        return dict(sorted(found.items()))
