"""Unknown architectures: layers, vocabulary axes, ties and positions from names, shapes and config alone."""

from __future__ import annotations

from cuvee.families import identify

SHAPES = {
    "tok.embed_tokens.weight": (50, 8),
    "tok.embed_norm.weight": (8,),
    **{
        f"blk.{i}.{n}": s
        for i in range(4)
        for n, s in {
            "attention.query.weight": (8, 8),
            "attention.key.weight": (8, 8),
            "attention.value.weight": (8, 8),
            "attention.output.weight": (8, 8),
            "experts.0.w1.weight": (16, 8),
            "experts.9.w1.weight": (16, 8),
            "norm.weight": (8,),
        }.items()
    },
    "final_norm.weight": (8,),
    "lm_head.weight": (50, 8),
    "mystery": (3,),
}


def test_a_strange_decoder():
    family = identify({"vocab_size": 50, "n_layer": 4, "heads": 4, "tie_word_embeddings": True}, SHAPES)
    module = family.modules["default"]
    assert not family.known and list(family.modules) == ["default"]
    assert family.layer_count(SHAPES) == 4
    assert (module.layers_key, module.vocabulary_key) == ("n_layer", "vocab_size")
    places = {n: family.place(n) for n in SHAPES}
    assert {p.layer for p in places.values()} == {None, 0, 1, 2, 3}
    assert places["blk.3.experts.9.w1.weight"].template == "blk.{layer}.experts.9.w1.weight"
    roles = {n.removeprefix("blk.2."): p.role for n, p in places.items() if p.layer == 2}
    assert roles == {
        "attention.query.weight": "q",
        "attention.key.weight": "k",
        "attention.value.weight": "v",
        "attention.output.weight": "o",
        "experts.0.w1.weight": "expert_gate",
        "experts.9.w1.weight": "expert_gate",
        "norm.weight": "norm",
    }
    outside = {n: (p.position, p.role, p.vocabulary_axis) for n, p in places.items() if p.layer is None}
    assert outside == {
        "tok.embed_tokens.weight": ("before", "embeddings", 0),
        "tok.embed_norm.weight": ("before", "norm", None),
        "final_norm.weight": ("after", "norm", None),
        "lm_head.weight": ("after", "head", 0),
        "mystery": ("before", "other", None),
    }
    assert family.tied({"tie_word_embeddings": True}) == (("lm_head.weight", "tok.embed_tokens.weight"),)
    assert family.tied({}) == ()


def test_without_a_config_word_embeddings_tell_the_number_of_tokens():
    family = identify(None, SHAPES)
    assert family.place("lm_head.weight").vocabulary_axis == 0
    assert family.modules["default"].layers_key is None
    assert "no entry of the config" in family.note


def test_a_transposed_head_has_its_tokens_on_the_other_axis():
    family = identify({"vocab_size": 50}, {**SHAPES, "lm_head.weight": (8, 50)})
    assert family.place("lm_head.weight").vocabulary_axis == 1
    assert family.place("tok.embed_tokens.weight").vocabulary_axis == 0
    assert family.tied({"tie_word_embeddings": True}) == ()


def test_the_longest_stack_wins_then_the_one_with_most_tensors():
    towers = {f"vision.{i}.w": (2,) for i in range(6)} | {f"text.{i}.w": (2,) for i in range(7)}
    family = identify({"text": {"num_layers": 7}, "vision": {"num_layers": 6}}, towers)
    assert family.layer_count(towers) == 7
    assert family.modules["default"].layers_key == "text.num_layers"
    assert family.place("vision.3.w").layer is None
    wide = {f"deep.{i}.w": (2,) for i in range(3)} | {f"wide.{i}.{n}": (2,) for i in range(2) for n in "uvwx"}
    assert identify(None, wide).place("deep.2.w").layer == 2
    even = {f"a.{i}.w": (2,) for i in range(3)} | {f"b.{i}.{n}": (2,) for i in range(3) for n in "wx"}
    assert identify(None, even).place("b.2.x").layer == 2


def test_layers_key_is_a_whole_number_named_after_layers():
    names = {f"s.{i}.w": (2,) for i in range(4)}

    def key(config):
        return identify(config, names).modules["default"].layers_key

    assert key({"num_heads": 4, "my_layers_total": 4}) == "my_layers_total"
    assert key({"decoder_layers": 4, "num_hidden_layers": 4}) == "num_hidden_layers"
    assert key({"num_hidden_layers": 5, "num_heads": 4, "use_layers": True}) is None


def test_lists_at_the_top_and_models_without_layers():
    sequential = {"0.weight": (4, 4), "2.weight": (4, 4)}
    family = identify(None, sequential)
    assert "3 layers" in family.note and family.layer_count(sequential) == 3
    assert family.rename("2.weight", 5) == "5.weight"
    flat = {"w": (2, 2), "b": (2,)}
    family = identify(None, flat)
    assert family.layer_count(flat) == 0 and "no layers" in family.note
    assert identify(None, {}).layer_count([]) == 0


def test_unknown_classes_with_the_names_of_a_known_family_are_that_family():
    names = {
        f"model.layers.{i}.{n}.weight": (2, 2)
        for i in range(2)
        for n in ("self_attn.q_proj", "mlp.gate_proj", "input_layernorm", "post_attention_layernorm")
    }
    family = identify({"architectures": ["BrandNewForCausalLM"]}, names)
    assert family.name == "llama" and "`BrandNewForCausalLM` is not a known architecture" in family.note
