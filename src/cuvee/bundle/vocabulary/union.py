"""The output's vocabulary: a model's own, or the union of all, cut to what the embeddings hold.

Owns which tokens the output has and under which ids. Knows nothing about where their rows come from.
"""

from __future__ import annotations

from collections.abc import Mapping

from cuvee.bundle.vocabulary.tokens import ROLES, AddedToken, Vocabulary, with_added, without
from cuvee.core.names import printable
from cuvee.errors import Diagnostic, PlanError, Where


def within_rows(model: str, vocabulary: Vocabulary, rows: int) -> tuple[Vocabulary, list[Diagnostic]]:
    """The vocabulary less the tokens beyond an embedding of `rows` rows, and a warning if there were any.

    Tokens can be taken out of a byte-pair model, and added ones out of any SentencePiece folder; CV-T005
    otherwise.
    """
    beyond = [token for token, row in vocabulary.ids.items() if row >= rows]
    if not beyond:
        return vocabulary, []
    only_added = all(token not in vocabulary.model for token in beyond)
    shown = ", ".join(f"`{printable(token, 40)}`" for token in beyond[:3]) + (" …" if len(beyond) > 3 else "")
    if vocabulary.kind != "bpe" and not (vocabulary.kind == "sentencepiece" and only_added):
        raise PlanError(
            "CV-T005",
            f"the tokenizer of `{printable(model)}` has ids up to {vocabulary.size - 1} ({shown}), its "
            f"embedding has {rows} rows, and tokens cannot be taken out of a {vocabulary.kind} tokenizer",
            where=Where(source=model),
            hint="resize the model's embedding to its tokenizer, or take the tokenizer of another model",
        )
    warning = Diagnostic(
        "CV-T012",
        f"the tokenizer of `{printable(model)}` has {len(beyond)} tokens beyond its embedding of {rows} "
        f"rows, which are left out: {shown}",
        Where(source=model),
        severity="warning",
    )
    return without(vocabulary, beyond), [warning]


def beyond_rows(model: str, vocabulary: Vocabulary, rows: int) -> tuple[Vocabulary, list[Diagnostic]]:
    """The vocabulary as it is, and a warning if tokens of it have no row in an embedding of `rows` rows.

    So MergeKit takes the tokenizer of a base that a recipe names by its path: such tokens get the rows of models that
    have them, else zeros.
    """
    count = sum(row >= rows for row in vocabulary.ids.values())
    if not count:
        return vocabulary, []
    message = (
        f"the tokenizer of `{printable(model)}` has {count} tokens beyond its embedding of {rows} rows; it is asked "
        "for by name, so they stay: with the rows of models that have them, else with zeros"
    )
    hint = "`tokenizer: {source: base}` leaves them out"
    return vocabulary, [Diagnostic("CV-T110", message, Where(source=model), hint, "warning")]


def with_roles_kept(cut: Vocabulary, original: Vocabulary) -> Vocabulary:
    """The cut vocabulary with its special tokens added again at the end: a union keeps every role's token."""
    lost = [original.roles[role] for role in ROLES if role in original.roles]
    again = [original.added.get(token, AddedToken(token, -1, True, False)) for token in dict.fromkeys(lost)]
    return with_added(cut, [token for token in again if token.content not in cut.ids])


def union_of(
    start: Vocabulary, models: Mapping[str, Vocabulary], rows: Mapping[str, int]
) -> tuple[Vocabulary, list[Diagnostic]]:
    """`start` with the tokens it lacks of every model, in the order of models and then of ids.

    Plain tokens come first, then those that are added tokens in any model, with the flags of the first model
    that has them (a warning tells where flags differ). Tokens beyond a model's embedding do not count.
    """
    added: dict[str, AddedToken] = dict(start.added)
    differing: dict[str, str] = {}
    for model, vocabulary in models.items():
        for token in sorted(vocabulary.added.values(), key=lambda token: token.id):
            if token.id >= rows[model]:
                continue
            first = added.setdefault(token.content, token)
            if first.flags() != token.flags():
                differing.setdefault(token.content, model)
    plain: dict[str, AddedToken] = {}
    for model, vocabulary in models.items():
        for text, row in sorted(vocabulary.ids.items(), key=lambda item: item[1]):
            if row < rows[model] and text not in start.ids and text not in added:
                plain.setdefault(text, AddedToken(text, -1))
    new = [token for text, token in added.items() if text not in start.added]
    return with_added(start, [*plain.values(), *new]), [_flags_differ(t, m) for t, m in differing.items()]


def _flags_differ(token: str, model: str) -> Diagnostic:
    return Diagnostic(
        "CV-T013",
        f"the added token `{printable(token, 40)}` has other flags in `{printable(model)}` than before; "
        "the first ones are kept",
        Where(source=model),
        severity="warning",
    )
