"""A plan within a budget of what it reads: the catalogue found, blocks chosen, sources wrapped, the error measured.

Owns the way from a request to a plan that reads less. The choice itself is made in `plan.budget`, the error is measured
in `api.budget_sample`.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from cuvee.api.budget_sample import SHARE, all_sums, measured, sampled
from cuvee.api.budgeted_plan import Budgeted, Sample
from cuvee.api.sparing import Spared, add, runner_of, spared
from cuvee.core.digests import canonical_json
from cuvee.core.names import printable
from cuvee.engine.events import Finished, Listener, peak_memory
from cuvee.engine.fused.recognise import extents_of
from cuvee.engine.options import RunOptions, parse_bytes
from cuvee.engine.tables import Tables
from cuvee.errors import Diagnostic, PlanError, UsageError
from cuvee.plan.budget import Budget, Choice, Thinned, choose, in_pages
from cuvee.plan.explain import size
from cuvee.plan.joined import Unbounded, joined
from cuvee.plan.nodes import Apply, walk
from cuvee.plan.plan import Opened, Plan
from cuvee.plan.sharing import wrapped
from cuvee.sources.catalogue import Catalogue, bring, catalogue, catalogued
from cuvee.sources.open import open_source
from cuvee.sources.source import Source

if TYPE_CHECKING:
    from cuvee.sinks.sink import Staging

# Of what may be read, what is kept for measuring the error: pieces of sums are small, whole tensors are not.
_PIECES, _TENSORS = 0.004, 0.1
_MOST = 0.0005  # of all bytes of the experts, the most that pieces take


def parse_budget(text: str | None, deviation: float | None, total: int) -> Budget:
    """`25%` or a size (of all bytes of the experts), and a largest relative error; UsageError for anything else."""
    if deviation is not None and not 0 <= deviation < 1:
        raise UsageError("CV-U201", f"`--max-deviation` must be at least 0 and below 1, got `{deviation}`")
    if text is None:
        return Budget(deviation=deviation)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", text)
    if re.fullmatch(r"[\s\d.]*", text):  # 0.5 and 25 would be bytes, which nobody means
        raise UsageError(
            "CV-U201",
            f"`--read-budget {printable(text)}` says neither per cent nor bytes",
            hint="write a share, such as `25%`, or a size, such as `8GB`",
        )
    share = float(match[1]) / 100 if match else parse_bytes(text) / max(total, 1)
    if match and share > 1:
        raise UsageError("CV-U201", f"`--read-budget` must be at most 100%, got `{printable(text)}`")
    return Budget(share=share, deviation=deviation)


def make_catalogue(experts: list[str], base: str, *, anchor: Path, offline: bool) -> dict[str, Any]:
    """Read experts and base once and keep what a budget needs; JSON facts about what was found."""
    opened: list[Source] = []
    try:
        opened.extend(open_source(name, anchor=anchor, offline=offline) for name in (base, *experts))
        bring(opened)
        found = catalogue(opened[0], opened[1:])
        rows = []
        for place, expert in enumerate(opened[1:]):
            blocks = sum(s.same.shape[1] for s in found.tensors.values())
            same = sum(int(s.same[place].sum()) for s in found.tensors.values())
            norm = sum(float(s.gram[:, place, place].sum()) for s in found.tensors.values()) ** 0.5
            rows.append({"expert": expert.label, "blocks": blocks, "identical": same, "norm": norm})
        return {"base": base, "tensors": len(found.tensors), "experts": rows}
    finally:
        for source in opened:
            source.close()


def budgeted(
    plan: Plan, read_budget: str | None, max_deviation: float | None, options: RunOptions | None = None
) -> Budgeted:
    """The plan with the blocks left out that the budget allows; PlanError when no bound can be given.

    What a catalogue proves needless is left out first, and is all where that keeps `read_budget`.
    """
    chosen = options or RunOptions.from_settings()
    if plan.recipe.output.adapter is not None or plan.recipe.output.package is not None:
        raise _refused(plan, "its output is no model, but an adapter or a package made from one")
    lossless = spared(plan, chosen)
    base, found = _base_of(plan, lossless, read_budget, max_deviation)
    if found is None:
        return _without_loss(plan, base, lossless)
    experts = [key for key in plan.sources if key != base]
    budget = parse_budget(read_budget, max_deviation, total := in_pages(plan, experts))
    tables = lossless.tables
    thinned = _thinned(plan, tables)
    part, most = (_PIECES, _MOST) if all_sums(plan) else (_TENSORS, 1 / SHARE)
    if budget.share is not None:  # measuring the error is part of what may be read
        budget = replace(budget, aside=min(budget.share * part, most))
    choice = choose(plan, base, experts, found, budget, thinned, lossless.stand_ins)
    if not choice.bounded:
        reason = (
            "its thresholds do not follow from the catalogue (too many different magnitudes, or no kernels)"
        )
        raise _refused(plan, reason)
    _check(choice, budget)
    room = most * total if budget.share is None else min(budget.share * total - choice.read, most * total)
    sample = sampled(plan, choice, int(room)) if choice.bound else Sample()
    if choice.bound and choice.read + sample.nbytes >= _pages_without(plan, base, lossless)[1]:
        return _without_loss(plan, base, lossless)  # nothing is spared, so nothing need be lost
    stand_ins: dict[str, dict[str, dict[int, str]]] = {
        key: {name: dict.fromkeys(blocks, base) for name, blocks in tensors.items()}
        for key, tensors in choice.spared.items()
    }
    add(stand_ins, lossless.stand_ins)
    if tables is not None:
        tables = replace(tables, needed=frozenset(thinned))
    less = _noted(wrapped(plan, stand_ins, facts := _facts(choice)), choice, sample)
    _check_reach(less, thinned)
    return Budgeted(less, choice, plan, tables, lossless.prints, sample, stand_ins, facts)


def _check_reach(plan: Plan, thinned: Mapping[int, Thinned]) -> None:
    """PlanError where the kernels, which alone know the thresholds, do not read what is left of the experts."""
    sources = {key: opened.source for key, opened in plan.sources.items()}
    for tensor in plan.tensors:
        asked = any(id(node) in thinned for node in walk(tensor.node))
        if asked and extents_of(tensor.node, sources) is None:
            reason = "its thresholds are known to the compiled kernels, which read no packed expert in part"
            raise _refused(plan, reason)


def _thinned(plan: Plan, tables: Tables | None) -> dict[int, Thinned]:
    """What is known of every threshold, by the identity of its stage."""
    found: dict[int, Thinned] = {}
    for tensor in plan.tensors if tables is not None else ():
        for node in walk(tensor.node):
            if tables is not None and isinstance(node, Apply) and (left := tables.left(node)) is not None:
                found[id(node)] = left
    return found


def _check(choice: Choice, budget: Budget) -> None:
    if budget.share is not None and choice.read > budget.share * choice.total:
        raise PlanError(
            "CV-P202",
            f"the budget allows {size(int(budget.share * choice.total))} of the experts, and {size(choice.read)} have "
            "to be read whole",
            hint="raise `--read-budget`; only blocks whose part in the result can be bounded are left out",
        )
    if budget.deviation is not None and choice.bound > budget.deviation:
        raise PlanError(
            "CV-P202",
            f"the budget leaves an error of {choice.bound:.2g} of the merged update, and `--max-deviation` allows "
            f"{budget.deviation:g}",
            hint="raise `--read-budget` or `--max-deviation`",
        )


def _ground(plan: Plan) -> str:
    """The source that is no expert: the recipe's base, else the first."""
    named = plan.recipe.base
    return named if named is not None and named in plan.sources else next(iter(plan.sources))


def _without_loss(plan: Plan, base: str, lossless: Spared) -> Budgeted:
    """Nothing but what changes no byte is left out."""
    total, read = _pages_without(plan, base, lossless)
    choice = Choice({}, lossless.nbytes, 0.0, 0.0, total, read)
    return Budgeted(
        lossless.plan, choice, plan, lossless.tables, lossless.prints, stand_ins=lossless.stand_ins
    )


def _pages_without(plan: Plan, base: str, lossless: Spared) -> tuple[int, int]:
    """Bytes of the pages of all experts, and of those that are read when nothing is lost."""
    experts = [key for key in plan.sources if key != base]
    return in_pages(plan, experts), in_pages(plan, experts, lossless.stand_ins)


def _base_of(
    plan: Plan, lossless: Spared, read_budget: str | None, max_deviation: float | None
) -> tuple[str, Catalogue | None]:
    """The source that task vectors are taken from, and its catalogue with all others; None for the latter where no
    error can be bounded, but what changes no byte keeps the budget already.
    """
    bases: set[str] = set()
    why: list[str] = []
    for tensor in plan.tensors:
        if tensor.action == "merged":
            try:
                ground = joined(tensor).base
                bases |= set(plan.sources) if ground is None else {ground[0]}
            except Unbounded as error:
                why.append(str(error))
    if not bases:
        base = _ground(plan)
        total, read = _pages_without(plan, base, lossless)
        share = parse_budget(read_budget, max_deviation, total).share
        if max_deviation is None and share is not None and read <= share * total:
            return base, None
        raise _refused(plan, why[0] if why else "nothing is merged")
    for base in (key for key in plan.sources if key in bases):
        sources = [opened.source for key, opened in plan.sources.items() if key != base]
        found = catalogued(plan.sources[base].source, sources)
        if found is not None:
            return base, found
    base = next(key for key in plan.sources if key in bases)
    words = " ".join(_word(opened) for key, opened in plan.sources.items() if key != base)
    raise PlanError(
        "CV-P201",
        "there is no catalogue of these experts as they are now, and a budget is chosen by it",
        hint=f"make it with `cuvee catalog {words} --base {_word(plan.sources[base])}`",
    )


def _word(opened: Opened) -> str:
    """A source as one word of a command line."""
    return shlex.quote(printable(opened.source.label))


def _refused(plan: Plan, reason: str) -> PlanError:
    return PlanError(
        "CV-P200",
        f"no error of `{printable(plan.method_label)}` can be told before reading: {reason}",
        hint="`cuvee pack` reads less and loses nothing; so does a merge with a catalogue, without these options",
    )


def rounding_of(plan: Plan) -> str:
    """The types that results are rounded to on the way and at the end."""
    kinds = {kind.name for t in plan.tensors if t.action == "merged" for kind in (t.compute, t.meta.dtype)}
    return " and ".join(sorted(kinds))


def _facts(choice: Choice) -> dict[str, dict[str, Any]]:
    """What the identity of each source tells of which something is lost."""
    facts = {
        "read": choice.read,
        "of": choice.total,
        "identical": choice.identical,
        "bound": str(choice.bound),
    }
    blocks = {key: {n: sorted(b) for n, b in lost.items()} for key, lost in choice.spared.items() if lost}
    return {key: {**facts, "blocks": blake3(canonical_json(b)).hexdigest()} for key, b in blocks.items()}


def _noted(plan: Plan, choice: Choice, sample: Sample) -> Plan:
    message = (
        f"{size(choice.read + sample.nbytes)} of {size(choice.total)} of the experts are read "
        f"({size(sample.nbytes)} to measure the error, {size(choice.identical)} change nothing); besides rounding, "
        f"the error is at most {_above(choice.bound)} of the merged update, and with all rounding to "
        f"{rounding_of(plan)} at most {_above(choice.rounded)}"
    )
    if choice.bound < 1:
        note = Diagnostic("CV-P203", message, severity="note")
    else:
        hint = "the whole update may be lost: raise `--read-budget`, or name a `--max-deviation`"
        note = Diagnostic("CV-P203", message, hint=hint, severity="warning")
    return replace(plan, notes=(*plan.notes, note))


def _above(bound: float) -> str:
    """Two digits of a bound, rounded up."""
    if not 0 < bound < math.inf:
        return f"{bound:.2g}"
    step = 10.0 ** (math.floor(math.log10(bound)) - 1)
    return f"{math.ceil(bound / step - 1e-9) * step:.2g}"


def running(asked: Budgeted, inner: Callable[..., Finished] | None = None) -> Any:
    """What runs the plan (`inner`; None: this machine) and adds the measured error to the figures of its manifest."""
    inner = inner or runner_of(asked.tables, asked.prints)

    def runner(plan: Plan, session: Staging, options: RunOptions, listener: Listener) -> Finished:
        finished = inner(plan, session, options, listener)
        choice = asked.choice
        read = float(choice.read + asked.sample.nbytes)
        row = {"read": read, "of": float(choice.total), "lost": float(choice.lost), **measured(asked)}
        for key, value in (("bound", choice.bound), ("rounded", choice.rounded)):
            row |= {key: value} if value != float("inf") else {}
        figures = {**finished.figures, "read_budget": [row]}
        return replace(finished, figures=figures, peak_memory=peak_memory())

    return runner


__all__ = ["Budgeted", "budgeted", "make_catalogue", "measured", "parse_budget", "running"]
