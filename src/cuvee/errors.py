"""What can go wrong, as data.

Every failure a person can act on is a `Diagnostic` (code, message, place, hint), carried by one exception tree:

    CuveeError                      exit 1   you can fix it
    ├── UsageError                  exit 2   bad command line
    ├── RecipeError                 exit 2   the recipe is wrong (all its mistakes at once)
    ├── PlanError                   exit 2   the recipe is well formed, but does not fit its checkpoints
    ├── SourceError                 exit 1   a checkpoint cannot be read
    │   ├── MissingTensor
    │   ├── CorruptFile
    │   └── UnsafeFile
    ├── RunError                    exit 1   the merge started and had to stop
    │   ├── OutOfSpace
    │   ├── NonFinite
    │   ├── OutputBusy
    │   └── Interrupted             exit 130 or 143
    ├── EvaluationError             exit 1   a score cannot be had
    │   └── LeakError                        test data was asked for where a method is being chosen
    └── VerifyError                 exit 3   the answer is "no"

Codes are listed, with title and remedy, in `codes.toml` beside this file. This module must not import any other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Where:
    """A place a diagnostic points at: a file, a position in it, a logical path, a tensor."""

    file: str | None = None
    line: int | None = None  # 1-based
    column: int | None = None  # 1-based
    width: int = 1  # columns to underline
    path: str | None = None  # "models.0.parameters.density"
    tensor: str | None = None
    source: str | None = None
    text: str | None = None  # the source line itself, for the caret


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding: a code from `codes.toml`, one sentence without a full stop, a place, at most one hint."""

    code: str
    message: str
    where: Where | None = None
    hint: str | None = None
    severity: Severity = "error"

    def as_dict(self) -> dict[str, Any]:
        """The JSON form used by `--json`; empty fields are left out."""
        out: dict[str, Any] = {"code": self.code, "severity": self.severity, "message": self.message}
        if self.where is not None:
            fields = {k: getattr(self.where, k) for k in Where.__slots__}
            out["where"] = {k: v for k, v in fields.items() if v is not None and k != "width"}
        if self.hint is not None:
            out["hint"] = self.hint
        return out


class CuveeError(Exception):
    """Base of every error that a person can act on; holds one or more diagnostics."""

    exit_code = 1

    def __init__(
        self,
        code: str,
        message: str,
        *,
        where: Where | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.diagnostics: tuple[Diagnostic, ...] = (Diagnostic(code, message, where, hint),)

    @classmethod
    def collected(cls, diagnostics: list[Diagnostic]) -> CuveeError:
        """One error that carries all findings of a phase (at least one)."""
        first = diagnostics[0]
        error = cls(first.code, first.message, where=first.where, hint=first.hint)
        error.diagnostics = tuple(diagnostics)
        return error

    def at(self, **place: Any) -> CuveeError:
        """The same error with missing parts of its place filled in (context is added once, at the door)."""

        def filled(d: Diagnostic) -> Diagnostic:
            old = d.where or Where()
            new = {k: v for k, v in place.items() if getattr(old, k) is None}
            return replace(d, where=replace(old, **new))

        self.diagnostics = tuple(filled(d) for d in self.diagnostics)
        return self

    def __str__(self) -> str:
        return "\n".join(
            f"{d.code}: {d.message}" + (f"\nhint: {d.hint}" if d.hint else "") for d in self.diagnostics
        )


class UsageError(CuveeError):
    """The command line or a Python call is wrong."""

    exit_code = 2


class RecipeError(CuveeError):
    """The recipe is wrong; carries every mistake found."""

    exit_code = 2


class PlanError(CuveeError):
    """The recipe does not fit its checkpoints; nothing was read but headers."""

    exit_code = 2


class SourceError(CuveeError):
    """A checkpoint cannot be used."""


class MissingTensor(SourceError):
    """A tensor that is needed is not in the checkpoint."""


class CorruptFile(SourceError):
    """A file contradicts itself or its format."""


class UnsafeFile(SourceError):
    """A file asks for something that data must not do (run code, leave its folder)."""


class RunError(CuveeError):
    """The merge started and had to stop; what was done is kept."""


class OutOfSpace(RunError):
    """The disk is full or a quota is reached."""


class NonFinite(RunError):
    """NaN or infinity in an input or a result."""


class OutputBusy(RunError):
    """Another run holds the output, or it exists already."""


class Interrupted(RunError):
    """Stopped by a signal; resumable."""

    exit_code = 130


class EvaluationError(CuveeError):
    """A task, a track or a model that is scored contradicts itself."""


class LeakError(EvaluationError):
    """Test items were asked for outside of scoring."""


class VerifyError(CuveeError):
    """An artefact is not what its manifest says."""

    exit_code = 3
