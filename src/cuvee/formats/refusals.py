"""How a reader says no: one constructor per kind of refusal, so that every error names its file and tensor.

Owns the wording of limits and the escaping of untrusted names; knows nothing about any format.
"""

from __future__ import annotations

from pathlib import Path

from cuvee.core.names import printable
from cuvee.errors import CorruptFile, SourceError, UnsafeFile, Where


def place(path: Path, tensor: str | None = None) -> Where:
    """Where a finding lies; the names are made safe to print."""
    return Where(file=printable(str(path), 1000), tensor=None if tensor is None else printable(tensor))


def corrupt(
    code: str, path: Path, message: str, *, tensor: str | None = None, hint: str | None = None
) -> CorruptFile:
    """The file contradicts itself or its format."""
    return CorruptFile(code, message, where=place(path, tensor), hint=hint)


def unsafe(code: str, path: Path, message: str, *, hint: str | None = None) -> UnsafeFile:
    """The file asks for something that data must not do."""
    return UnsafeFile(code, message, where=place(path), hint=hint)


def unusable(
    code: str, path: Path, message: str, *, tensor: str | None = None, hint: str | None = None
) -> SourceError:
    """The file may be well formed, but cannot serve as a checkpoint here."""
    return SourceError(code, message, where=place(path, tensor), hint=hint)


def over_limit(path: Path, what: str, found: int, cap: int, *, tensor: str | None = None) -> CorruptFile:
    """The file asks for more than the table of limits allows."""
    return corrupt(
        "CV-S053",
        path,
        f"the {what} is {found:,}, the limit is {cap:,}",
        tensor=tensor,
        hint="if you trust this file, raise the limit",
    )


def quoted(text: str, limit: int = 60) -> str:
    """Untrusted text between backticks, escaped and cut."""
    return f"`{printable(text, limit)}`"
