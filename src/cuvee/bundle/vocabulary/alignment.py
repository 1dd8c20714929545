"""Who stands in where a model has no row for a token: the fill rules, and row tables that follow them.

Works on a vocabulary plan and a set of its models (a tensor may be missing from some, or belong to one
slice). Knows nothing about files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from cuvee.bundle.vocabulary.rows import Donors, RowTable, Segment, table
from cuvee.core.names import did_you_mean, printable
from cuvee.errors import Diagnostic, PlanError, Where
from cuvee.recipe.model import TokenRule

if TYPE_CHECKING:
    from cuvee.bundle.vocabulary.plan import VocabularyPlan

_ZERO: Donors = ()


class Alignment:
    """Fill rules for one set of models: who stands in where a model has no row for a token."""

    def __init__(self, plan: VocabularyPlan, models: list[str], base: str | None) -> None:
        self.plan = plan
        self.models = models
        self.base = base if base in models else None
        self.errors: list[Diagnostic] = []
        self.orphans: list[str] = []

    def tables(self) -> dict[str, RowTable]:
        """The row tables; PlanError with every rule that cannot be followed."""
        fills = self._fills()
        if self.errors:
            raise PlanError.collected(self.errors)
        return {model: self._table(model, fills) for model in self.models}

    def check(self) -> list[Diagnostic]:
        """Warnings about tokens no model has; PlanError as `tables`."""
        self._fills()
        if self.errors:
            raise PlanError.collected(self.errors)
        return [
            Diagnostic(
                "CV-T011",
                f"the token `{printable(token, 40)}` is in no model's embedding, so that its row is zero",
                hint="give it a `source` under `tokenizer.tokens`",
                severity="warning",
            )
            for token in self.orphans
        ]

    def _fills(self) -> dict[int, Donors]:
        """Donors of each row that some model has to fill; none for zero."""
        plan = self.plan
        forced = {plan.output.ids[t] for t, rule in plan.rules.items() if rule.force}
        held = [plan.own[m] for m in self.models]
        lacking = {} if all(isinstance(h, range) for h in held) else _rows_lacking(held)
        tokens = plan.output.by_id()
        rows = sorted(row for row in forced.union(lacking) if row in tokens)
        return {row: self._donors(tokens[row], row) for row in rows}

    def _donors(self, token: str, row: int) -> Donors:
        rule = self.plan.rules.get(token)
        if rule is not None:
            return self._by_rule(token, row, rule)
        owners = tuple((m, self.plan.own[m][row]) for m in self.models if self.plan.own[m][row] >= 0)
        if not owners:
            self.orphans.append(token)
            return _ZERO
        preferred = tuple(owner for owner in owners if owner[0] == self.base)
        return preferred or owners

    def _by_rule(self, token: str, row: int, rule: TokenRule) -> Donors:
        if rule.zero:
            return _ZERO
        if rule.source is None:
            return self._refuse("CV-T007", token, "has no `source`, and not every model has a row for it")
        model = printable(rule.source)
        if rule.source not in self.models:
            return self._refuse(
                "CV-T006",
                token,
                f"is to come from `{model}`, which has no part in this tensor",
                did_you_mean(rule.source, self.models),
            )
        rows = self.plan.embedding_rows[rule.source]
        if rule.token_id is not None:
            if not 0 <= rule.token_id < rows:
                what = f"is to come from row {rule.token_id} of `{model}`, which has {rows} rows"
                return self._refuse("CV-T008", token, what)
            return ((rule.source, rule.token_id),)
        if rule.token is None:
            own = self.plan.own[rule.source][row]
        else:
            own = self.plan.vocabularies[rule.source].ids.get(rule.token, -1)
        if not 0 <= own < rows:
            wanted = printable(rule.token if rule.token is not None else token, 40)
            what = f"is to come from `{wanted}` in `{model}`, which has no row for it"
            return self._refuse("CV-T006", token, what)
        return ((rule.source, own),)

    def _refuse(self, code: str, token: str, what: str, hint: str | None = None) -> Donors:
        place = Where(path=f"tokenizer.tokens.{printable(token, 40)}")
        self.errors.append(Diagnostic(code, f"the token `{printable(token, 40)}` {what}", place, hint))
        return _ZERO

    def _table(self, model: str, fills: Mapping[int, Donors]) -> RowTable:
        plan = self.plan
        own = plan.own[model]
        tokens = plan.rules if any(rule.force for rule in plan.rules.values()) else {}
        forced = {plan.output.ids[t] for t, rule in tokens.items() if rule.force}

        def stand_in(row: int) -> Segment | None:
            if own[row] >= 0 and row not in forced:
                return None
            if row not in fills:
                return Segment(row, row + 1, "mean")  # a row without a token
            if not fills[row]:
                return Segment(row, row + 1, "zero")
            return Segment(row, row + 1, "blend", donors=fills[row])

        padding = [Segment(plan.kept, plan.rows, "mean")] if plan.rows > plan.kept else []
        return table(model, plan.embedding_rows[model], chain(_runs(own, stand_in, forced), padding))


def _rows_lacking(held: Sequence[Sequence[int]]) -> dict[int, None]:
    return {row: None for row, rows in enumerate(zip(*held, strict=True)) if min(rows) < 0}


def _runs(own: Sequence[int], stand_in: Callable[[int], Segment | None], forced: set[int]) -> list[Segment]:
    """Segments of the rows [0, len(own)): runs of own rows that follow each other, stand-ins between."""
    if isinstance(own, range) and not forced:
        return [Segment(0, len(own), "own")]
    found: list[Segment] = []
    row = 0
    while row < len(own):
        other = stand_in(row)
        if other is not None:
            found.append(other)
            row += 1
            continue
        start = row
        row += 1
        while row < len(own) and own[row] == own[row - 1] + 1 and row not in forced:
            row += 1
        found.append(Segment(start, row, "own", row=own[start]))
    return found
