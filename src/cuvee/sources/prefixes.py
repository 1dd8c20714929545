"""Wrappers leave prefixes on tensor names; this strips them.

The rule: `_orig_mod.` (torch.compile), `module.` (data parallel) and `base_model.model.` (PEFT) are
stripped when every float tensor of the checkpoint carries them, again and again until none is left. Other
tensors that carry the prefix lose it too; those that do not keep their name. Two tensors that would get one
name are an error. Must not know of families or files.
"""

from __future__ import annotations

from collections.abc import Mapping

from cuvee.core.names import printable
from cuvee.core.tensors import TensorMeta
from cuvee.errors import CorruptFile, Diagnostic, Where
from cuvee.sources.source import note

PREFIXES = ("_orig_mod.", "module.", "base_model.model.")


def strip_prefixes(
    tensors: Mapping[str, TensorMeta], label: str
) -> tuple[dict[str, str], tuple[Diagnostic, ...]]:
    """Names to use → names in the checkpoint, and a note when they differ; CorruptFile on a collision."""
    stripped = _wrappers({name for name, meta in tensors.items() if meta.dtype.is_float})
    if not stripped:
        return {name: name for name in tensors}, ()
    prefix = "".join(stripped)
    names: dict[str, str] = {}
    for stored in tensors:
        name = stored.removeprefix(prefix)
        if not name or name in names:
            raise CorruptFile(
                "CV-S042",
                f"without the prefix `{prefix}`, `{printable(stored)}` has the name of another tensor",
                where=Where(source=label, tensor=printable(stored)),
                hint="rename one of the two tensors before merging",
            )
        names[name] = stored
    return names, (note("CV-S043", f"the prefix `{prefix}` is left off all tensor names", label),)


def _wrappers(names: set[str]) -> list[str]:
    """The prefixes that all names carry, outermost first."""
    found: list[str] = []
    while names:
        prefix = next((p for p in PREFIXES if all(n.startswith(p) for n in names)), None)
        if prefix is None:
            break
        found.append(prefix)
        names = {n.removeprefix(prefix) for n in names}
    return found
