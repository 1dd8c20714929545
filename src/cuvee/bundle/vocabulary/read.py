"""Read a tokenizer's vocabulary from its files, whichever of the usual layouts they have.

The ids are those a loaded tokenizer would give: added tokens are numbered by the rule of the `tokenizers`
library (`tokens.with_added`), and special tokens that only the configuration names come after them. Must not
import torch or transformers; SentencePiece only where a folder has nothing but a `tokenizer.model`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from cuvee.bundle.json_files import load_object
from cuvee.bundle.vocabulary.tokens import ROLES, AddedToken, FileReader, Kind, Vocabulary, with_added
from cuvee.core.names import printable
from cuvee.errors import CorruptFile, SourceError, Where

_KINDS: Mapping[str, Kind] = {
    "BPE": "bpe",
    "Unigram": "unigram",
    "WordPiece": "wordpiece",
    "WordLevel": "wordlevel",
}
_FLAGS = ("special", "normalized", "single_word", "lstrip", "rstrip")
_ELSEWHERE = ("spiece.model", "sentencepiece.bpe.model", "tekken.json", "tiktoken.model", "source.spm")


def read_vocabulary(files: FileReader) -> Vocabulary:
    """The vocabulary in a model's side files.

    Looked for in this order: tokenizer.json; tokenizer.model (through SentencePiece); vocab.json; vocab.txt.
    tokenizer_config.json, special_tokens_map.json and added_tokens.json add to each.

    Raises:
        SourceError: CV-T001 no tokenizer, CV-T003 SentencePiece is missing, CV-T004 a layout that is not
            read.
        CorruptFile: CV-T002 a file contradicts its format.
    """
    core = _from_tokenizer_json(files) or _from_sentencepiece(files) or _from_plain_files(files)
    if core is None:
        raise _nothing_found(files)
    config = _optional(files, "tokenizer_config.json")
    modern = "added_tokens_decoder" in config
    # Loaders look into the two legacy files only when the configuration does not list added tokens.
    legacy_map = {} if modern else _optional(files, "special_tokens_map.json")
    legacy_added = {} if modern else _optional(files, "added_tokens.json")
    stated = {**_roles(config), **_roles(legacy_map)}  # the legacy map wins where loaders read it at all
    roles = {role: stated[role] for role in ROLES if role in stated}
    found = with_added(core, _unlisted(core, _decoder(config) if modern else _encoder(legacy_added, roles)))
    named = [*roles.values(), *_extra(legacy_map), *_extra(config)]
    named_tokens = [AddedToken(text, -1, special=True, normalized=False) for text in dict.fromkeys(named)]
    return replace(with_added(found, _unlisted(found, named_tokens)), roles=roles)


def _unlisted(vocabulary: Vocabulary, tokens: Iterable[AddedToken]) -> list[AddedToken]:
    return [token for token in tokens if token.content not in vocabulary.added]


def _from_tokenizer_json(files: FileReader) -> Vocabulary | None:
    name = "tokenizer.json"
    data = files.read(name)
    if data is None:
        return None
    content = load_object(data, name)
    model = content.get("model")
    if not isinstance(model, dict):
        raise _corrupt(name, "has no `model`")
    kind = _kind(model)
    own = _unigram(model, name) if kind == "unigram" else _ids(model.get("vocab"), name)
    listed = content.get("added_tokens") or []
    if not isinstance(listed, list):
        raise _corrupt(name, "has `added_tokens` that are not a list")
    return with_added(Vocabulary(kind, own, own, origin=name), [_added(entry, name) for entry in listed])


def _kind(model: Mapping[str, Any]) -> Kind:
    """The model's type, or what its fields imply (old files do not say)."""
    kind = _KINDS.get(str(model.get("type")))
    if kind is not None:
        return kind
    if "merges" in model:
        return "bpe"
    if isinstance(model.get("vocab"), list):
        return "unigram"
    return "wordpiece" if "continuing_subword_prefix" in model else "wordlevel"


def _unigram(model: Mapping[str, Any], name: str) -> dict[str, int]:
    pieces = model.get("vocab")
    if not isinstance(pieces, list):
        raise _corrupt(name, "has a unigram model whose `vocab` is not a list")
    found: dict[str, int] = {}
    for row, piece in enumerate(pieces):
        if not (isinstance(piece, list) and len(piece) == 2 and isinstance(piece[0], str)):
            raise _corrupt(name, f"has a piece {row} that is not a pair of text and score")
        found[piece[0]] = row
    return found


def _ids(vocab: Any, name: str) -> dict[str, int]:
    if not isinstance(vocab, dict):
        raise _corrupt(name, "has a `vocab` that is not an object")
    for token, row in vocab.items():
        if type(row) is not int or not 0 <= row < 1 << 31:
            raise _corrupt(name, f"gives the token `{printable(token, 40)}` an id that is not a whole number")
    return vocab


def _added(entry: Any, name: str) -> AddedToken:
    if isinstance(entry, str):
        return AddedToken(entry, -1)
    if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
        raise _corrupt(name, "has an added token without `content`")
    special = bool(entry.get("special", False))
    flags = {flag: bool(entry[flag]) for flag in _FLAGS if flag in entry}
    return AddedToken(entry["content"], -1, **{"normalized": not special, **flags})


def _from_sentencepiece(files: FileReader) -> Vocabulary | None:
    name = "tokenizer.model"
    data = files.read(name)
    if data is None:
        return None
    try:
        import sentencepiece
    except ImportError:
        raise SourceError(
            "CV-T003",
            "`tokenizer.model` is a SentencePiece file, and the package that reads it is not installed",
            where=Where(file=name),
            hint="pip install sentencepiece",
        ) from None
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_proto=data)
        own = {pieces.id_to_piece(row): row for row in range(pieces.get_piece_size())}
    except (RuntimeError, OSError, ValueError) as problem:
        raise _corrupt(name, f"is not a SentencePiece model: {printable(str(problem), 120)}") from None
    return Vocabulary("sentencepiece", own, own, origin=name)


def _from_plain_files(files: FileReader) -> Vocabulary | None:
    data = files.read("vocab.json")
    if data is not None:
        own = _ids(load_object(data, "vocab.json"), "vocab.json")
        kind: Kind = "bpe" if files.read("merges.txt") is not None else "wordlevel"
        return Vocabulary(kind, own, own, origin="vocab.json")
    data = files.read("vocab.txt")
    if data is None:
        return None
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        raise _corrupt("vocab.txt", "is not UTF-8") from None
    if lines[-1] == "":
        lines.pop()
    own = {line.rstrip("\r"): row for row, line in enumerate(lines)}
    return Vocabulary("wordpiece", own, own, origin="vocab.txt")


def _optional(files: FileReader, name: str) -> dict[str, Any]:
    data = files.read(name)
    return {} if data is None else load_object(data, name)


def _decoder(config: Mapping[str, Any]) -> list[AddedToken]:
    name = "tokenizer_config.json"
    listed = config["added_tokens_decoder"] or {}
    if not isinstance(listed, dict) or not all(key.isdecimal() for key in listed):
        raise _corrupt(name, "has an `added_tokens_decoder` that does not map ids to tokens")
    return [_added(listed[key], name) for key in sorted(listed, key=int)]


def _encoder(listed: Mapping[str, Any], roles: Mapping[str, str]) -> list[AddedToken]:
    known = frozenset(roles.values())
    rows = _ids(dict(listed), "added_tokens.json")
    ordered = sorted(rows, key=rows.__getitem__)
    return [AddedToken(text, -1, special=text in known, normalized=text not in known) for text in ordered]


def _roles(content: Mapping[str, Any]) -> dict[str, str]:
    texts = {role: _text(content.get(role)) for role in ROLES}
    return {role: text for role, text in texts.items() if text}


def _extra(content: Mapping[str, Any]) -> list[str]:
    listed = content.get("extra_special_tokens") or content.get("additional_special_tokens") or []
    values = listed.values() if isinstance(listed, dict) else listed if isinstance(listed, list) else []
    return [text for text in map(_text, values) if text]


def _text(value: Any) -> str | None:
    """The text of a special token, written either as such or as an object with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _nothing_found(files: FileReader) -> SourceError:
    present = set(files.names())
    other = next((name for name in _ELSEWHERE if name in present), None)
    if other is not None:
        return SourceError(
            "CV-T004",
            f"the tokenizer is only there as `{other}`, which is not read",
            where=Where(file=other),
            hint="load it with transformers and save it again: that writes a `tokenizer.json`",
        )
    return SourceError("CV-T001", "there is no `tokenizer.json`, `tokenizer.model` or vocabulary file")


def _corrupt(file: str, what: str) -> CorruptFile:
    return CorruptFile("CV-T002", f"`{file}` {what}", where=Where(file=file))
