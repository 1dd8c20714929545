"""One checkpoint, opened: what it holds, without reading a weight."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from cuvee.families import Family, identify
from cuvee.recipe.model import InMemory, Reference
from cuvee.sources.open import open_source
from cuvee.sources.source import Source, meta_of, stored_form

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Named tensors plus metadata; may be given to `cuvee.merge`."""

    source: Source
    family: Family
    spec: Reference | InMemory

    @classmethod
    def opened(cls, reference: Any, *, anchor: Path | None = None, offline: bool = False) -> Checkpoint:
        """Open a checkpoint; only headers are read."""
        if isinstance(reference, Checkpoint):
            return reference
        written = str(reference) if isinstance(reference, Path) else reference
        source = open_source(written, anchor=anchor or Path(), offline=offline)
        shapes = {name: meta.shape for name, meta in source.tensors.items()}
        spec = Reference(written) if isinstance(written, str) else InMemory(written)
        return cls(source, identify(source.config, shapes), spec)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release open files."""
        self.source.close()

    def tensor(self, name: str) -> Tensor:
        """One tensor, read whole, in its own shape; MissingTensor where there is none of that name."""
        meta = meta_of(self.source.tensors, name, self.source.label)
        return self.source.read(name).reshape(meta.shape)

    def summary(self) -> dict[str, Any]:
        """What it holds, as plain data (schema `cuvee.inspect/1`)."""
        tensors = self.source.tensors
        stored = {name: stored_form(self.source, name) for name in tensors}
        layers = {m: self.family.layer_count(tensors, m) for m in self.family.modules}
        return {
            "schema": "cuvee.inspect/1",
            "source": self.source.label,
            "identity": self.source.identity(),
            "family": {"name": self.family.name, "known": self.family.known, "layers": layers},
            "parameters": sum(m.numel for m in tensors.values()),
            "bytes": sum(m.nbytes for m in tensors.values()),
            "stored_bytes": sum(form.nbytes for form in stored.values()),
            "stored_types": dict(Counter(form.kind for form in stored.values())),
            "overlays": [asdict(facts) for facts in getattr(self.source, "overlays", ())],
            "dtypes": dict(Counter(m.dtype.name for m in tensors.values())),
            "tensors": [
                {
                    "name": m.name,
                    "dtype": m.dtype.name,
                    "stored": stored[m.name].kind,
                    "shape": list(m.shape),
                    "role": self.family.place(m.name).role,
                    "layer": self.family.place(m.name).layer,
                }
                for m in tensors.values()
            ],
            "files": self.source.files(),
            "notes": [n.as_dict() for n in self.source.notes]
            + ([{"severity": "note", "message": self.family.note}] if self.family.note else []),
        }
