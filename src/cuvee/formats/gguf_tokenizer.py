"""The tokenizer that a GGUF file carries, as the files a Hugging Face folder would have.

Byte-level BPE (`gpt2`) and SentencePiece-like BPE (`llama`); the inverse of `gguf_write_tokenizer`. Works on
metadata alone and must not import a tokenizer library.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cuvee.core.names import printable
from cuvee.formats.gguf_pretokenizers import ASSUMED, SPLITTINGS
from cuvee.formats.gguf_write_tokenizer import CONTROL, SPACE, UNUSED, USER_DEFINED

_PREFIX = "tokenizer.ggml."
_FILLER = re.compile(r"\[PAD\d+\]")  # what converters call rows that have no token
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator", "mask": "mask"}
_FILES = ("tokenizer.json", "tokenizer_config.json")
_TEMPLATE = "chat_template.jinja"


def tokenizer_names(metadata: Mapping[str, Any]) -> list[str]:
    """Names of the files that `tokenizer_file` can make; empty when the file has no tokenizer it can say."""
    if _flaw(metadata) is not None:
        return []
    template = isinstance(metadata.get("tokenizer.chat_template"), str)
    return [*_FILES, *([_TEMPLATE] if template else [])]


def tokenizer_remark(metadata: Mapping[str, Any]) -> str | None:
    """What a person should know about the tokenizer: that there is none, or what had to be assumed."""
    flaw = _flaw(metadata)
    if flaw is not None:
        return f"the GGUF file gives no tokenizer: {flaw}"
    name = metadata.get(_PREFIX + "pre")
    if metadata[_PREFIX + "model"] == "gpt2" and name not in SPLITTINGS:
        said = "does not say how" if name is None else f"says by `{printable(str(name), 40)}` how"
        return f"the GGUF file {said} text is split before merging; as in GPT-2 is assumed"
    return None


def tokenizer_file(metadata: Mapping[str, Any], name: str) -> bytes | None:
    """The content of one of the files of `tokenizer_names`, None for any other name."""
    if name not in tokenizer_names(metadata):
        return None
    if name == _TEMPLATE:
        return str(metadata["tokenizer.chat_template"]).encode()
    made = _content(metadata) if name == "tokenizer.json" else _settings(metadata)
    return (json.dumps(made, ensure_ascii=False, indent=1) + "\n").encode("utf-8", errors="replace")


def _flaw(metadata: Mapping[str, Any]) -> str | None:
    model = metadata.get(_PREFIX + "model")
    tokens: Any = metadata.get(_PREFIX + "tokens")
    if model not in ("gpt2", "llama"):
        return (
            "it says nothing of one"
            if model is None
            else f"the kind `{printable(str(model), 40)}` is not known"
        )
    if not _texts(tokens):
        return "its tokens are not a list of texts"
    if len(set(tokens)) != len(tokens):
        return "two of its tokens are the same text"
    needed, kind = ("merges", str) if model == "gpt2" else ("scores", float)
    values = metadata.get(_PREFIX + needed)
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        return f"it has no list of {needed}"
    if model == "gpt2" and not all(merge.count(" ") == 1 for merge in values):
        return "a merge is not a pair"
    kinds = metadata.get(_PREFIX + "token_type", [1] * len(tokens))
    lengths = {len(tokens), len(kinds) if isinstance(kinds, list) else -1}
    if len(lengths | ({len(values)} if model == "llama" else set())) != 1:
        return "its lists differ in length"
    return None


def _texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)


def _content(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer.json."""
    pieces = metadata[_PREFIX + "model"] == "llama"
    tokens = _spelled(metadata) if pieces else list(metadata[_PREFIX + "tokens"])
    kinds = metadata.get(_PREFIX + "token_type", [1] * len(tokens))
    rows = range(len(tokens))
    vocab = {tokens[r]: r for r in rows if kinds[r] != UNUSED or not _FILLER.fullmatch(tokens[r])}
    special = {CONTROL: True, USER_DEFINED: False}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": r, "content": tokens[r], **plain, "special": special[kinds[r]]}
        for r in rows
        if kinds[r] in special
    ]
    build = _pieces if pieces else _byte_level
    parts = build(metadata, vocab, tokens)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": parts["normalizer"],
        "pre_tokenizer": parts["pre_tokenizer"],
        "post_processor": _template(metadata, tokens, default=parts["begins"]) or parts["post_processor"],
        "decoder": parts["decoder"],
        "model": parts["model"],
    }


def _model(vocab: Mapping[str, int], merges: Sequence[Sequence[str]], **more: Any) -> dict[str, Any]:
    plain = {
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
    }
    flags = {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return {"type": "BPE", **plain, **flags, **more, "vocab": vocab, "merges": merges}


def _byte_level(
    metadata: Mapping[str, Any], vocab: Mapping[str, int], tokens: Sequence[str]
) -> dict[str, Any]:
    splitting = SPLITTINGS.get(str(metadata.get(_PREFIX + "pre")), SPLITTINGS[ASSUMED])
    merges = [merge.split(" ") for merge in metadata[_PREFIX + "merges"]]
    usable = [pair for pair in merges if pair[0] in vocab and pair[1] in vocab and "".join(pair) in vocab]
    steps = splitting.steps()
    bytes_back = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    return {
        "normalizer": {"type": "NFC"} if splitting.composed else None,
        "pre_tokenizer": steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps},
        "post_processor": {**bytes_back, "trim_offsets": False},
        "decoder": bytes_back,
        "begins": splitting.begins,
        "model": _model(vocab, usable, ignore_merges=splitting.whole),
    }


def _pieces(metadata: Mapping[str, Any], vocab: Mapping[str, int], tokens: Sequence[str]) -> dict[str, Any]:
    """SentencePiece: spaces are visible, characters out of the vocabulary fall back to bytes."""
    prefixed = metadata.get(_PREFIX + "add_space_prefix") is not False and not _is_gemma(metadata)
    visible = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    decoders = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefixed else []),
    ]
    before = [{"type": "Prepend", "prepend": SPACE}] if prefixed else []
    unknown = _special(metadata, tokens, "unknown")
    merges = _merges(metadata, vocab, tokens)
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*before, visible]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "begins": True,
        "model": _model(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True),
    }


def _merges(metadata: Mapping[str, Any], vocab: Mapping[str, int], tokens: Sequence[str]) -> list[list[str]]:
    """Every way to make a token of two others, tokens of higher scores first (in Gemma: earlier tokens)."""
    scores = metadata[_PREFIX + "scores"]
    kinds = metadata.get(_PREFIX + "token_type", [1] * len(tokens))
    found: list[tuple[float, int, int, int, list[str]]] = []
    for row, text in enumerate(tokens):
        if kinds[row] != 1:
            continue
        rank = float(row) if _is_gemma(metadata) else -scores[row]
        for cut in range(1, len(text)):
            left, right = vocab.get(text[:cut]), vocab.get(text[cut:])
            if left is not None and right is not None:
                found.append((rank, -cut, left, right, [text[:cut], text[cut:]]))
    return [entry[-1] for entry in sorted(found)]


def _spelled(metadata: Mapping[str, Any]) -> list[str]:
    """Tokens as tokenizer.json spells them: runs of spaces, which Gemma's files hold as such, are visible."""
    return [
        SPACE * len(text) if _is_gemma(metadata) and text and not text.strip(" ") else text
        for text in metadata[_PREFIX + "tokens"]
    ]


def _template(metadata: Mapping[str, Any], tokens: Sequence[str], *, default: bool) -> dict[str, Any] | None:
    """The post-processor that adds bos and eos; None when neither is added."""
    bos = _special(metadata, tokens, "bos") if metadata.get(_PREFIX + "add_bos_token", default) else None
    eos = _special(metadata, tokens, "eos") if metadata.get(_PREFIX + "add_eos_token", False) else None
    if bos is None and eos is None:
        return None
    rows = {token: tokens.index(token) for token in (bos, eos) if token is not None}

    def piece(sequence: str, kind: int) -> list[dict[str, Any]]:
        first = [{"SpecialToken": {"id": bos, "type_id": kind}}] if bos is not None else []
        last = [{"SpecialToken": {"id": eos, "type_id": kind}}] if eos is not None else []
        return [*first, {"Sequence": {"id": sequence, "type_id": kind}}, *last]

    return {
        "type": "TemplateProcessing",
        "single": piece("A", 0),
        "pair": piece("A", 0) + piece("B", 1),
        "special_tokens": {text: {"id": text, "ids": [row], "tokens": [text]} for text, row in rows.items()},
    }


def _settings(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json."""
    tokens = _spelled(metadata)
    length = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    if type(length) is int:
        settings["model_max_length"] = length
    for role, key in _ROLES.items():
        token = _special(metadata, tokens, key)
        if token is not None:
            settings[f"{role}_token"] = token
    return settings


def _special(metadata: Mapping[str, Any], tokens: Sequence[str], key: str) -> str | None:
    row = metadata.get(f"{_PREFIX}{key}_token_id")
    return tokens[row] if type(row) is int and 0 <= row < len(tokens) else None


def _is_gemma(metadata: Mapping[str, Any]) -> bool:
    return str(metadata.get("general.architecture")).startswith("gemma")
