"""Changing layer counts and vocabulary sizes in config.json."""

from __future__ import annotations

import copy

import pytest

from cuvee.families import disagreements, get_path, identify, load, set_path, with_layers, with_vocabulary


def test_paths():
    config = {"a": {"b": 1}, "c": 2}
    assert (get_path(config, "a.b"), get_path(config, "a.x"), get_path(config, "c.d")) == (1, None, None)
    assert set_path(config, "a.n.m", 3) == {"a": {"b": 1, "n": {"m": 3}}, "c": 2}
    assert set_path(config, "c.d", 4)["c"] == {"d": 4}
    assert config == {"a": {"b": 1}, "c": 2}


def test_layers_are_counted_reordered_and_renumbered():
    config = {
        "num_hidden_layers": 3,
        "layer_types": ["x", "y", "z"],
        "mlp_only_layers": [1],
        "no_rope_layers": [1, 0, 1],
        "other": [1, 2, 3],
        "layers_of_another_length": [1],
    }
    before = copy.deepcopy(config)
    out = with_layers(config, load("qwen2_moe"), "default", [2, 1, 1, None, 0])
    assert out == {
        "num_hidden_layers": 5,
        "layer_types": ["z", "y", "y", "z", "x"],
        "mlp_only_layers": [1, 2],
        "no_rope_layers": [1, 0, 0, 1, 1],
        "other": [1, 2, 3],
        "layers_of_another_length": [1],
    }
    assert config == before
    every = {"num_hidden_layers": 2, "mlp_only_layers": [0, 1]}
    assert with_layers(every, load("qwen2_moe"), "default", [1, 1, 0])["mlp_only_layers"] == [0, 1, 2]


def test_each_module_has_its_own_count():
    config = {"num_layers": 2, "num_decoder_layers": 2, "vocab_size": 9}
    t5 = load("t5")
    assert with_layers(config, t5, "encoder", [0])["num_layers"] == 1
    assert with_layers(config, t5, "decoder", [0, 1, 1]) == {**config, "num_decoder_layers": 3}
    assert with_layers(config, t5, "shared", []) == config
    qwen = load("qwen3_vl")
    nested = {
        "text_config": {"num_hidden_layers": 2, "layer_types": ["a", "b"]},
        "vision_config": {"depth": 2, "deepstack_visual_indexes": [1]},
    }
    assert with_layers(nested, qwen, "vision_tower", [1, 0])["vision_config"] == {
        "depth": 2,
        "deepstack_visual_indexes": [0],
    }
    assert with_layers(nested, qwen, "text_decoder", [1])["text_config"] == {
        "num_hidden_layers": 1,
        "layer_types": ["b"],
    }


def test_keys_in_use_are_the_ones_changed():
    flat = {"architectures": ["Qwen2VLForConditionalGeneration"], "num_hidden_layers": 2, "vocab_size": 5}
    family = identify(flat, {})
    assert with_layers(flat, family, "text_decoder", [0]) == {**flat, "num_hidden_layers": 1}
    assert with_vocabulary(flat, family, 7) == {**flat, "vocab_size": 7}
    both = {"text_config": {"vocab_size": 5}, "vocab_size": 5, "model_type": "llava"}
    assert with_vocabulary(both, identify(both, {}), 7) == {
        "text_config": {"vocab_size": 7},
        "vocab_size": 7,
        "model_type": "llava",
    }
    whisper = {"model_type": "whisper", "encoder_layers": 2, "num_hidden_layers": 2, "decoder_layers": 2}
    assert with_layers(whisper, identify(whisper, {}), "encoder", [0]) == {
        **whisper,
        "encoder_layers": 1,
        "num_hidden_layers": 1,
    }


def test_a_count_left_to_the_default_is_written_out():
    assert with_layers({}, load("gemma3"), "text_decoder", [0, 1]) == {
        "text_config": {"num_hidden_layers": 2}
    }


def test_a_family_without_a_key_leaves_the_config_alone():
    family = identify({"x": 1}, {"a.0.w": (1,), "a.1.w": (1,)})
    assert with_layers({"x": 1}, family, "default", [0]) == {"x": 1}
    with pytest.raises(KeyError):
        with_layers({}, family, "decoder", [0])


def test_counts_in_the_config_are_checked_against_the_names():
    names = {f"model.layers.{i}.mlp.up_proj.weight": (1,) for i in range(3)}
    config = {"model_type": "llama", "num_hidden_layers": 2}
    (found,) = disagreements(config, identify(config, names), names)
    assert (found.module, found.key, found.in_config, found.in_names) == (
        "default",
        "num_hidden_layers",
        2,
        3,
    )
    assert disagreements({**config, "num_hidden_layers": 3}, identify(config, names), names) == []
    assert disagreements({}, load("llama"), names) == []
