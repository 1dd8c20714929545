"""Names without any model: files of families, wrappers, experts, odd and hostile names."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cuvee.families import ROLES, canonical_names, family_names, identify, load
from cuvee.families.globs import glob
from cuvee.families.match import _index
from cuvee.families.read import DATA, GENERIC, facts, generic_roles

# Module names and layer-count keys that recipes with `modules:` rely on: facts of MergeKit 0.1.5.
MODULES = {
    "gemma3": {
        "text_decoder": "text_config.num_hidden_layers",
        "vision_tower": "vision_config.num_hidden_layers",
        "multi_modal_projector": None,
    },
    "mistral3": {
        "text_decoder": "text_config.num_hidden_layers",
        "vision_tower": "vision_config.num_hidden_layers",
        "multi_modal_projector": None,
    },
    "qwen2_vl": {
        "text_decoder": "num_hidden_layers",
        "vision_tower": "vision_config.depth",
        "multi_modal_projector": None,
    },
    "qwen2_5_vl": {
        "text_decoder": "text_config.num_hidden_layers",
        "vision_tower": "vision_config.depth",
        "multi_modal_projector": None,
    },
    "qwen3_vl": {
        "text_decoder": "text_config.num_hidden_layers",
        "vision_tower": "vision_config.depth",
        "multi_modal_projector": None,
    },
    "qwen3_vl_moe": {
        "text_decoder": "text_config.num_hidden_layers",
        "vision_tower": "vision_config.depth",
        "multi_modal_projector": None,
    },
    "t5": {"decoder": "num_decoder_layers", "encoder": "num_hidden_layers", "shared": None},
    "whisper": {"decoder": "decoder_layers", "encoder": "encoder_layers"},
}


@pytest.mark.parametrize("name", MODULES)
def test_module_names_are_those_of_recipes_in_use(name):
    family = load(name)
    assert set(family.modules) == set(MODULES[name])
    for module, key in MODULES[name].items():
        part = family.modules[module]
        assert key in (part.layers_key, *part.layers_also)


# Families of diffusion models: their modules are the components of a pipeline.
COMPONENTS = {
    "unet",
    "transformer",
    "vae",
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "encoder",
    "other",
}
DIFFUSION = [n for n in family_names() if set(load(n).modules) <= COMPONENTS]


def test_families_of_diffusion_models_are_known_by_their_modules():
    assert {"sd1", "sd2", "sdxl", "sd3", "flux", "sd_unet", "sdxl_unet", "autoencoder_kl"} < set(DIFFUSION)


@pytest.mark.parametrize("name", [n for n in family_names() if n not in MODULES and n not in DIFFUSION])
def test_other_families_have_one_module_or_two_encoders(name):
    modules = set(load(name).modules)
    two = {"vision_model", "text_model"}, {"text_decoder", "vision_tower", "multi_modal_projector"}
    assert modules == {"default"} or modules in two


def test_files_use_documented_roles_only():
    used = {g.value for g in generic_roles()}
    for name in family_names():
        for module in load(name).modules.values():
            used |= {g.value for g in (*module.layer_roles, *module.before_roles, *module.after_roles)}
    assert used <= set(ROLES)
    assert set(ROLES) - used <= {"other"}


def test_first_lines_agree_with_the_parsed_files():
    classes, types = {}, {}
    for name in family_names():
        own = tomllib.loads((DATA / f"{name}.toml").read_text(encoding="utf-8"))
        assert name in DIFFUSION or (own["architectures"] and own["model_types"]), name
        for c in own.get("architectures", ()):
            assert classes.setdefault(c, name) == name, f"{c} is in two families"
        for t in own.get("model_types", ()):
            assert types.setdefault(t, name) == name, f"{t} is in two families"
    assert _index() == (classes, types)
    assert GENERIC not in family_names()


def test_files_hold_no_unknown_keys():
    top = {
        "architectures", "model_types", "main", "optional", "heads", "signature", "tied", "modules"
    }  # fmt: skip
    module = {
        "prefixes", "stack", "layers_key", "layers_also", "vocabulary_key", "vocabulary_also",
        "per_layer_keys", "index_keys", "vocabulary", "layer", "before", "after", "blocks",
    }  # fmt: skip
    for name in family_names():
        data = facts(name)
        assert set(data) <= top, name
        assert set(data.get("signature", ())) <= {"has", "lacks"}
        assert set(data.get("tied", ())) <= {"default", "pairs", "always"}
        for part in data["modules"].values():
            assert set(part) <= module, name
        assert load(name).main in data["modules"]


def test_nothing_heavy_is_imported():
    code = (
        "import sys; from cuvee.families import identify, with_layers;"
        "identify({'model_type': 'llama'}, {'model.layers.0.self_attn.q_proj.weight': (2, 2)});"
        "identify(None, {'a.0.b': (1,)});"
        "print([m for m in ('torch', 'numpy', 'transformers', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@given(st.sampled_from(family_names()), st.text(max_size=60))
@example("llama", "")
@example("llama", "model.layers.")
@example("llama", "model.layers.3")
@example("llama", "model.layers.٣.self_attn.q_proj.weight")
@example("llama", f"model.layers.{'9' * 400}.mlp.up_proj.weight")
@example("llama", "model.layers.007.mlp.up_proj.weight")
@example("t5", "encoder.block.-1.layer.0")
@example("gemma3", "language_model.model.layers.{layer}.x")
def test_place_never_fails(family, name):
    found = load(family)
    place = found.place(name)
    assert place.name == name and place.role in ROLES and place.module in found.modules
    assert (place.layer is None) == (place.position != "layer")
    if place.layer is None:
        assert found.rename(name, 1) == name
    found.optional(name), found.head(name)


@settings(max_examples=600)
@given(st.text("ab*", max_size=6), st.text("ab", max_size=6))
@example("ab*ba", "aba")
@example("*a*a*", "ba")
def test_globs_agree_with_regular_expressions(pattern, name):
    import re

    oracle = re.fullmatch(".*".join(re.escape(p) for p in pattern.split("*")), name)
    assert glob(pattern).matches(name) == bool(oracle)


def test_an_index_that_is_no_layer_is_not_taken_for_one():
    llama = load("llama")
    for name in ("model.layers.٣.mlp.up_proj.weight", "model.layers.007.x", f"model.layers.{'1' * 7}.x"):
        assert llama.place(name).layer is None
    assert llama.layer_count(["model.layers.0.x", "model.layers.12.x", "layers.x", "model.norm.weight"]) == 13
    assert llama.layer_count(["model.layers.0.x"], "no such module") == 0


def test_expert_numbers_are_not_layers():
    for name, tensor, role in (
        ("mixtral", "model.layers.1.block_sparse_moe.experts.7.w3.weight", "expert_up"),
        ("mixtral", "model.layers.1.mlp.experts.gate_up_proj", "expert_gate_up"),
        ("qwen3_moe", "model.layers.1.mlp.experts.7.down_proj.weight", "expert_down"),
        ("qwen2_moe", "model.layers.1.mlp.experts.7.gate_proj.weight", "expert_gate"),
        ("qwen3_vl_moe", "model.language_model.layers.1.mlp.experts.down_proj", "expert_down"),
    ):
        place = load(name).place(tensor)
        assert (place.layer, place.role) == (1, role), tensor
        assert load(name).rename(tensor, 4) == tensor.replace(".1.", ".4.")


VIT, PROJECTOR = "encoder.layers.2.mlp", "multi_modal_projector"


def test_old_spellings_mean_the_same():
    for name, tensor, module, layer, role in (
        ("gemma3", f"vision_tower.vision_model.{VIT}.fc1.bias", "vision_tower", 2, "up"),
        ("llava", f"model.vision_tower.vision_tower.vision_model.{VIT}.fc2.bias", "vision_tower", 2, "down"),
        ("llava", "model.mm_projector.0.weight", PROJECTOR, None, "projector"),
        ("llava", "language_model.lm_head.weight", "text_decoder", None, "head"),
        ("gpt2", "h.5.attn.c_attn.bias", "default", 5, "qkv"),
        ("bert", "bert.encoder.layer.3.output.LayerNorm.gamma", "default", 3, "norm"),
        ("gpt_neox", "gpt_neox.layers.3.attention.rotary_emb.inv_freq", "default", 3, "buffer"),
        ("qwen2_vl", "visual.merger.mlp.0.weight", PROJECTOR, None, "projector"),
        ("qwen3_vl", "model.visual.deepstack_merger_list.2.norm.bias", PROJECTOR, None, "projector"),
        ("deberta_v2", "lm_predictions.lm_head.bias", "default", None, "head"),
    ):  # fmt: skip
        place = load(name).place(tensor)
        assert (place.module, place.layer, place.role) == (module, layer, role), tensor


def test_unknown_names_go_to_the_module_whose_prefix_they_carry():
    gemma = load("gemma3")
    for tensor, module, position, role in (
        ("vision_tower.new_thing", "vision_tower", "before", "other"),
        ("model.vision_tower.last_layernorm.weight", "vision_tower", "after", "norm"),
        ("model.multi_modal_projector.anything", "multi_modal_projector", "before", "projector"),
        ("language_model.model.new_thing", "text_decoder", "before", "other"),
        ("elsewhere", "text_decoder", "before", "other"),
        ("value_head.weight", "text_decoder", "after", "classifier"),
    ):
        place = gemma.place(tensor)
        assert (place.module, place.position, place.role, place.layer) == (module, position, role, None)


def test_the_spelling_in_use_comes_first():
    for prefix in ("language_model.model.", "model.language_model.", "model."):
        names = {f"{prefix}layers.0.mlp.up_proj.weight": (2, 2)}
        assert identify({"model_type": "gemma3"}, names).modules["text_decoder"].prefixes[0] == prefix


def test_optional_and_head_names():
    bert, llama = load("bert"), load("llama")
    assert bert.optional("bert.embeddings.position_ids") and bert.optional("bert.pooler.dense.bias")
    assert bert.optional("cls.predictions.decoder.weight")
    assert not bert.optional("bert.embeddings.word_embeddings.weight")
    assert llama.optional("model.layers.0.self_attn.rotary_emb.inv_freq") and llama.optional("lm_head.weight")
    assert load("gpt2").optional("h.0.attn.bias") and not load("gpt2").optional("h.0.attn.c_attn.bias")
    assert bert.head("classifier.weight") and bert.head("bert.pooler.dense.weight")
    assert not bert.head("cls.predictions.decoder.weight") and not llama.head("lm_head.weight")
    assert llama.head("score.weight") and not llama.head("model.norm.weight")


def test_ties_follow_the_config_then_the_family():
    llama, gemma, vision = load("llama"), load("gemma"), load("llava")
    pair = (("lm_head.weight", "model.embed_tokens.weight"),)
    assert llama.tied({}) == () and gemma.tied({}) == pair
    assert (
        llama.tied({"tie_word_embeddings": True}) == pair and gemma.tied({"tie_word_embeddings": False}) == ()
    )
    assert vision.tied({"text_config": {"tie_word_embeddings": True}}) == vision.tied_pairs
    assert vision.tied({"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}) == ()
    assert gemma.tied({"architectures": ["GemmaForSequenceClassification"]}) == ()
    assert load("xlm_roberta").tied({"architectures": ["XLMRobertaForTokenClassification"]}) == ()


def test_names_of_wrappers_are_taken_off():
    plain = ["model.layers.0.w", "lm_head.weight"]
    for prefix in (
        "module.",
        "_orig_mod.",
        "base_model.model.",
        "module._orig_mod.",
        "_orig_mod.module.module.",
    ):
        assert canonical_names([prefix + n for n in plain]) == {prefix + n: n for n in plain}
    assert canonical_names(["model._orig_mod.layers.0._fsdp_wrapped_module.w"]) == {
        "model._orig_mod.layers.0._fsdp_wrapped_module.w": "model.layers.0.w"
    }
    assert canonical_names(["n_averaged", "module.w"]) == {"n_averaged": "n_averaged", "module.w": "w"}


@pytest.mark.parametrize(
    "names",
    [
        ["module.a", "b"],  # not all carry it
        ["a._orig_mod.w", "a.w"],  # two would become one
        ["my_orig_mod.w", "submodule.w"],  # only part of a word
        ["module."],  # nothing would be left
        [],
    ],
)
def test_names_are_left_alone_where_the_rule_does_not_hold(names):
    assert canonical_names(names) == {n: n for n in names}


@given(
    st.lists(st.text("ab.", min_size=1, max_size=6), unique=True), st.sampled_from(["module.", "_orig_mod."])
)
def test_cleaning_is_one_to_one_and_undoes_a_wrapper(names, wrapper):
    assert canonical_names([wrapper + n for n in names]) == {wrapper + n: n for n in names}
    found = canonical_names(names)
    assert list(found) == names and len(set(found.values())) == len(names)


def test_config_that_lies_about_its_family_is_not_believed():
    names = {f"h.{i}.attn.c_attn.weight": (4, 12) for i in range(2)} | {"wpe.weight": (8, 4)}
    family = identify({"architectures": ["LlamaForCausalLM"], "n_layer": 2}, names)
    assert not family.known and "`llama`" in family.note and family.layer_count(names) == 2


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": "LlamaForCausalLM"},
        {"architectures": [{"a": 1}, None, 3]},
        {"architectures": {"a": 1}, "model_type": ["llama"]},
        {"model_type": 7, "text_config": "none", "tie_word_embeddings": "yes"},
        {"architectures": [], "text_config": {"num_hidden_layers": [1]}},
    ],
)
def test_a_config_of_wrong_types_is_only_no_help(config):
    names = {"model.layers.0.x": (1,), "model.layers.1.x": (1,)}
    family = identify(config, names)
    assert not family.known and family.layer_count(names) == 2
    assert family.tied(config) == () and identify(config, {}).name == "inferred"


def test_control_characters_of_a_config_do_not_reach_the_note():
    note = identify({"architectures": ["\x1b[31mX\u202e"]}, {"a.0.b": (1,)}).note
    assert "\x1b" not in note and "\u202e" not in note
