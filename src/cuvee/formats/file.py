"""What every weight file looks like to the rest of cuvee, and opening one by its first bytes and its name.

Owns the contract of readers. Must not know any format beyond how to recognise it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cuvee.core.limits import DEFAULT, Limits
from cuvee.core.tensors import Extent, TensorMeta
from cuvee.formats.bytes_file import ByteFile
from cuvee.formats.refusals import unusable

if TYPE_CHECKING:
    from torch import Tensor

_TORCH_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt"}
_LEGACY_MAGIC = bytes.fromhex("8002 8a0a 6cfc 9c46 f920 6aa8 5019 2e")  # pickle of torch's magic number


class TensorFile(Protocol):
    """An open file of named tensors; reading headers costs no torch, reading elements is thread-safe."""

    @property
    def path(self) -> Path: ...

    @property
    def format(self) -> str:
        """`safetensors`, `torch` or `gguf`."""
        ...

    @property
    def tensors(self) -> Mapping[str, TensorMeta]:
        """In file order; the dtype is the one `read` returns."""
        ...

    @property
    def metadata(self) -> Mapping[str, Any]: ...

    @property
    def encodings(self) -> Mapping[str, str]:
        """How a tensor is stored, for those that are not stored in their dtype (`Q4_K`)."""
        ...

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Elements [start, stop) in row-major order, 1-D, in fresh writable memory."""
        ...

    def extent(self, name: str) -> Extent | None:
        """The tensor's bytes in the file, if they lie there row-major and without gaps."""
        ...

    def close(self) -> None: ...


def open_file(path: Path | str, limits: Limits = DEFAULT) -> TensorFile:
    """Open a weight file of any known format.

    The first bytes decide, and the name must not contradict them. GGUF files of known architectures are shown
    under the names, shapes and row order of their Hugging Face originals (`gguf_names.hf_view`).
    """
    path = Path(path)
    found = sniff(path)
    if found == "safetensors":
        from cuvee.formats.safetensors import open_safetensors

        return open_safetensors(path, limits)
    if found == "gguf":
        from cuvee.formats.gguf import open_gguf
        from cuvee.formats.gguf_names import hf_view

        return hf_view(open_gguf(path, limits))
    from cuvee.formats.torch_file import open_torch

    return open_torch(path, limits)


def sniff(path: Path) -> str:
    """`safetensors`, `torch` or `gguf`, from the first bytes and the suffix; SourceError if neither tells."""
    raw = ByteFile(path)
    try:
        head = raw.bytes_at(0, min(raw.size, 16))
    finally:
        raw.close()
    suffix = path.suffix.lower()
    magic = _by_magic(head)
    named = "safetensors" if suffix == ".safetensors" else "gguf" if suffix == ".gguf" else None
    if suffix in _TORCH_SUFFIXES:
        named = "torch"
    if magic is None and named is None:
        raise unusable(
            "CV-S051", path, "this is not a weight file: expected safetensors, a PyTorch checkpoint or GGUF"
        )
    if magic is not None and named is not None and magic != named:
        raise unusable(
            "CV-S051",
            path,
            f"the name says {named}, the first bytes say {magic}",
            hint="give the file the suffix of its format",
        )
    return magic or named or "torch"


def _by_magic(head: bytes) -> str | None:
    if head[:4] == b"GGUF":
        return "gguf"
    if head[:4] == b"PK\x03\x04" or head.startswith(_LEGACY_MAGIC[:13]):
        return "torch"
    if len(head) > 8 and head[8:9] == b"{":
        return "safetensors"
    return None
