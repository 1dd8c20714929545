"""A tokenizer.json and what belongs to it as the `tokenizer.*` key-values of a GGUF file.

Byte-level BPE (`gpt2`) and SentencePiece-like BPE with byte fallback (`llama`); others leave the file without a
tokenizer, and a remark says so. The inverse of `gguf_tokenizer`. Must not open files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cuvee.core.names import printable
from cuvee.errors import CorruptFile, Where
from cuvee.formats.gguf_pretokenizers import name_of
from cuvee.formats.json_file import parse_json

ReadFile = Callable[[str], bytes | None]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # what SentencePiece writes for a space
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator", "mask": "mask"}
_CONTROL_LOOKS = re.compile(r"<pad>|<mask>|<2mass>|\[@BOS@\]|<\|.*\|>|<｜.*｜>|<unused.*>", re.DOTALL)
_PREFIX = "tokenizer.ggml."
_ADDED_SCORE = -1000.0


@dataclass(slots=True)
class TokenizerValues:
    """Key-values, and what a person should know about them."""

    values: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def tokenizer_metadata(read: ReadFile, config: Mapping[str, Any], rows: int) -> TokenizerValues:
    """The key-values for a vocabulary of `rows` rows, from the side files that `read` gives.

    CorruptFile CV-S094 (CV-S069 for malformed JSON) when a tokenizer file is not what it should be.
    """
    content = _object(read, "tokenizer.json")
    if content is None:
        return _none("the source has no `tokenizer.json`", config, rows)
    model = content.get("model")
    if not isinstance(model, dict) or not isinstance(content.get("added_tokens", []), list):
        raise _corrupt("tokenizer.json", "has no `model` or odd `added_tokens`")
    steps = _steps(content.get("pre_tokenizer"), "pretokenizers")
    if model.get("type") not in (None, "BPE") or not isinstance(model.get("vocab"), dict):
        kind = printable(str(model.get("type")), 40)
        return _none(f"a tokenizer of the type `{kind}` has no place in it", config, rows)
    out = TokenizerValues()
    tokens = _tokens(model["vocab"], content.get("added_tokens", []), rows, out)
    byte_level = any(step.get("type") == "ByteLevel" for step in steps)
    if byte_level:
        _byte_level(out, model, steps, tokens)
    elif model.get("byte_fallback"):
        _pieces(out, model, content, steps, tokens)
    else:
        return _none("its tokenizer is neither byte-level nor falls back to bytes", config, rows)
    settings = _object(read, "tokenizer_config.json") or {}
    vocabulary = {text: row for row, text in enumerate(tokens.texts)}
    _special_ids(out, settings, config, vocabulary, rows)
    _beginnings(out, content, settings)
    _templates(out, read, settings)
    return out


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Texts and kinds by row."""

    texts: list[str]
    kinds: list[int]


def _tokens(vocab: Mapping[str, Any], added: Sequence[Any], rows: int, out: TokenizerValues) -> _Tokens:
    texts, kinds = [f"[PAD{row}]" for row in range(rows)], [UNUSED] * rows
    beyond = 0
    entries: list[tuple[str, Any, int]] = [(text, row, NORMAL) for text, row in vocab.items()]
    for token in added:
        if not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise _corrupt("tokenizer.json", "has an added token without `content`")
        control = token.get("special") or _CONTROL_LOOKS.fullmatch(token["content"])
        entries.append((token["content"], token.get("id"), CONTROL if control else USER_DEFINED))
    for text, row, kind in entries:
        if type(row) is not int or row < 0:
            raise _corrupt(
                "tokenizer.json", f"gives `{printable(text, 40)}` an id that is not a whole number"
            )
        if row < rows:
            texts[row], kinds[row] = text, kind
        else:
            beyond += 1
    if beyond:
        out.remarks.append(f"{beyond} tokens have no row in the embedding and are left out")
    return _Tokens(texts, kinds)


def _byte_level(
    out: TokenizerValues, model: Mapping[str, Any], steps: Sequence[Mapping[str, Any]], tokens: _Tokens
) -> None:
    name = name_of(steps, whole=bool(model.get("ignore_merges")))
    if name is None:
        out.remarks.append("the way its tokenizer splits text has no name in GGUF; `default` is written")
    if any(step.get("add_prefix_space") for step in steps):
        out.remarks.append("its tokenizer puts a space before a text, and a reader of the file will not")
    out.values |= {
        _PREFIX + "model": "gpt2",
        _PREFIX + "pre": name or "default",
        _PREFIX + "tokens": tokens.texts,
        _PREFIX + "token_type": tokens.kinds,
    }
    merges = [" ".join(part.replace(" ", "Ġ") for part in pair) for pair in _merges(model)]
    if merges:
        out.values[_PREFIX + "merges"] = merges


def _pieces(
    out: TokenizerValues,
    model: Mapping[str, Any],
    content: Mapping[str, Any],
    steps: Sequence[Mapping[str, Any]],
    tokens: _Tokens,
) -> None:
    """SentencePiece: the order of merges becomes scores, the higher the earlier."""
    first: dict[str, int] = {}
    for rank, (left, right) in enumerate(_merges(model)):
        first.setdefault(left + right, rank)
    texts, kinds, scores = list(tokens.texts), list(tokens.kinds), []
    for row, text in enumerate(texts):
        if text == model.get("unk_token"):
            kinds[row] = UNKNOWN
        elif kinds[row] == NORMAL and _BYTE.fullmatch(text):
            kinds[row] = BYTE
        elif kinds[row] == USER_DEFINED:
            texts[row] = text.replace(SPACE, " ")
        added = kinds[row] in (USER_DEFINED, UNUSED)
        scores.append(_ADDED_SCORE if added else -1.0 - first[text] if text in first else 0.0)
    parts = _steps(content.get("normalizer"), "normalizers")
    prefixed = any(part.get("type") == "Prepend" for part in parts)
    prefixed |= any(s.get("type") == "Metaspace" and s.get("prepend_scheme") != "never" for s in steps)
    out.values |= {
        _PREFIX + "model": "llama",
        _PREFIX + "pre": "default",
        _PREFIX + "tokens": texts,
        _PREFIX + "scores": scores,
        _PREFIX + "token_type": kinds,
        _PREFIX + "add_space_prefix": prefixed,
    }


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    out = []
    for merge in model.get("merges") or []:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise _corrupt("tokenizer.json", "has a merge that is not a pair")
        out.append((pair[0], pair[1]))
    return out


def _special_ids(
    out: TokenizerValues,
    settings: Mapping[str, Any],
    config: Mapping[str, Any],
    vocabulary: Mapping[str, int],
    rows: int,
) -> None:
    for role, key in _ROLES.items():
        token = settings.get(f"{role}_token")
        text = token.get("content") if isinstance(token, dict) else token
        row: Any = vocabulary.get(text) if isinstance(text, str) else None
        if row is None:
            stated: Any = config.get(f"{role}_token_id")
            row = stated[0] if isinstance(stated, list) and stated else stated
        if type(row) is int and 0 <= row < rows:
            out.values[f"{_PREFIX}{key}_token_id"] = row


def _beginnings(out: TokenizerValues, content: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Whether a text begins with bos and ends with eos, from the template or the settings."""
    adds = {"bos": False, "eos": False}
    for processor in _steps(content.get("post_processor"), "processors"):
        single = processor.get("single")
        if processor.get("type") == "TemplateProcessing" and isinstance(single, list) and len(single) > 1:
            adds = {"bos": "SpecialToken" in single[0], "eos": "SpecialToken" in single[-1]}
    for role, stated in adds.items():
        given = settings.get(f"add_{role}_token")
        out.values[f"{_PREFIX}add_{role}_token"] = given if isinstance(given, bool) else stated


def _templates(out: TokenizerValues, read: ReadFile, settings: Mapping[str, Any]) -> None:
    data = read("chat_template.jinja")
    found = settings.get("chat_template") if data is None else data.decode("utf-8", errors="replace")
    if isinstance(found, str):
        out.values["tokenizer.chat_template"] = found
        return
    names = []
    for entry in found if isinstance(found, list) else ():
        name, text = (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
        if isinstance(name, str) and isinstance(text, str):
            names += [] if name == "default" else [name]
            out.values["tokenizer.chat_template" + ("" if name == "default" else f".{name}")] = text
    if names:
        out.values["tokenizer.chat_templates"] = names


def _steps(value: Any, inner: str) -> list[Mapping[str, Any]]:
    """A component of tokenizer.json as a flat list of its parts."""
    if not isinstance(value, dict):
        return []
    if value.get("type") == "Sequence" and isinstance(value.get(inner), list):
        return [part for entry in value[inner] for part in _steps(entry, inner)]
    return [value]


def _object(read: ReadFile, name: str) -> dict[str, Any] | None:
    data = read(name)
    if data is None:
        return None
    value = parse_json(data, Path(name))
    if not isinstance(value, dict):
        raise _corrupt(name, "is not a JSON object")
    return value


def _none(reason: str, config: Mapping[str, Any], rows: int) -> TokenizerValues:
    """No tokenizer; the ids that the config gives are kept."""
    remark = f"the file is written without a tokenizer: {reason}"
    out = TokenizerValues({_PREFIX + "model": "none"}, [remark])
    _special_ids(out, {}, config, {}, rows)
    return out


def _corrupt(file: str, what: str) -> CorruptFile:
    return CorruptFile("CV-S094", f"`{file}` {what}", where=Where(file=file))
