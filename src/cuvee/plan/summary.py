"""A plan on one screen: recipe, sources, output, work, cost, notes.

Must not know how any of it is computed; what each tensor is made of is in `explain.py`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cuvee.core.grouping import grouped
from cuvee.core.names import printable
from cuvee.errors import Diagnostic
from cuvee.plan.cost import Cost, Outlook, cost
from cuvee.plan.plan import Opened, Plan
from cuvee.recipe.settings import Resolved
from cuvee.sources.adapted import OverlayFacts
from cuvee.sources.source import stored_form


def size(count: float) -> str:
    """Bytes in the unit that fits: `16.1 GB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """A time in the unit that fits: `under 1 s`, `about 3 min`."""
    if seconds < 1:
        return "under 1 s"
    for limit, unit, length in ((90, "s", 1), (5400, "min", 60), (math.inf, "h", 3600)):
        if seconds < limit:
            return f"about {seconds / length:.0f} {unit}"
    return "for ever"


def explain_text(plan: Plan, outlook: Outlook | None = None, *, notes: bool = True) -> str:
    """The summary: recipe, sources, output, work, cost (with `outlook` also memory and time), notes."""
    return "\n".join(_lines(plan, outlook, notes))


def _lines(plan: Plan, outlook: Outlook | None, notes: bool = True) -> Iterator[str]:
    yield f"recipe   {_title(plan)}   method  {', '.join([plan.method_label, *_settings(plan)])}"
    for i, (key, opened) in enumerate(plan.sources.items()):
        label = "base" if key == plan.recipe.base else printable(key, 32)
        yield f"{'sources' if i == 0 else '       '}  {label:<12} {_source(opened)}"
    files = len(plan.layout.files)
    kinds = "/".join(sorted({t.meta.dtype.name for t in plan.tensors}))
    compute = "/".join(sorted({t.compute.name for t in plan.tensors if t.action == "merged"})) or "none"
    yield (
        f"output   {len(plan.tensors)} tensors, {size(plan.layout.total_bytes)} {kinds}, "
        f"{files} file{'s' if files > 1 else ''}   arithmetic {compute}"
    )
    if plan.recipe.output.package is not None:
        yield _package(plan)
    figures = cost(plan)
    yield (
        f"work     {figures.merged} merged · {figures.copied} copied · {figures.converted} converted"
        f" · {figures.summarised} read twice or more"
    )
    yield "cost     " + " · ".join(_costs(figures, outlook))
    if notes:
        yield from _notes(plan.notes)


def _package(plan: Plan) -> str:
    """What the package takes at most, against separate models."""
    from cuvee.plan.packages import estimate

    found = estimate(plan)
    base = " with the base" if plan.recipe.output.package and plan.recipe.output.package.include_base else ""
    total = found.shared + found.tasks + (found.base if base else 0)
    return (
        f"package  at most {size(total)}{base}: {size(found.shared)} shared, {size(found.tasks)} of single tasks   "
        f"separate models take {size(found.models)}"
    )


def _title(plan: Plan) -> str:
    """The recipe's file, or how it was given, and the start of its digest."""
    recipe = plan.recipe
    if not recipe.text:
        return printable(recipe.file or "(in Python)")
    digest = hashlib.sha256(recipe.text.encode()).hexdigest()[:8]
    return f"{printable(recipe.file or '(from the command line)')} (sha256 {digest}…)"


def _source(opened: Opened) -> str:
    """`./base   16.1 GB bfloat16   291 tensors   llama`, with the adapters that lie over it."""
    source = opened.source
    forms = [stored_form(source, name) for name in source.tensors]
    total = sum(form.nbytes for form in forms)
    kinds = "/".join(sorted({form.kind for form in forms})[:3])
    parts = [printable(source.label, 60), f"{size(total)} {kinds}", f"{len(forms)} tensors"]
    parts += [_overlay(facts) for facts in getattr(source, "overlays", ())]
    return "   ".join([*parts, opened.family.name if opened.family else ""])


def _overlay(facts: OverlayFacts) -> str:
    ranks = f"lora r={'/'.join(map(str, facts.ranks))}" if facts.ranks else "adapter"
    whole = f", {facts.replaced} replaced" if facts.replaced else ""
    return f"+ {printable(facts.name, 40)}: {ranks}, {size(facts.nbytes)} → {facts.changed} tensors changed{whole}"


def _costs(figures: Cost, outlook: Outlook | None) -> Iterator[str]:
    again = outlook.prediction.bytes_read if outlook else figures.reads
    at_most = outlook.prediction.bytes_read_at_most if outlook else None
    more = f", up to {size(at_most)} as the values have it" if at_most else ""
    passes = f" ({size(again)} with repeated passes{more})" if again > figures.reads or more else ""
    yield f"reads {size(figures.reads)}{passes}"
    yield f"writes {size(figures.writes)}"
    if outlook is None:
        whole = f" + {size(figures.largest_whole)} for the largest whole tensor"
        yield f"blocks within the budget{whole if figures.largest_whole else ''}"
        return
    yield f"peak memory up to {size(outlook.prediction.peak_memory)}"
    rate = f"{size(outlook.rates.bytes_per_second)}/s"
    how = f"the {rate} of earlier runs" if outlook.rates.measured else f"an assumed {rate}"
    yield f"{duration(outlook.prediction.seconds)} at {how}"
    if outlook.free is not None:
        yield f"free disk {size(outlook.free)}"


def _notes(found: Sequence[Diagnostic]) -> Iterator[str]:
    """Each note once, with its code, where it points at, and its hint."""
    for i, group in enumerate(grouped(found)):
        note, where = group.first, group.first.where
        line = f" ({printable(where.file or 'recipe')}:{where.line})" if where and where.line else ""
        head = "notes" if i == 0 else "     "
        yield f"{head}    {note.severity}[{note.code}]: {note.message}{line}"
        if group.others:
            yield f"         = {group.others}"
        if note.hint:
            yield f"         hint: {note.hint}"


def _settings(plan: Plan) -> list[str]:
    """The parameters that the recipe sets, each with its one value, its range over the tensors, or `varies`."""
    found: dict[str, dict[str, list[Resolved]]] = {}
    for tensor in plan.tensors:
        for name, resolved in tensor.parameters.items():
            each = {"": resolved} if isinstance(resolved, Resolved) else resolved
            for expert, one in each.items():
                found.setdefault(name, {}).setdefault(expert, []).append(one)
    out = []
    for name, experts in found.items():
        if all(one.origin == "default" for values in experts.values() for one in values):
            continue
        shown = list(dict.fromkeys(_over_tensors(values) for values in experts.values()))
        out.append(f"{name} {shown[0] if len(shown) == 1 else _each(experts)}")
    return out


def _each(experts: Mapping[str, list[Resolved]]) -> str:
    shown = [_over_tensors(values) for values in experts.values()]
    return (" / " if any(" " in one for one in shown) else "/").join(shown)


def _over_tensors(values: Sequence[Resolved]) -> str:
    """One value, `0.2…0.8 by layer` where a curve gives it, `0.3…0.6 by tensor` where rules do, else `varies`."""
    different = {one.value for one in values}
    if len(different) == 1:
        return number(values[0].value)
    numbers = [v for v in different if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if len(numbers) < len(different):
        return "varies"
    by = "layer" if all(one.origin == "curve" for one in values) else "tensor"
    return f"{number(min(numbers))}…{number(max(numbers))} by {by}"


def number(value: Any) -> str:
    """A value of a parameter as text."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def explain_html(plan: Plan, outlook: Outlook | None = None) -> str:
    """The summary for notebooks."""
    from html import escape

    rows = "".join(f"<div>{escape(line)}</div>" for line in _lines(plan, outlook))
    return f"<div style='font-family:monospace;white-space:pre-wrap'>{rows}</div>"
