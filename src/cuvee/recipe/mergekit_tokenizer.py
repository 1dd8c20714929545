"""MergeKit's `tokenizer_source` and `tokenizer` sections → the recipe's vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cuvee.core.names import did_you_mean, printable
from cuvee.errors import Diagnostic
from cuvee.recipe.document import Document, Path, problem
from cuvee.recipe.mergekit_schema import MODEL_TOKEN, ZERO_TOKEN, MergeKitRecipe, ModelToken, TokenEmbedding
from cuvee.recipe.model import TokenRule, Vocabulary
from cuvee.recipe.shape import validate

Alias = Callable[[Any, Path], str]


def vocabulary_of(
    config: MergeKitRecipe, document: Document, alias: Alias, found: list[Diagnostic]
) -> Vocabulary | None:
    """The vocabulary a recipe asks for, or None."""
    if config.tokenizer_source is not None:
        where = document.where(("tokenizer_source",))
        source = _source(config.tokenizer_source, ("tokenizer_source",), alias)
        return Vocabulary(source, where=where)
    section = config.tokenizer
    if section is None:
        return None
    path: Path = ("tokenizer",)
    tokens = {
        token: _rule(rule, (*path, "tokens", token), document, alias, found)
        for token, rule in (section.tokens or {}).items()
    }
    return Vocabulary(
        source=_source(section.source, (*path, "source"), alias),
        tokens=tokens,
        pad_to_multiple_of=section.pad_to_multiple_of,
        where=document.where(path, key=True),
    )


def _source(written: Any, path: Path, alias: Alias) -> str:
    return written if written in ("union", "base") else alias(written, path)


def _misspelt(source: dict[str, Any], path: Path, document: Document) -> list[Diagnostic]:
    """A source of a token that is neither a model nor of a kind: the key `kind` may be misspelt."""
    close = [key for key in source if did_you_mean(str(key), ("kind",))]
    return [
        problem(document, "CV-R004", (*path, key), f"unknown key `{printable(str(key))}`", key=True,
                hint=did_you_mean(str(key), ("kind",)))
        for key in close
    ]  # fmt: skip


def _rule(
    entry: TokenEmbedding, path: Path, document: Document, alias: Alias, found: list[Diagnostic]
) -> TokenRule:
    source, here = entry.source, (*path, "source")
    if source is None:
        return TokenRule(force=entry.force)
    if isinstance(source, dict) and "kind" not in source and (wrong := _misspelt(source, here, document)):
        found += wrong
        return TokenRule()
    if isinstance(source, dict) and "kind" in source:
        inner = Document(
            source,
            document.text,
            document.file,
            {p[len(here) :]: s for p, s in document.keys.items() if p[: len(here)] == here},
            {p[len(here) :]: s for p, s in document.values.items() if p[: len(here)] == here},
        )
        if source["kind"] == "zero":
            validate(ZERO_TOKEN, inner, found)
            return TokenRule(zero=True, force=entry.force)
        token: ModelToken | None = validate(MODEL_TOKEN, inner, found)
        if token is None:
            return TokenRule()
        return TokenRule(alias(token.model, (*here, "model")), token.token, token.token_id, force=entry.force)
    return TokenRule(alias(source, here), force=entry.force)
