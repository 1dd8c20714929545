"""Plan the output's vocabulary: its tokens, its rows, and for each model where every row comes from.

The rules are those of MergeKit 0.1.5 with its accidents mended (ids depend on the recipe's order only; ids
with gaps, tokens beyond an embedding and models without a tokenizer work). Plain Python throughout: no tensor
is touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cuvee.bundle.vocabulary.alignment import Alignment
from cuvee.bundle.vocabulary.rows import RowTable, Segment
from cuvee.bundle.vocabulary.tokens import AddedToken, Vocabulary, with_added
from cuvee.bundle.vocabulary.union import beyond_rows, union_of, with_roles_kept, within_rows
from cuvee.core.names import did_you_mean, printable
from cuvee.errors import Diagnostic, PlanError, SourceError, Where
from cuvee.recipe.model import TokenRule
from cuvee.recipe.model import Vocabulary as TokenizerSpec


@dataclass(frozen=True)
class VocabularyPlan:
    """The output's vocabulary and what is needed to align any set of the models with it.

    `rows` is the length of the output's vocabulary axis (tokens, kept padding, then padding to the multiple),
    `donor` the model whose tokenizer files the output's are made from, `original` that model's vocabulary as
    it was.
    """

    output: Vocabulary
    rows: int
    donor: str
    original: Vocabulary
    base: str | None
    vocabularies: Mapping[str, Vocabulary]
    embedding_rows: Mapping[str, int]
    rules: Mapping[str, TokenRule]
    kept: int  # token rows plus kept padding; [kept, rows) is new padding
    own: Mapping[str, Sequence[int]]  # for each output row up to `kept` the model's row, or −1
    diagnostics: tuple[Diagnostic, ...] = ()

    @property
    def edited(self) -> bool:
        """Whether the output's tokenizer differs from the donor's, so that its files must be edited."""
        return self.output.ids != self.original.ids or self.output.added != self.original.added

    def tables(self, models: Sequence[str] | None = None, base: str | None = None) -> dict[str, RowTable]:
        """A row table for each model that has the tensor; all models of the recipe when none are named.

        Fill rules look only at the models given, as a tensor may be missing from some, or belong to one
        slice. `base` is the base of that slice; without it, the recipe's.
        """
        names = list(self.vocabularies) if models is None else list(models)
        return Alignment(self, names, base or self.base).tables()


def plan_vocabulary(
    models: Mapping[str, Vocabulary | None],
    embedding_rows: Mapping[str, int],
    base: str | None,
    spec: TokenizerSpec,
    *,
    keep_padding: bool = False,
) -> VocabularyPlan:
    """The vocabulary plan for models in recipe order (base first, if there is one).

    Args:
        models: vocabulary of each model; None where it has no tokenizer (the base's is then taken for it).
        embedding_rows: rows of each model's input embedding.
        base: the recipe's base model, or None. Without one the first model gives the files, and no row is
            preferred.
        spec: `union`, `base` or a model; rules for single tokens; padding.
        keep_padding: keep rows beyond the vocabulary that the donor's embedding has (MergeKit trims them).

    Raises:
        PlanError: CV-T005 to CV-T009, all that are found. SourceError: CV-T001 the donor has no tokenizer.
    """
    first = base if base is not None else next(iter(models))
    known, notes = _assumed(models, first)
    donor = _donor(spec, known, first)
    asked_by_name = donor == first and spec.source not in ("union", "base")
    take = beyond_rows if asked_by_name else within_rows
    output, more = take(donor, known[donor], embedding_rows[donor])
    notes += more
    if spec.source == "union":
        ordered = {donor: output, **{m: v for m, v in known.items() if m != donor}}
        output, more = union_of(with_roles_kept(output, known[donor]), ordered, embedding_rows)
        notes += more
    output = with_added(output, [AddedToken(token, -1) for token in spec.tokens if token not in output.ids])
    _refuse_shared_ids(donor, known[donor], output)
    kept = max(output.size, embedding_rows[donor]) if keep_padding else output.size
    plan = VocabularyPlan(
        output=output,
        rows=_padded(kept, spec.pad_to_multiple_of),
        donor=donor,
        original=known[donor],
        base=base,
        vocabularies=known,
        embedding_rows=embedding_rows,
        rules=spec.tokens,
        kept=kept,
        own={m: _own_rows(output, v, embedding_rows[m], kept) for m, v in known.items()},
    )
    notes += _trimmed(plan) + Alignment(plan, list(known), base).check()
    return replace(plan, diagnostics=tuple(notes))


def truncated_tables(embedding_rows: Mapping[str, int]) -> tuple[dict[str, RowTable], list[Diagnostic]]:
    """Tables that cut every model to the rows all of them have, with a warning when that loses any.

    What `--unsafe-truncate-embeddings` asks for: it trusts that the ids mean the same tokens. The output has
    as many rows as the smallest model, which is also what its configuration must say.
    """
    rows = min(embedding_rows.values())
    tables = {m: RowTable(m, n, (Segment(0, rows, "own"),)) for m, n in embedding_rows.items()}
    if all(n == rows for n in embedding_rows.values()):
        return tables, []
    sizes = ", ".join(f"`{printable(m)}` {n}" for m, n in embedding_rows.items())
    return tables, [
        Diagnostic(
            "CV-T015",
            f"embeddings are cut to the {rows} rows that all models have ({sizes}); this trusts that ids "
            "mean the same tokens in each",
            hint="`tokenizer: {source: base}` aligns them by token instead",
            severity="warning",
        )
    ]


def _assumed(
    models: Mapping[str, Vocabulary | None], first: str
) -> tuple[dict[str, Vocabulary], list[Diagnostic]]:
    default = models.get(first)
    if default is None:
        raise SourceError(
            "CV-T001", f"`{printable(first)}` has no tokenizer to start from", where=Where(source=first)
        )
    missing = [m for m, v in models.items() if v is None]
    notes = [
        Diagnostic(
            "CV-T014",
            f"`{printable(m)}` has no tokenizer, the one of `{printable(first)}` is taken for it",
            Where(source=m),
            severity="note",
        )
        for m in missing
    ]
    return {m: default if v is None else v for m, v in models.items()}, notes


def _donor(spec: TokenizerSpec, known: Mapping[str, Vocabulary], first: str) -> str:
    if spec.source in ("union", "base"):
        return first
    if spec.source not in known:
        raise PlanError(
            "CV-T006",
            f"the tokenizer is to come from `{printable(spec.source)}`, which is not one of the models",
            where=spec.where,
            hint=did_you_mean(spec.source, [*known, "union", "base"]),
        )
    return str(spec.source)


def _refuse_shared_ids(donor: str, before: Vocabulary, after: Vocabulary) -> None:
    """Where ids have gaps, loaders give new tokens ids that are taken; such a vocabulary cannot grow."""
    taken = before.by_id()
    for token, row in after.ids.items():
        if token not in before.ids and row in taken and after.ids.get(taken[row]) == row:
            raise PlanError(
                "CV-T009",
                f"the tokenizer of `{printable(donor)}` cannot take the new token `{printable(token, 40)}`: "
                f"its ids have gaps, and it would get id {row}, which `{printable(taken[row], 40)}` has",
                where=Where(source=donor),
                hint="take the tokenizer of another model, or `tokenizer: {source: base}` without new tokens",
            )


def _padded(rows: int, multiple: int | None) -> int:
    return rows if not multiple else -(-rows // multiple) * multiple


def _own_rows(output: Vocabulary, own: Vocabulary, rows: int, kept: int) -> Sequence[int]:
    """For each output row the model's row of the same token, −1 where it has none."""
    if own.ids == output.ids and kept <= rows:
        return range(kept)
    found = [-1] * kept
    for token, row in own.ids.items():
        place = output.ids.get(token)
        if place is not None and row < rows and found[place] < 0:
            found[place] = row
    taken = set(output.ids.values())
    used = set(own.ids.values())
    for place in range(kept):  # rows no token has: unused in both, so the model's own stays
        if place not in taken and place not in used and place < rows:
            found[place] = place
    return found


def _trimmed(plan: VocabularyPlan) -> list[Diagnostic]:
    before = plan.embedding_rows[plan.donor]
    if plan.rows >= before:
        return []
    multiple = min(before & -before, 128)
    return [
        Diagnostic(
            "CV-T010",
            f"the padding of `{printable(plan.donor)}` is trimmed: {plan.rows} rows instead of {before}",
            Where(source=plan.donor),
            hint=f"`pad_to_multiple_of: {multiple}` under `tokenizer` pads again" if multiple > 1 else None,
            severity="note",
        )
    ]
