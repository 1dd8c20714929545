"""The files a plan writes load in transformers and give every token the planned id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bundle_fixtures import ROLES, Files, folder_of, trained, with_tokens

from cuvee.bundle.vocabulary.plan import VocabularyPlan, plan_vocabulary
from cuvee.bundle.vocabulary.read import read_vocabulary
from cuvee.bundle.vocabulary.write import role_ids, tokenizer_files
from cuvee.recipe.model import TokenRule, Vocabulary

KINDS = ("bpe", "wordpiece", "unigram")
pytestmark = pytest.mark.transformers


def planned(
    folders: dict[str, Files], source: str, rows: dict[str, int] | None = None, **spec: Any
) -> VocabularyPlan:
    vocabularies = {name: read_vocabulary(files) for name, files in folders.items()}
    sizes = {name: vocabulary.size for name, vocabulary in vocabularies.items()}
    return plan_vocabulary(vocabularies, {**sizes, **(rows or {})}, "base", Vocabulary(source, **spec))


def loaded(folder: Path, plan: VocabularyPlan, donor: Files) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(Files(tokenizer_files(plan, donor)).save(folder))


@pytest.mark.parametrize("kind", KINDS)
def test_reading_gives_the_ids_transformers_gives(kind: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = with_tokens(trained(kind, 60), "<|end|>", "the")
    # One token only the configuration lists, one role whose token is nowhere else.
    extra = {"content": "<x>", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False}
    folder = folder_of(
        tokenizer,
        pad_token="[PAD]",
        extra_special_tokens=["<image>"],
        added_tokens_decoder={"62": {**extra, "special": True}},
    )
    theirs = AutoTokenizer.from_pretrained(folder.save(tmp_path / "model"))
    ours = read_vocabulary(folder)
    assert ours.ids == theirs.get_vocab()
    assert {t.content: t.id for t in ours.added.values()} == theirs.added_tokens_encoder
    assert ours.size == len(theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_union_loads_with_the_planned_ids(kind: str, tmp_path: Path) -> None:
    folders = {
        "base": folder_of(trained(kind, 48)),
        "chat": folder_of(with_tokens(trained(kind, 48), "<|im_start|>", "<|im_end|>")),
        "other": folder_of(with_tokens(trained(kind, 60, seed=2), "<tool>", special=False, lstrip=True)),
    }
    plan = planned(folders, "union")
    tokenizer = loaded(tmp_path / "out", plan, folders["base"])
    assert tokenizer.get_vocab() == plan.output.ids
    assert len(tokenizer) == plan.output.size
    for name, vocabulary in plan.vocabularies.items():
        missing = [token for token in vocabulary.ids if token not in plan.output.ids]
        assert not missing, name
    assert tokenizer.added_tokens_decoder[plan.output.ids["<tool>"]].lstrip
    assert tokenizer.added_tokens_decoder[plan.output.ids["<|im_start|>"]].special
    assert tokenizer.eos_token_id == role_ids(plan)["eos_token"]
    start = plan.output.ids["<|im_start|>"]
    assert start in tokenizer("cat <|im_start|>", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_base_files_are_copied_byte_for_byte(kind: str, tmp_path: Path) -> None:
    folders = {"base": folder_of(trained(kind, 50)), "b": folder_of(trained(kind, 50, seed=1))}
    folders["base"].files["model.safetensors"] = b"weights"
    folders["base"].files["README.md"] = b"card"
    plan = planned(folders, "base")
    written = tokenizer_files(plan, folders["base"])
    assert written == {
        name: folders["base"].files[name] for name in ("tokenizer.json", "tokenizer_config.json")
    }
    assert not plan.edited


def test_tokens_beyond_the_embedding_leave_every_file(tmp_path: Path) -> None:
    tokenizer = with_tokens(trained("bpe", 60), "<|a|>", "<pad>")
    folders = {"base": folder_of(tokenizer, pad_token="<pad>"), "b": folder_of(trained("bpe", 60))}
    rows = 55  # the last tokens of the model and both added ones have no row
    plan = planned(folders, "base", {"base": rows})
    result = loaded(tmp_path / "out", plan, folders["base"])
    assert sorted(result.get_vocab().values()) == list(range(rows))
    assert result.pad_token is None
    assert [d.code for d in plan.diagnostics] == ["CV-T012"]
    words = "the cat sat on the mat with another cat"
    assert all(row < rows for row in result(words)["input_ids"])
    # What remains is split as the same training stopped earlier would.
    assert result(words)["input_ids"] == trained("bpe", rows).encode(words).ids


def test_a_union_keeps_the_role_of_a_token_beyond_the_embedding(tmp_path: Path) -> None:
    tokenizer = with_tokens(trained("bpe", 60), "<|a|>", "<pad>")
    folders = {"base": folder_of(tokenizer, pad_token="<pad>"), "b": folder_of(trained("bpe", 60))}
    plan = planned(folders, "union", {"base": 60})
    result = loaded(tmp_path / "out", plan, folders["base"])
    assert result.get_vocab() == plan.output.ids
    assert (result.pad_token, result.pad_token_id) == ("<pad>", 60)
    assert "CV-T011" in [d.code for d in plan.diagnostics]  # no model has a row for it


def test_tokens_of_the_recipe_are_added(tmp_path: Path) -> None:
    folders = {"base": folder_of(trained("bpe", 50)), "b": folder_of(trained("bpe", 50, seed=1))}
    plan = planned(folders, "base", tokens={"<new>": TokenRule(zero=True), "<s>": TokenRule("b")})
    result = loaded(tmp_path / "out", plan, folders["base"])
    assert result.get_vocab() == plan.output.ids
    assert result.convert_tokens_to_ids("<new>") == 50
    assert 50 in result("cat<new>cat")["input_ids"]


def test_legacy_files_follow_the_union(tmp_path: Path) -> None:
    base = folder_of(trained("bpe", 50))
    base.files["special_tokens_map.json"] = json.dumps(ROLES).encode()
    base.files["added_tokens.json"] = b"{}"
    folders = {"base": base, "b": folder_of(with_tokens(trained("bpe", 50), "<|im_end|>"))}
    plan = planned(folders, "union")
    written = tokenizer_files(plan, base)
    assert json.loads(written["added_tokens.json"]) == {"<|im_end|>": 50}
    assert json.loads(written["special_tokens_map.json"]) == ROLES
    assert loaded(tmp_path / "out", plan, base).get_vocab() == plan.output.ids


def test_a_decoder_in_the_configuration_follows_the_union(tmp_path: Path) -> None:
    base = folder_of(trained("bpe", 50))
    config = json.loads(base.files["tokenizer_config.json"])
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    config["added_tokens_decoder"] = {str(i): {"content": t, **flags} for i, t in enumerate(ROLES.values())}
    base.files["tokenizer_config.json"] = json.dumps(config).encode()
    folders = {"base": base, "b": folder_of(with_tokens(trained("bpe", 50), "<|im_end|>"))}
    plan = planned(folders, "union")
    written = json.loads(tokenizer_files(plan, base)["tokenizer_config.json"])
    assert written["added_tokens_decoder"]["50"] == {"content": "<|im_end|>", **flags}
    assert loaded(tmp_path / "out", plan, base).get_vocab() == plan.output.ids


@pytest.mark.parametrize("layout", ["wordpiece", "bpe"])
def test_folders_without_a_tokenizer_json(layout: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    vocab = trained(layout, 50).get_vocab()
    ordered = sorted(vocab, key=vocab.__getitem__)
    if layout == "wordpiece":
        config = {"tokenizer_class": "BertTokenizer", "unk_token": "<unk>", "do_lower_case": False}
        roles = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<s>", "mask_token": "<unk>"}
        plain = {"vocab.txt": "\n".join(ordered).encode()}
    else:
        model = json.loads(trained(layout, 50).to_str())["model"]
        merges = "\n".join(" ".join(pair) for pair in model["merges"])
        config, roles = {"tokenizer_class": "GPT2Tokenizer"}, ROLES
        plain = {
            "vocab.json": json.dumps(vocab).encode(),
            "merges.txt": f"#version: 0.2\n{merges}\n".encode(),
        }
    base = Files({**plain, "tokenizer_config.json": json.dumps({**config, **roles}).encode()})
    folders = {"base": base, "b": folder_of(with_tokens(trained(layout, 50), "<|im_end|>"))}
    assert AutoTokenizer.from_pretrained(base.save(tmp_path / "in")).get_vocab() == read_vocabulary(base).ids
    plan = planned(folders, "union")
    result = loaded(tmp_path / "out", plan, base)
    assert result.get_vocab() == plan.output.ids
    assert result.added_tokens_decoder[plan.output.ids["<|im_end|>"]].special


def test_roles_of_the_legacy_map_move_into_a_configuration_that_silences_it(tmp_path: Path) -> None:
    vocab = {"<unk>": 0, "a": 1, "</s>": 2}
    base = Files(
        {
            "vocab.txt": "\n".join(vocab).encode(),
            "tokenizer_config.json": b'{"tokenizer_class": "BertTokenizer"}',
            "special_tokens_map.json": b'{"sep_token": "</s>", "unk_token": "<unk>"}',
        }
    )
    folders = {"base": base, "b": folder_of(with_tokens(trained("wordpiece", 30), "<|im_end|>"))}
    written = tokenizer_files(planned(folders, "union"), base)
    config = json.loads(written["tokenizer_config.json"])
    assert (config["sep_token"], config["unk_token"]) == ("</s>", "<unk>")
    assert "<|im_end|>" in {token["content"] for token in config["added_tokens_decoder"].values()}


@pytest.mark.parametrize("cls", ["LlamaTokenizer", "Qwen2Tokenizer", "PreTrainedTokenizerFast"])
def test_classes_that_rebuild_their_tokenizer_agree(cls: str, tmp_path: Path) -> None:
    """Some classes take the vocabulary out of tokenizer.json and add the added tokens one by one again."""
    folders = {
        "base": folder_of(with_tokens(trained("bpe", 50), "<|endoftext|>"), tokenizer_class=cls),
        "b": folder_of(with_tokens(trained("bpe", 60, seed=1), "<|im_end|>")),
    }
    plan = planned(folders, "union")
    assert loaded(tmp_path / "out", plan, folders["base"]).get_vocab() == plan.output.ids


def test_sentencepiece_alone(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    from bundle_fixtures import TEXT
    from transformers import AutoTokenizer

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 20),
        model_prefix=str(tmp_path / "sp"),
        vocab_size=60,
        model_type="bpe",
        minloglevel=2,
    )
    config = {"tokenizer_class": "LlamaTokenizer", **ROLES}
    base = Files(
        {
            "tokenizer.model": (tmp_path / "sp.model").read_bytes(),
            "tokenizer_config.json": json.dumps(config).encode(),
            "added_tokens.json": b'{"<pad>": 60}',
        }
    )
    ours = read_vocabulary(base)
    assert ours.kind == "sentencepiece"
    assert AutoTokenizer.from_pretrained(base.save(tmp_path / "in")).get_vocab() == ours.ids
    folders = {"base": base, "b": folder_of(with_tokens(trained("bpe", 30), "<|im_end|>"))}
    plan = planned(folders, "union", {"base": 61})
    written = tokenizer_files(plan, base)
    assert written["tokenizer.model"] == base.files["tokenizer.model"]
    assert json.loads(written["added_tokens.json"])["<|im_end|>"] == plan.output.ids["<|im_end|>"]
    assert loaded(tmp_path / "out", plan, base).get_vocab() == plan.output.ids
    cut = planned({"base": base, "b": base}, "base", {"base": 60, "b": 60})
    assert loaded(tmp_path / "cut", cut, base).get_vocab() == cut.output.ids
    assert "<pad>" not in cut.output.ids


def test_the_same_plan_gives_the_same_bytes() -> None:
    folders = {"base": folder_of(trained("bpe", 50)), "b": folder_of(trained("bpe", 60, seed=1))}
    once = tokenizer_files(planned(folders, "union"), folders["base"])
    again = tokenizer_files(planned(folders, "union"), folders["base"])
    assert list(once.items()) == list(again.items())
