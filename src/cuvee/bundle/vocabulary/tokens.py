"""A vocabulary as data: which token has which id, which tokens were added, and what the special ones are for.

Owns the rule by which the `tokenizers` library numbers added tokens. Knows nothing about files or embeddings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

Kind = Literal["bpe", "unigram", "wordpiece", "wordlevel", "sentencepiece"]

# Named roles, in the order in which loaders add those whose token is not in the vocabulary yet.
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class FileReader(Protocol):
    """Side files of one model, by name; a source gives it."""

    def read(self, name: str) -> bytes | None:
        """The file's bytes, or None when there is no such file."""
        ...

    def names(self) -> list[str]:
        """Names of the files that can be read."""
        ...


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token matched before the tokenizer's model runs, with the flags of a `tokenizer.json` entry."""

    content: str
    id: int
    special: bool = False
    normalized: bool = True
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False

    def entry(self) -> dict[str, Any]:
        """The entry of `added_tokens` in a tokenizer.json."""
        return {"id": self.id, **self.flags()}

    def flags(self) -> dict[str, Any]:
        """The value of `added_tokens_decoder` in a tokenizer_config.json (its key is the id)."""
        return {
            "content": self.content,
            "single_word": self.single_word,
            "lstrip": self.lstrip,
            "rstrip": self.rstrip,
            "normalized": self.normalized,
            "special": self.special,
        }


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Every token of a tokenizer with its id.

    `model` holds the tokens of the tokenizer's own model, `ids` those and the added ones; `roles` says which
    token is the `eos_token` and so on.
    """

    kind: Kind
    model: Mapping[str, int]
    ids: Mapping[str, int]
    added: Mapping[str, AddedToken] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    origin: str = "tokenizer.json"

    @property
    def size(self) -> int:
        """Rows an embedding needs: the largest id plus one."""
        return max(self.ids.values(), default=-1) + 1

    def by_id(self) -> dict[int, str]:
        """Token of each id; where two tokens share an id, the one read first."""
        found: dict[int, str] = {}
        for token, row in self.ids.items():
            found.setdefault(row, token)
        return found


def with_added(vocabulary: Vocabulary, tokens: Iterable[AddedToken]) -> Vocabulary:
    """The vocabulary with more added tokens, numbered as the `tokenizers` library numbers them.

    One call stands for one call there. A token that exists keeps its id (and becomes an added one); new ones
    get the ids after both the number of the model's own tokens and the largest id among those added before.
    The id a token arrives with is not looked at: the library ignores it as well, so this is the id that a
    loaded tokenizer gives it.
    """
    ids = dict(vocabulary.ids)
    added = dict(vocabulary.added)
    following = max([len(vocabulary.model), *(token.id + 1 for token in added.values())])
    for token in tokens:
        if not token.content:
            continue  # the library skips empty tokens too
        if token.content not in ids:
            ids[token.content], following = following, following + 1
        row = ids[token.content]
        added[token.content] = replace(token, id=row)
    return replace(vocabulary, ids=ids, added=added)


def without(vocabulary: Vocabulary, dropped: Iterable[str]) -> Vocabulary:
    """The vocabulary less some tokens; `roles` go on naming them (the writer of files decides about that)."""
    gone = frozenset(dropped)
    return replace(
        vocabulary,
        model={token: row for token, row in vocabulary.model.items() if token not in gone},
        ids={token: row for token, row in vocabulary.ids.items() if token not in gone},
        added={content: token for content, token in vocabulary.added.items() if content not in gone},
    )
