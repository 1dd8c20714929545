"""Tokenizers into GGUF key-values and back: the same ids for the same text, SentencePiece's where it is one."""

from __future__ import annotations

import io
import json
import random
from functools import cache
from typing import Any

import gguf
import pytest
import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from cuvee.errors import CorruptFile
from cuvee.formats.gguf_pretokenizers import SPLITTINGS, name_of
from cuvee.formats.gguf_tokenizer import tokenizer_file, tokenizer_names, tokenizer_remark
from cuvee.formats.gguf_write_tokenizer import ReadFile, tokenizer_metadata

LINES = """the capital of France is Paris don't WON'T I'll 2024 3.14159 100,000 naïve café 日本語 Привет 🙂👍🏽
def f(x): return x=y+1; http://a.b/c?d=e ... !!! _under_score CamelCase ½ ٣٤ é́"""
WORDS = LINES.split()
SPECIAL = ["<|begin|>", "<|end|>", "<unk>"]


def texts(count: int = 300, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    gaps = [" ", "  ", "\n", "\n\n", "\t", "\r\n", "", " <|end|>", "   "]
    drawn = [
        "".join(draw.choice(WORDS) + draw.choice(gaps) for _ in range(draw.randint(1, 12)))
        for _ in range(count)
    ]
    return ["", " ", "\n", "a", *drawn]


# Written out once more, independently of the table: what the published tokenizers do.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
PUBLISHED = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "llama-bpe": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), BYTES]),
    "qwen2": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN2), "isolated"), BYTES]),
}


@cache
def byte_level(name: str) -> str:
    """A small tokenizer.json that splits in the way of `name`."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=name == "llama-bpe"))
    tokenizer.pre_tokenizer = PUBLISHED[name]
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts(200, seed=7), trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return str(tokenizer.to_str())


SETTINGS = {
    "bos_token": "<|begin|>",
    "eos_token": {"content": "<|end|>"},
    "unk_token": "<unk>",
    "chat_template": "{{ messages }}",
}


def reader(files: dict[str, Any]) -> ReadFile:
    """`source.file` for these files; what is not bytes is written as JSON or text."""
    found = {
        name: data
        if isinstance(data, bytes)
        else (data if isinstance(data, str) else json.dumps(data)).encode()
        for name, data in files.items()
    }
    return found.get


def back(metadata: dict[str, Any]) -> Tokenizer:
    data = tokenizer_file(metadata, "tokenizer.json")
    assert data is not None
    return Tokenizer.from_str(data.decode())


@pytest.mark.parametrize("name", PUBLISHED)
def test_byte_level_tokenizers_come_back_the_same(name: str) -> None:
    original = Tokenizer.from_str(byte_level(name))
    rows = original.get_vocab_size() + 5
    made = tokenizer_metadata(
        reader({"tokenizer.json": byte_level(name), "tokenizer_config.json": SETTINGS}), {}, rows
    )
    assert made.remarks == []
    values = made.values
    assert values["tokenizer.ggml.model"] == "gpt2"
    assert values["tokenizer.ggml.pre"] == name
    assert len(values["tokenizer.ggml.tokens"]) == rows
    again = back(values)
    for text in texts():
        ids = original.encode(text).ids
        assert again.encode(text).ids == ids
        assert again.decode(ids, skip_special_tokens=False) == original.decode(ids, skip_special_tokens=False)
        assert again.decode(ids) == original.decode(ids)
    assert again.get_vocab() == original.get_vocab()
    assert tokenizer_names(values) == ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
    assert tokenizer_file(values, "chat_template.jinja") == b"{{ messages }}"
    settings = json.loads(tokenizer_file(values, "tokenizer_config.json") or b"")
    assert [settings[f"{role}_token"] for role in ("bos", "eos", "unk")] == SPECIAL
    assert tokenizer_remark(values) is None


def test_llama_3_keeps_whole_pieces_and_qwen_composes() -> None:
    content = json.loads(byte_level("llama-bpe"))
    row = content["model"]["vocab"]
    row["zq"] = row.pop("Ā")  # no merge makes it
    content["model"]["merges"] = [pair for pair in content["model"]["merges"] if "Ā" not in "".join(pair)]
    files = {"tokenizer.json": content}
    again = back(tokenizer_metadata(reader(files), {}, 500).values)
    assert again.encode("zq").tokens == ["zq"]
    assert Tokenizer.from_str(json.dumps(content)).encode("zq").tokens == ["zq"]
    content["model"]["ignore_merges"] = False
    values = tokenizer_metadata(reader(files), {}, 500).values
    assert values["tokenizer.ggml.pre"] == "dbrx"
    assert back(values).encode("zq").tokens == ["z", "q"]
    qwen = tokenizer_metadata(reader({"tokenizer.json": byte_level("qwen2")}), {}, 500).values
    apart = "e\N{COMBINING ACUTE ACCENT}"
    assert back(qwen).encode(apart).ids == back(qwen).encode("é").ids
    plain = back(qwen | {"tokenizer.ggml.pre": "stablelm2"})
    assert plain.encode(apart).ids != plain.encode("é").ids


def test_kinds_of_tokens_are_those_of_the_package() -> None:
    content = json.loads(byte_level("gpt-2"))
    rows = content["model"]["vocab"]
    last = max(token["id"] for token in content["added_tokens"])
    values = tokenizer_metadata(
        reader({"tokenizer.json": content}), {"eos_token_id": [3, 4]}, last + 3
    ).values
    kinds = {
        text: gguf.TokenType(kind)
        for text, kind in zip(
            values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"], strict=True
        )
    }
    assert kinds["<|end|>"] == kinds["<unk>"] == gguf.TokenType.CONTROL
    assert kinds["<think>"] == gguf.TokenType.USER_DEFINED
    assert kinds[f"[PAD{last + 1}]"] == gguf.TokenType.UNUSED
    assert all(kinds[token] == gguf.TokenType.NORMAL for token in rows)
    assert values["tokenizer.ggml.eos_token_id"] == 3
    assert "tokenizer.ggml.bos_token_id" not in values


def test_tokens_that_look_special_are_control_tokens() -> None:
    content = json.loads(byte_level("gpt-2"))
    for token in content["added_tokens"]:
        token["special"] = False
    values = tokenizer_metadata(reader({"tokenizer.json": content}), {}, 500).values
    kinds = dict(zip(values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"], strict=True))
    assert (kinds["<|end|>"], kinds["<unk>"], kinds["<think>"]) == (3, 4, 4)


def test_the_beginning_and_the_end_of_texts() -> None:
    content = json.loads(byte_level("llama-bpe"))
    row = {token["content"]: token["id"] for token in content["added_tokens"]}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<|begin|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            "<|begin|>": {"id": "<|begin|>", "ids": [row["<|begin|>"]], "tokens": ["<|begin|>"]}
        },
    }
    files = {"tokenizer.json": content, "tokenizer_config.json": SETTINGS}
    values = tokenizer_metadata(reader(files), {}, 500).values
    assert (values["tokenizer.ggml.add_bos_token"], values["tokenizer.ggml.add_eos_token"]) == (True, False)
    original = Tokenizer.from_str(json.dumps(content))
    assert back(values).encode("a b").ids == original.encode("a b").ids
    files["tokenizer_config.json"] = SETTINGS | {"add_bos_token": False, "add_eos_token": True}
    values = tokenizer_metadata(reader(files), {}, 500).values
    ids = back(values).encode("a").ids
    assert (ids[0] == row["<|begin|>"], ids[-1] == row["<|end|>"]) == (False, True)
    del values["tokenizer.ggml.add_bos_token"]  # readers take llama-bpe to begin with bos
    assert back(values).encode("a").ids == [row["<|begin|>"], *ids]


def test_chat_templates_by_name_and_from_their_own_file() -> None:
    templates = [{"name": "default", "template": "a"}, {"name": "tools", "template": "b"}]
    files: dict[str, Any] = {
        "tokenizer.json": byte_level("gpt-2"),
        "tokenizer_config.json": {"chat_template": templates},
    }
    values = tokenizer_metadata(reader(files), {}, 500).values
    assert values["tokenizer.chat_template"] == "a"
    assert values["tokenizer.chat_template.tools"] == "b"
    assert values["tokenizer.chat_templates"] == ["tools"]
    files["chat_template.jinja"] = "own"
    assert tokenizer_metadata(reader(files), {}, 500).values["tokenizer.chat_template"] == "own"


@cache
def pieces() -> bytes:
    """A small SentencePiece model with byte fallback, as Llama's."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text.replace("<|end|>", "") or "a" for text in texts(400, seed=3)]),
        model_writer=model,
        model_type="bpe",
        vocab_size=480,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        allow_whitespace_only_pieces=True,
        character_coverage=0.99,
        minloglevel=2,
    )
    return model.getvalue()


def of_pieces(**more: Any) -> dict[str, Any]:
    """Key-values as llama.cpp's converter takes them from a SentencePiece model."""
    model = sentencepiece.SentencePieceProcessor(model_proto=pieces())
    rows = range(model.get_piece_size())
    kinds = [
        2 if model.is_unknown(r) else 3 if model.is_control(r) else 6 if model.is_byte(r) else 1 for r in rows
    ]
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [model.id_to_piece(r) for r in rows],
        "tokenizer.ggml.scores": [model.get_score(r) for r in rows],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        **more,
    }


def test_sentencepiece_gives_the_same_ids() -> None:
    model = sentencepiece.SentencePieceProcessor(model_proto=pieces())
    ours = back(of_pieces())
    for text in [t for t in texts() if t]:
        ids = model.encode(text)
        assert ours.encode(text).ids == [1, *ids], text
        assert ours.decode(ids) == model.decode(ids)
    assert back(of_pieces(**{"tokenizer.ggml.add_bos_token": False})).encode("a").ids == model.encode("a")


def test_sentencepiece_goes_out_and_comes_back() -> None:
    ours = tokenizer_file(of_pieces(), "tokenizer.json")
    settings = tokenizer_file(of_pieces(), "tokenizer_config.json")
    assert ours is not None
    assert settings is not None
    files = {"tokenizer.json": ours, "tokenizer_config.json": settings}
    made = tokenizer_metadata(reader(files), {}, len(of_pieces()["tokenizer.ggml.tokens"]))
    assert made.remarks == []
    for key in ("tokens", "token_type", "bos_token_id", "unknown_token_id", "model"):
        assert made.values[f"tokenizer.ggml.{key}"] == of_pieces()[f"tokenizer.ggml.{key}"]
    assert made.values["tokenizer.ggml.add_space_prefix"] is True
    assert made.values["tokenizer.ggml.add_bos_token"] is True
    again = back(made.values)
    first = Tokenizer.from_str(ours.decode())
    assert all(again.encode(text).ids == first.encode(text).ids for text in texts())


def test_without_the_space_in_front() -> None:
    ours = back(of_pieces(**{"tokenizer.ggml.add_space_prefix": False}))
    assert ours.encode("a").tokens == ["<s>", "a"]
    assert ours.decode(ours.encode(" a").ids) == " a"


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"tokenizer.ggml.model": "rwkv"}, "the kind `rwkv` is not known"),
        ({"tokenizer.ggml.model": None}, "says nothing of one"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "not a list of texts"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "the same text"),
        ({"tokenizer.ggml.scores": None}, "no list of scores"),
        ({"tokenizer.ggml.scores": [0.0]}, "differ in length"),
        ({"tokenizer.ggml.token_type": 3}, "differ in length"),
        ({"tokenizer.ggml.model": "gpt2"}, "no list of merges"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.merges": ["a b c"]}, "not a pair"),
    ],
)
def test_files_without_a_tokenizer_that_can_be_said(change: dict[str, Any], part: str) -> None:
    metadata = of_pieces(**change)
    assert part in (tokenizer_remark(metadata) or "")
    assert tokenizer_names(metadata) == []
    assert tokenizer_file(metadata, "tokenizer.json") is None


def test_a_splitting_of_unknown_name_is_said() -> None:
    values = tokenizer_metadata(reader({"tokenizer.json": byte_level("gpt-2")}), {}, 500).values
    assert "`zebra`" in (tokenizer_remark(values | {"tokenizer.ggml.pre": "zebra"}) or "")
    assert (
        back(values | {"tokenizer.ggml.pre": "default"}).encode("a 12").ids == back(values).encode("a 12").ids
    )
    content = json.loads(byte_level("gpt-2"))
    content["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Punctuation"}, content["pre_tokenizer"]],
    }
    made = tokenizer_metadata(reader({"tokenizer.json": content}), {}, 500)
    assert made.values["tokenizer.ggml.pre"] == "default"
    assert "has no name in GGUF" in made.remarks[0]


@pytest.mark.parametrize(
    ("files", "part"),
    [
        ({}, "has no `tokenizer.json`"),
        ({"tokenizer.json": {"model": {"type": "Unigram", "vocab": []}}}, "type `Unigram`"),
        ({"tokenizer.json": {"model": {"type": "BPE", "vocab": {}}}}, "neither byte-level"),
    ],
)
def test_sources_without_a_tokenizer_that_a_file_can_hold(files: dict[str, Any], part: str) -> None:
    made = tokenizer_metadata(reader(files), {"bos_token_id": 1, "eos_token_id": 90}, 10)
    assert made.values == {"tokenizer.ggml.model": "none", "tokenizer.ggml.bos_token_id": 1}
    assert part in made.remarks[0]


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"{",
        {"model": 1},
        {"model": {"type": "BPE", "vocab": {"a": "x"}}},
        {"model": {"type": "BPE", "vocab": {}}, "added_tokens": [1]},
        {"model": {"type": "BPE", "vocab": {}, "merges": ["a"]}, "pre_tokenizer": {"type": "ByteLevel"}},
    ],
)
def test_tokenizer_files_that_contradict_their_format(content: Any) -> None:
    with pytest.raises(CorruptFile):
        tokenizer_metadata(reader({"tokenizer.json": content}), {}, 10)


def test_tokens_without_a_row_are_left_out_and_said() -> None:
    made = tokenizer_metadata(reader({"tokenizer.json": byte_level("gpt-2")}), {}, 300)
    assert len(made.values["tokenizer.ggml.tokens"]) == 300
    assert any("have no row" in remark for remark in made.remarks)
    assert back(made.values).get_vocab_size() == 300


def test_names_and_steps_are_each_other() -> None:
    for name, splitting in SPLITTINGS.items():
        found = name_of(splitting.steps(), whole=splitting.whole)
        assert found is not None
        assert SPLITTINGS[found].steps() == SPLITTINGS[name].steps()
    assert name_of([], whole=False) is None
