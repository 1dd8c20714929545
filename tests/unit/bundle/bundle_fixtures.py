"""Small tokenizers of every kind, and side files in memory, for the tests of the bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

TEXT = [
    "the cat sat on the mat with another cat",
    "a merge of models is made of weights",
    "she reads the sea and hears the shore",
    "numbers one two three and four",
]
ROLES = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


class Files:
    """A FileReader over a dictionary."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    def read(self, name: str) -> bytes | None:
        return self.files.get(name)

    def names(self) -> list[str]:
        return list(self.files)

    def save(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        for name, data in self.files.items():
            (folder / name).write_bytes(data)
        return folder


def files(**contents: Any) -> Files:
    """Side files from JSON values; `tokenizer_config` stands for `tokenizer_config.json`."""
    return Files({f"{name}.json": json.dumps(content).encode() for name, content in contents.items()})


def trained(kind: str, size: int, seed: int = 0) -> Tokenizer:
    """A tokenizer trained on a few lines; another seed reads them in another order."""
    text = TEXT[seed:] + [" ".join(reversed(line.split())) for line in TEXT[:seed]]
    special = list(ROLES.values())
    shared: dict[str, Any] = {"vocab_size": size, "special_tokens": special, "show_progress": False}
    if kind == "bpe":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        trainer: Any = trainers.BpeTrainer(**shared)
    elif kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        trainer = trainers.WordPieceTrainer(**shared)
    else:
        tokenizer = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(**shared, unk_token="<unk>")
    split: Any = pre_tokenizers.Metaspace() if kind == "unigram" else pre_tokenizers.Whitespace()
    tokenizer.pre_tokenizer = split
    tokenizer.train_from_iterator(text, trainer)
    return tokenizer


def with_tokens(tokenizer: Tokenizer, *contents: str, special: bool = True, **flags: bool) -> Tokenizer:
    """The tokenizer after adding tokens through the library."""
    tokenizer.add_tokens([AddedToken(content, special=special, **flags) for content in contents])
    return tokenizer


def folder_of(tokenizer: Tokenizer, **config: Any) -> Files:
    """A tokenizer's files as a model folder has them."""
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **ROLES, **config}
    return files(tokenizer=json.loads(tokenizer.to_str()), tokenizer_config=settings)
