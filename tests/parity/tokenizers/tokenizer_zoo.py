"""Five tiny models with tokenizers that differ in the ways a vocabulary plan has to handle, and recipes.

Shared by the script that asks MergeKit and the test that compares with it; imports neither of the two.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PAIRS = [
    "th",
    "he",
    "in",
    "er",
    "an",
    "re",
    "on",
    "at",
    "en",
    "nd",
    "ti",
    "es",
    "or",
    "te",
    "of",
    "ed",
    "is",
    "it",
]


def bpe(tokens: list[str], merges: list[str], added: list[dict[str, Any]]) -> dict[str, Any]:
    """A tokenizer.json of byte-pair kind; `added` entries hold content and flags, ids are worked out."""
    vocab = {token: row for row, token in enumerate(tokens)}
    listed = []
    following = len(vocab)
    for entry in added:
        row = vocab.get(entry["content"])
        if row is None:
            row, following = following, following + 1
        special = entry.get("special", False)
        flags = {
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": not special,
            "special": special,
        }
        listed.append({"id": row, **flags, **entry})
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": listed,
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [[pair[0], pair[1]] for pair in merges],
        },
    }


def special(*contents: str) -> list[dict[str, Any]]:
    """Entries of special added tokens."""
    return [{"content": content, "special": True} for content in contents]


_START = ["<unk>", "<s>", "</s>"]
_ROLES = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
_BASE = [*_START, *LETTERS, *PAIRS]
# Another order, without `z` and the first pairs, with pairs of its own.
_CODE = [*_START, *reversed(LETTERS[:25]), *PAIRS[6:], "de", "if", "fo", "ba", "yo"]

# name → (tokenizer.json, roles, rows of the embedding)
MODELS: dict[str, tuple[dict[str, Any], dict[str, str], int]] = {
    "base": (bpe(_BASE, PAIRS, special(*_START)), _ROLES, 47),
    "chat": (
        bpe(
            _BASE,
            PAIRS,
            [*special(*_START, "<|im_start|>", "<|im_end|>"), {"content": "<tool>", "lstrip": True}],
        ),
        {**_ROLES, "eos_token": "<|im_end|>"},
        50,
    ),
    "code": (
        bpe(
            _CODE,
            [*PAIRS[6:], "de", "if", "fo", "ba", "yo"],
            [
                *special(*_START, "<|im_end|>", "<pad>"),
                {"content": "<fim>"},
                {"content": "de", "lstrip": True},
            ],
        ),
        {**_ROLES, "pad_token": "<pad>"},
        48,
    ),
    "padded": (bpe(_BASE, PAIRS, special(*_START)), _ROLES, 64),
    # Two of its added tokens have no row, one of them with a role.
    "cut": (
        bpe(_BASE, PAIRS, [*special(*_START, "<|a|>", "<|b|>", "<pad>")]),
        {**_ROLES, "pad_token": "<pad>"},
        48,
    ),
}

# name → keys of a MergeKit recipe; `models` are the inputs of a linear merge
RECIPES: dict[str, dict[str, Any]] = {
    "union": {"base_model": "base", "models": ["base", "chat", "code"], "tokenizer": {"source": "union"}},
    "union_without_base": {"models": ["code", "chat", "base"], "tokenizer": {"source": "union"}},
    "union_padded": {
        "base_model": "padded",
        "models": ["padded", "code"],
        "tokenizer": {"source": "union", "pad_to_multiple_of": 32},
    },
    "base": {"base_model": "base", "models": ["base", "chat", "code"], "tokenizer": {"source": "base"}},
    "base_trims_padding": {
        "base_model": "padded",
        "models": ["padded", "base"],
        "tokenizer": {"source": "base"},
    },
    "model": {"base_model": "base", "models": ["base", "chat", "code"], "tokenizer": {"source": "chat"}},
    "model_of_another_order": {"models": ["base", "code", "chat"], "tokenizer": {"source": "code"}},
    "beyond_the_embedding": {"base_model": "cut", "models": ["cut", "code"], "tokenizer": {"source": "base"}},
    "union_beyond_the_embedding": {
        "base_model": "cut",
        "models": ["cut", "chat"],
        "tokenizer": {"source": "union"},
    },
    "tokens": {
        "base_model": "base",
        "models": ["base", "chat", "code"],
        "tokenizer": {
            "source": "union",
            "pad_to_multiple_of": 16,
            "tokens": {
                "<|im_start|>": {"source": "chat"},
                "<|im_end|>": {"source": "code", "force": True},
                "th": {"source": {"kind": "zero"}, "force": True},
                "z": {"source": {"kind": "zero"}},
                "<new>": {"source": {"kind": "model_token", "model": "code", "token": "fo"}},
                "<row>": {"source": {"kind": "model_token", "model": "chat", "token_id": 49}},
                "a": {},
            },
        },
    },
}


def value(model: str, row: int) -> tuple[float, float]:
    """The first two numbers of an embedding row; no two rows of any models share them."""
    number = list(MODELS).index(model)
    return float(1000 * (number + 1) + row), float((row * 37 + number * 11) % 101)


def tokenizer_config(model: str) -> dict[str, Any]:
    """The model's tokenizer_config.json."""
    return {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64, **MODELS[model][1]}


def write_tokenizer(folder: Path, model: str) -> None:
    """The model's tokenizer files in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(MODELS[model][0]))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(model)))
