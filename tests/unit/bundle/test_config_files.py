"""config.json and generation_config.json: what changes, what must not survive, ids that keep meaning."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from cuvee.bundle.config_files import DELETE, generation_config, updated_config, with_special_ids
from cuvee.errors import PlanError

CONFIG: dict[str, Any] = {
    "_name_or_path": "/home/someone/secret",
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 4,
    "torch_dtype": "bfloat16",
    "quantization_config": {"quant_method": "fp8"},
    "text_config": {"vocab_size": 10, "torch_dtype": "float16", "quantization_config": {}},
    "vision_config": {"dtype": None},
    "tie_word_embeddings": True,
    "bos_token_id": 1,
}


def test_edits_by_path_and_everything_else_as_it_was() -> None:
    before = copy.deepcopy(CONFIG)
    edits = {
        "num_hidden_layers": 6,
        "text_config.vocab_size": 12,
        "a.b": 1,
        "bos_token_id": DELETE,
        "x.y": DELETE,
    }
    assert updated_config(CONFIG, edits, "float32", tied=False) == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": 6,
        "torch_dtype": "float32",
        "dtype": "float32",
        "text_config": {"vocab_size": 12, "torch_dtype": "float32"},
        "vision_config": {"dtype": None},
        "tie_word_embeddings": False,
        "a": {"b": 1},
    }
    assert before == CONFIG


def test_what_the_caller_did_not_change_stays() -> None:
    kept = updated_config(CONFIG, {}, "bfloat16", dequantised=False)
    assert kept["quantization_config"] == {"quant_method": "fp8"}
    assert kept["tie_word_embeddings"] is True
    plain = updated_config({"model_type": "x"}, {}, "float16")
    assert plain == {"model_type": "x", "dtype": "float16"}


def test_a_path_through_a_number() -> None:
    with pytest.raises(PlanError) as caught:
        updated_config(CONFIG, {"num_hidden_layers.x": 1}, "float32")
    (found,) = caught.value.diagnostics
    assert (found.code, found.message) == (
        "CV-T032",
        "`num_hidden_layers.x` cannot be set, because `num_hidden_layers` is not an object",
    )


def test_special_ids_follow_their_tokens() -> None:
    before = {0: "<pad>", 1: "<s>", 2: "</s>", 3: "<eot>"}
    after = {"<s>": 5, "</s>": 6, "<|end|>": 9}
    config = {
        "bos_token_id": 1,
        "eos_token_id": [2, 3, 77],
        "pad_token_id": 0,
        "unk_token_id": None,
        "text_config": {"eos_token_id": 3, "bos_token_id": True},
        "max_length": 2,
    }
    moved, notes = with_special_ids(config, before, after, {"eos_token": 9})
    assert moved == {
        "bos_token_id": 5,
        "eos_token_id": [6, 9, 77],
        "unk_token_id": None,
        "text_config": {"eos_token_id": 9, "bos_token_id": True},
        "max_length": 2,
    }
    assert [d.message for d in notes] == [
        "`eos_token_id` meant `<eot>`, which the output's tokenizer does not have; 9 stands in",
        "`pad_token_id` meant `<pad>`, which the output's tokenizer does not have; the key is left out",
        "`eos_token_id` meant `<eot>`, which the output's tokenizer does not have; 9 stands in",
    ]
    assert with_special_ids(config, before, {t: i for i, t in before.items()}, {}) == (config, [])


def test_the_generation_config_of_the_first_that_has_one() -> None:
    found = generation_config({"base": None, "a": {"_name_or_path": "x", "top_p": 0.9}, "b": {"top_p": 1}})
    assert found == ("a", {"top_p": 0.9})
    assert generation_config({"base": None}) is None


@pytest.mark.transformers
def test_transformers_reads_the_edited_config() -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(num_hidden_layers=2, vocab_size=32).to_dict()
    edited = updated_config(config, {"num_hidden_layers": 3, "vocab_size": 40}, "bfloat16", tied=True)
    again = LlamaConfig.from_dict(edited)
    assert (again.num_hidden_layers, again.vocab_size, str(again.dtype)) == (3, 40, "torch.bfloat16")
    assert again.tie_word_embeddings
