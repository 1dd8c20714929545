"""Tensors that no method merges: whole numbers, truth values, complex numbers. Whose is copied, what is refused.

Owns those rules and what is told of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from cuvee.core.names import printable
from cuvee.errors import Diagnostic
from cuvee.plan.arrangement import Target
from cuvee.plan.feeds import Fed
from cuvee.plan.plan import OutputTensor


def kinds_differ(target: Target, fed: Fed) -> Diagnostic | None:
    """What is wrong where one model has numbers with a fraction under the name and another has none.

    Buffers are exempt: positions, counters and masks are whole in any type, and some programs store them as floats.
    """
    if target.place.role == "buffer" or not any(m.dtype.is_float for m in fed.metas):
        return None
    kinds = {f.input.source: m.dtype.name for f, m in zip(fed.feeds, fed.metas, strict=True)}
    shown = ", ".join(f"`{printable(name)}` {kind}" for name, kind in kinds.items())
    return Diagnostic(
        "CV-P039",
        f"`{printable(target.name)}` is of numbers that cannot be merged with each other: {shown}",
        target.slice.where,
        hint="a model was damaged or quantised; leave it out, or convert the tensor to the others' type",
    )


def copied_of(fed: Fed) -> int:
    """The input that is copied: the base or the first, unless that one holds floats."""
    first = fed.base or 0
    if not fed.metas[first].dtype.is_float:
        return first
    return [meta.dtype.is_float for meta in fed.metas].index(False)


def integers_copied(tensors: Sequence[OutputTensor]) -> list[Diagnostic]:
    """Notes about all tensors of whole numbers and truth values, and of complex numbers, which no method merges."""
    copied = [t.meta for t in tensors if not t.meta.dtype.is_float]
    out = []
    for kind, is_complex in (("whole", False), ("complex", True)):
        names = [meta.name for meta in copied if (meta.dtype.family == "complex") == is_complex]
        some = ", ".join(f"`{printable(name)}`" for name in names[:3])
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        what = (
            f"{len(names)} tensors of {kind} numbers are"
            if len(names) > 1
            else f"1 tensor of {kind} numbers is"
        )
        note = Diagnostic("CV-P101", f"{what} copied, not merged: {some}{more}", severity="note")
        out += [note] if names else []
    return out
