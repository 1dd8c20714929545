"""How vocabularies are brought together in this plan: row tables for every tensor with a vocabulary axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from cuvee.bundle.vocabulary.plan import VocabularyPlan, plan_vocabulary, truncated_tables
from cuvee.bundle.vocabulary.read import read_vocabulary
from cuvee.bundle.vocabulary.rows import RowTable
from cuvee.bundle.vocabulary.tokens import Vocabulary
from cuvee.core.dtypes import DType
from cuvee.core.names import printable
from cuvee.errors import CuveeError, Diagnostic
from cuvee.families import Family
from cuvee.plan.nodes import Convert, Gather, Node
from cuvee.plan.views import View
from cuvee.recipe.model import Recipe


@dataclass(slots=True)
class Realigner:
    """Puts inputs with a vocabulary axis on the output's vocabulary; does nothing where none is asked for."""

    plan: VocabularyPlan | None = None
    truncate: bool = False
    notes: list[Diagnostic] = field(default_factory=list)
    rows: int | None = None  # of the output, when it may differ from the inputs
    sizes: Mapping[str, int] = field(
        default_factory=dict
    )  # embedding rows of every model, for a cut to the least
    keys: Mapping[str, str] = field(default_factory=dict)  # of the physical sources, by the names models have
    _told: set[str] = field(default_factory=set)

    def inputs(
        self, names: Sequence[str], nodes: Sequence[Node], axis: int, base: str | None, wide: DType
    ) -> list[Node]:
        """The nodes (one for each model named), each with the output's rows along `axis`; means are taken in `wide`."""
        if self.plan is not None:
            tables = self.plan.tables(names, self._base_among(names, base))
        elif self.truncate:
            # A head that only some models have gets as many rows as the embedding that all have.
            here = {n: node.shape[axis] for n, node in zip(names, nodes, strict=True)}
            tables, told = truncated_tables({**self.sizes, **here})
            self._tell(told)
            self.rows = min({**self.sizes, **here}.values())
        else:
            return list(nodes)
        by_name = dict(zip(names, nodes, strict=True))
        return [_gathered(name, tables[name], by_name, axis, wide) for name in names]

    def _base_among(self, names: Sequence[str], base: str | None) -> str | None:
        """The base under the name it has here: it may be listed as an expert too."""
        if base is None or base in names:
            return base
        own = self.keys.get(base)
        return next((name for name in names if own is not None and self.keys.get(name) == own), None)

    def _tell(self, notes: Sequence[Diagnostic]) -> None:
        for note in notes:
            if note.message not in self._told:
                self._told.add(note.message)
                self.notes.append(note)


def _gathered(name: str, table: RowTable, nodes: Mapping[str, Node], axis: int, wide: DType) -> Node:
    own = nodes[name]
    if table.is_identity:
        return own
    shape = tuple(table.rows if i == axis else n for i, n in enumerate(own.shape))
    others = tuple((model, Convert(nodes[model], wide)) for model in table.donors)
    return Gather(Convert(own, wide), others, table, axis, shape)


def realigner(
    recipe: Recipe, views: Mapping[str, View], family: Family, found: list[Diagnostic]
) -> Realigner:
    """The realigner a recipe asks for; problems are collected."""
    if recipe.vocabulary is None:
        cut = recipe.truncate_vocabulary
        sizes = (
            {a: n for a, v in views.items() if (n := embedding_rows(v, family)) is not None} if cut else {}
        )
        return Realigner(truncate=cut, sizes=sizes)
    ordered = sorted(views, key=lambda alias: alias != recipe.base)
    vocabularies: dict[str, Vocabulary | None] = {}
    rows: dict[str, int] = {}
    try:
        for alias in ordered:
            count = embedding_rows(views[alias], family)
            if count is None:
                continue
            rows[alias] = count
            try:
                vocabularies[alias] = read_vocabulary(views[alias])
            except CuveeError as error:
                if any(d.code == "CV-T001" for d in error.diagnostics):
                    vocabularies[alias] = None
                    continue
                raise
        if not rows:
            message = "no model has an embedding to realign, but the recipe names a tokenizer"
            found.append(Diagnostic("CV-P040", message, recipe.vocabulary.where))
            return Realigner()
        base = recipe.base if recipe.base in rows else None
        plan = plan_vocabulary(vocabularies, rows, base, recipe.vocabulary)
    except CuveeError as error:
        where = recipe.vocabulary.where
        if where is not None:
            error.at(file=where.file, line=where.line, column=where.column, path=where.path, text=where.text)
        found.extend(error.diagnostics)
        return Realigner()
    plan = replace(plan, diagnostics=(*_added(plan, recipe.vocabulary.source), *plan.diagnostics))
    keys = {alias: view.key for alias, view in views.items() if view.key is not None}
    return Realigner(plan, notes=list(plan.diagnostics), rows=plan.rows, keys=keys)


def _added(plan: VocabularyPlan, policy: str) -> list[Diagnostic]:
    """Who brings tokens that the model the files come from has not, and how long embeddings become."""
    there = plan.original.ids.keys()
    lines = []
    for model, vocabulary in plan.vocabularies.items():
        fresh = [t for t in vocabulary.ids if t not in there and t in plan.output.ids]
        if model != plan.donor and fresh:
            some = ", ".join(f"`{printable(token, 24)}`" for token in fresh[:3])
            more = f" and {len(fresh) - 3} more" if len(fresh) > 3 else ""
            plural = "" if len(fresh) == 1 else "s"
            lines.append(f"`{printable(model)}` adds {len(fresh)} token{plural} ({some}{more})")
    if not lines:
        return []
    message = (
        f"{'; '.join(lines)}: embeddings have {plan.rows} rows instead of the "
        f"{plan.embedding_rows[plan.donor]} of `{printable(plan.donor)}` (policy `{printable(policy)}`)"
    )
    return [Diagnostic("CV-P102", message, severity="note")]


def embedding_rows(view: View, family: Family) -> int | None:
    """Rows of a model's input embedding, or None when it has none."""
    axes = {name: family.place(name) for name in view.tensors}
    named = [p for p in axes.values() if p.vocabulary_axis is not None]
    named.sort(key=lambda p: p.role != "embeddings")
    for place in named:
        return view.tensors[place.name].shape[place.vocabulary_axis or 0]
    return None


def mismatch_hint(sizes: Mapping[str, int]) -> str:
    """What to do about vocabularies of different sizes."""
    shown = ", ".join(f"`{printable(n)}` {size}" for n, size in sizes.items())
    return (
        f"vocabularies differ ({shown}): set `tokenizer: {{source: union}}` or `base`, or pass "
        "`--unsafe-truncate-embeddings` to keep the common rows"
    )
