"""Vocabularies from files: every layout, the library's rule for numbers, files that contradict themselves."""

from __future__ import annotations

import builtins
import json
import sys
from typing import Any

import pytest
from bundle_fixtures import Files, files, folder_of, trained, with_tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken as LibraryToken
from tokenizers import Tokenizer, models

from cuvee.bundle.json_files import dump_json, load_json
from cuvee.bundle.vocabulary.read import read_vocabulary
from cuvee.bundle.vocabulary.tokens import AddedToken, Vocabulary, with_added, without
from cuvee.core.limits import Limits
from cuvee.errors import CorruptFile, SourceError

BPE: dict[str, Any] = {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_ids_are_the_librarys(kind: str) -> None:
    tokenizer = with_tokens(trained(kind, 55), "<|a|>", "cat")
    found = read_vocabulary(folder_of(tokenizer))
    assert found.kind == kind
    assert found.ids == tokenizer.get_vocab()
    assert found.size == tokenizer.get_vocab_size()
    assert found.roles == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert found.added["<|a|>"].special


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 12), min_size=1).filter(
        lambda v: len(set(v.values())) == len(v)
    ),
    st.lists(st.sampled_from("abcdefgh"), max_size=6),
)
def test_added_tokens_are_numbered_as_the_library_does(own: dict[str, int], added: list[str]) -> None:
    tokenizer = Tokenizer(models.WordLevel(own, unk_token="a"))
    tokenizer.add_tokens([LibraryToken(text, normalized=False) for text in added])
    found = with_added(Vocabulary("wordlevel", own, own), [AddedToken(text, -1) for text in added])
    assert found.ids == tokenizer.get_vocab()


def test_stated_ids_of_added_tokens_give_way_to_the_librarys() -> None:
    entries = [
        {"id": 9, "content": "<x>", "special": True},
        {"id": 7, "content": "a"},
        {"id": 7, "content": "<y>"},
    ]
    found = read_vocabulary(files(tokenizer={"model": BPE, "added_tokens": entries}))
    assert found.ids == {"a": 0, "b": 1, "<x>": 2, "<y>": 3}
    assert not found.added["<x>"].normalized
    assert found.added["<y>"].normalized


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ({"vocab": {"a": 0}, "merges": []}, "bpe"),
        ({"vocab": [["a", -1.0]], "unk_id": 0}, "unigram"),
        ({"vocab": {"a": 0}, "continuing_subword_prefix": "##"}, "wordpiece"),
        ({"vocab": {"a": 0}}, "wordlevel"),
    ],
)
def test_old_files_that_do_not_name_their_kind(model: dict[str, Any], kind: str) -> None:
    assert read_vocabulary(files(tokenizer={"model": model})).kind == kind


def test_plain_layouts() -> None:
    assert read_vocabulary(Files({"vocab.txt": b"[PAD]\r\nthe\ncat\n"})).ids == {
        "[PAD]": 0,
        "the": 1,
        "cat": 2,
    }
    plain = files(
        vocab={"a": 0, "b": 1}, added_tokens={"<y>": 3, "<x>": 2}, special_tokens_map={"eos_token": "<x>"}
    )
    found = read_vocabulary(plain)
    assert found.ids == {"a": 0, "b": 1, "<x>": 2, "<y>": 3}
    assert found.kind == "wordlevel"
    assert found.roles == {"eos_token": "<x>"}
    assert found.added["<x>"].special
    assert not found.added["<y>"].special
    plain.files["merges.txt"] = b"a b\n"
    assert read_vocabulary(plain).kind == "bpe"


def test_a_configuration_that_lists_added_tokens_silences_the_legacy_files() -> None:
    found = read_vocabulary(
        files(
            tokenizer={"model": BPE},
            tokenizer_config={"added_tokens_decoder": {"2": {"content": "<x>"}}, "eos_token": "<x>"},
            special_tokens_map={"eos_token": "<old>"},
            added_tokens={"<old>": 2},
        )
    )
    assert found.ids == {"a": 0, "b": 1, "<x>": 2}
    assert found.roles == {"eos_token": "<x>"}


def test_listed_added_tokens_come_in_the_order_of_their_numbers() -> None:
    listed = {"10": {"content": "<y>"}, "9": {"content": "<x>"}}
    found = read_vocabulary(
        files(tokenizer={"model": BPE}, tokenizer_config={"added_tokens_decoder": listed})
    )
    assert found.ids == {"a": 0, "b": 1, "<x>": 2, "<y>": 3}


def test_taking_tokens_out() -> None:
    found = read_vocabulary(
        files(tokenizer={"model": BPE, "added_tokens": [{"content": "<x>"}, {"content": "b"}]})
    )
    cut = without(found, ["b", "<x>"])
    assert (dict(cut.ids), dict(cut.model), dict(cut.added)) == ({"a": 0}, {"a": 0}, {})
    assert with_added(cut, [AddedToken("<x>", -1)]).ids == {"a": 0, "<x>": 1}


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b"\xff{}",
        b"{}",
        b'{"model": 3}',
        b'{"model": {"vocab": []}, "added_tokens": 1}',
        b'{"model": {"type": "BPE", "vocab": [["a", 0]]}}',
        b'{"model": {"type": "BPE", "vocab": {"a": -1}}}',
        b'{"model": {"type": "BPE", "vocab": {"a": true}}}',
        b'{"model": {"type": "BPE", "vocab": {"a": 1e3}}}',
        b'{"model": {"type": "BPE", "vocab": {"a": 99999999999999999999}}}',
        b'{"model": {"type": "BPE", "vocab": {"a": 0, "a": 1}}}',
        b'{"model": {"type": "Unigram", "vocab": {"a": 0}}}',
        b'{"model": {"type": "Unigram", "vocab": [["a"]]}}',
        b'{"model": {"type": "Unigram", "vocab": [["a", NaN]]}}',
        b'{"model": {"type": "BPE", "vocab": {"a": 0}}, "added_tokens": [{"id": 1}]}',
        b'{"model": {"type": "BPE", "vocab": {"a": 0}}, "added_tokens": [3]}',
        b"[" * 100_000,
        b'{"a":' * 80 + b"1" + b"}" * 80,
        b'{"a": ' + b"9" * 5000 + b"}",
    ],
)
def test_damaged_files_are_refused_by_name(content: bytes) -> None:
    with pytest.raises(CorruptFile) as caught:
        read_vocabulary(Files({"tokenizer.json": content}))
    (found,) = caught.value.diagnostics
    assert found.code == "CV-T002"
    assert found.where is not None
    assert found.where.file == "tokenizer.json"
    assert found.message.startswith("`tokenizer.json` ")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": {"content": "a"}}}'),
        ("tokenizer_config.json", b'{"added_tokens_decoder": []  }'),
        ("tokenizer_config.json", b'{"added_tokens_decoder": [1]}'),
        ("added_tokens.json", b'{"<x>": "two"}'),
        ("special_tokens_map.json", b"[]"),
    ],
)
def test_damaged_companions(name: str, content: bytes) -> None:
    reader = files(tokenizer={"model": BPE})
    reader.files[name] = content
    if content == b'{"added_tokens_decoder": []  }':  # empty is empty, whatever its brackets
        assert read_vocabulary(reader).size == 2
        return
    with pytest.raises(CorruptFile) as caught:
        read_vocabulary(reader)
    assert caught.value.diagnostics[0].where.file == name  # type: ignore[union-attr]


def test_nothing_to_read() -> None:
    with pytest.raises(SourceError) as caught:
        read_vocabulary(Files({"config.json": b"{}"}))
    assert caught.value.diagnostics[0].code == "CV-T001"
    with pytest.raises(SourceError) as caught:
        read_vocabulary(Files({"spiece.model": b""}))
    assert caught.value.diagnostics[0].code == "CV-T004"


def test_sentencepiece_is_asked_for_only_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without_it(name: str, *rest: Any) -> Any:
        if name == "sentencepiece":
            raise ImportError
        return original(name, *rest)

    monkeypatch.delitem(sys.modules, "sentencepiece", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_it)
    reader = files(tokenizer={"model": BPE})
    reader.files["tokenizer.model"] = b"not read"
    assert read_vocabulary(reader).size == 2
    with pytest.raises(SourceError) as caught:
        read_vocabulary(Files({"tokenizer.model": b"x"}))
    (found,) = caught.value.diagnostics
    assert (found.code, found.hint) == ("CV-T003", "pip install sentencepiece")


def test_a_file_that_only_claims_to_be_sentencepiece() -> None:
    pytest.importorskip("sentencepiece")
    with pytest.raises(CorruptFile) as caught:
        read_vocabulary(Files({"tokenizer.model": b"\x00tiktoken\xff" * 9}))
    assert caught.value.diagnostics[0].code == "CV-T002"


def test_json_is_bounded_and_printed_the_same_way() -> None:
    with pytest.raises(CorruptFile, match="at most 10"):
        load_json(b"[1, 2, 3, 4]", "x.json", Limits(json_bytes=10))
    assert load_json(b"[[1]]", "x.json", Limits(json_depth=2)) == [[1]]
    with pytest.raises(CorruptFile, match="nested"):
        load_json(b"[[[1]]]", "x.json", Limits(json_depth=2))
    assert dump_json({"b": "é", "a": 1}) == b'{\n  "b": "\xc3\xa9",\n  "a": 1\n}\n'
    assert json.loads(dump_json("\ud800")) == "\ud800"
