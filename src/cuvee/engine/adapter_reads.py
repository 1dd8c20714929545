"""How many bytes of files writing a merge as an adapter takes: changes are measured before anything is written.

Owns the count for `api.adapter_out`, tensor by tensor, and which tensors are adapted, saved whole or left out. Factors
that may not be kept until they are written are computed again, which is the most that is read. Reads no weight.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from cuvee.bundle.adapter_files import Form, form_of
from cuvee.engine.changes import is_product
from cuvee.engine.deltas import Change, changes
from cuvee.engine.options import RunOptions
from cuvee.methods.contract import rows_of
from cuvee.plan.nodes import Apply, walk
from cuvee.plan.plan import Plan
from cuvee.plan.reads import Counter, Reads, exactly
from cuvee.plan.stored import laid_below
from cuvee.recipe.model import AdapterOutput

_WORD = 8  # bytes of an entry of a factor, at most


def adapter_reads(plan: Plan, form: AdapterOutput, options: RunOptions) -> tuple[Mapping[str, Reads], Reads]:
    """What each tensor reads, and what figures that span several of them do."""
    sources = {key: opened.source for key, opened in plan.sources.items()}
    counter = Counter(sources, options.memory // max(1, options.threads))
    needed = {n.group for t in plan.tensors for n in walk(t.node) if isinstance(n, Apply) and n.group}
    groups = [[n for _, n in members] for name, members in plan.groups().items() if name in needed]
    before = sum(map(counter.group, groups), Reads())
    found: dict[str, Reads] = {tensor.meta.name: Reads() for tensor in plan.tensors}
    every = list(changes(plan))
    adapted = {c.tensor.meta.name.removesuffix(".weight") for c in every if adapted_form(c, plan) is not None}
    room = options.memory
    for change in every:
        name, shape, once = change.tensor.meta.name, change.tensor.meta.shape, _once(change, counter)
        if name.removesuffix(".weight") in adapted:
            rows = rows_of(shape)
            room -= (form.rank or min(rows)) * sum(rows) * _WORD
            found[name] = once if room >= 0 else Reads(once.least, 2 * once.most)
        else:
            saved = form.rest == "save" and savable(change, adapted)
            found[name] = once + (counter.tensor(change.tensor.node) if saved else Reads())
    return found, before


def _once(change: Change, counter: Counter) -> Reads:
    if change.delta is not None and is_product(change.delta, counter.sources):
        return exactly(sum(laid_below([change.delta], counter.sources).values()))
    return counter.tensor(change.delta or change.tensor.node)


def adapted_form(change: Change, plan: Plan) -> Form | None:
    """How an adapter holds a tensor's change, if it can; it would change a tied embedding for the input side alone."""
    meta = change.tensor.meta
    form = form_of(meta.name, meta.shape, change.tensor.role, plan.config)
    tied = form == "embedding" and bool((plan.config or {}).get("tie_word_embeddings"))
    return None if change.delta is None or tied else form


def savable(change: Change, adapted: Collection[str]) -> bool:
    """Whether PEFT can keep a copy of the tensor's module: it must not hold adapted modules, nor be a table."""
    module = change.tensor.meta.name.rpartition(".")[0]
    held = any(other.startswith(f"{module}.") for other in adapted)
    return bool(module) and change.tensor.role != "embeddings" and not held
