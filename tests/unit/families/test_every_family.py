"""Every known family against transformers itself: tiny models on disk, live models, resized models."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from cuvee.families import disagreements, family_names, get_path, identify, with_layers, with_vocabulary
from cuvee.families.family import recognised
from cuvee.testing.tiny_configs import TINY
from cuvee.testing.tiny_models import FAMILIES, load, logits

pytestmark = pytest.mark.transformers

VOCAB, LAYERS = 96, 3

# What a layer holds, by the design of the architecture; every layer must have each of them.
_SPLIT = {"q", "k", "v", "o"}
_FUSED = {"qkv", "o"}
_GATED = {"gate", "up", "down"}
_PLAIN = {"up", "down"}
_EXPERTS = {"router", "expert_gate", "expert_up", "expert_down"}
_SHARED = {"shared_router", "shared_gate", "shared_up", "shared_down"}
_CROSS = {"cross_q", "cross_k", "cross_v", "cross_o"}
_QK_NORM = {"q_norm", "k_norm"}
_LLAMA = _SPLIT | _GATED | {"norm"}
_VISION = _SPLIT | _PLAIN | {"norm"}
LAYER_ROLES: dict[str, dict[str, set[str]]] = {
    **{
        f: {"default": _LLAMA}
        for f in ("llama", "mistral", "qwen2", "gemma", "gemma2", "cohere2", "stablelm", "granite")
    },
    **{f: {"default": _LLAMA | _QK_NORM} for f in ("qwen3", "gemma3_text", "olmo2", "cohere")},
    **{
        f: {"default": _VISION}
        for f in ("bert", "roberta", "xlm_roberta", "distilbert", "vit", "opt", "gptj")
    },
    **{f: {"default": _FUSED | _PLAIN | {"norm"}} for f in ("gpt2", "gpt_neox", "falcon", "bloom", "mpt")},
    "mixtral": {"default": _SPLIT | _EXPERTS | {"norm"}},
    "qwen2_moe": {"default": _SPLIT | _EXPERTS | _SHARED | {"norm"}},
    "qwen3_moe": {"default": _SPLIT | _EXPERTS | _QK_NORM | {"norm"}},
    "gemma3": {"text_decoder": _LLAMA | _QK_NORM, "vision_tower": _VISION},
    "phi3": {"default": _FUSED | {"gate_up", "down", "norm"}},
    "olmo": {"default": _SPLIT | _GATED},
    "deberta": {"default": _FUSED | _PLAIN | {"q", "v", "position_k", "position_q", "norm"}},
    "deberta_v2": {"default": _VISION},
    "t5": {"encoder": _LLAMA, "decoder": _LLAMA | _CROSS},
    "whisper": {"encoder": _VISION, "decoder": _VISION | _CROSS},
    "clip": {"text_model": _VISION, "vision_model": _VISION},
    "llava": {"text_decoder": _LLAMA, "vision_tower": _VISION},
    "llava_next": {"text_decoder": _LLAMA, "vision_tower": _VISION},
    "mistral3": {"text_decoder": _LLAMA, "vision_tower": _LLAMA},
    "qwen2_vl": {"text_decoder": _LLAMA, "vision_tower": _FUSED | _PLAIN | {"norm"}},
    "qwen2_5_vl": {"text_decoder": _LLAMA, "vision_tower": _FUSED | _GATED | {"norm"}},
    "qwen3_vl": {"text_decoder": _LLAMA | _QK_NORM, "vision_tower": _FUSED | _PLAIN | {"norm"}},
}
SAME_NAMES = {"gemma": "llama", "mistral": "llama", "granite": "llama", "xlm_roberta": "roberta"}


def everything(built):
    return identify(built.config, built.shapes)


def test_all_families_have_a_tiny_model_and_expected_roles():
    # siglip and the two others only lend modules to families above, or are variants of them
    diffusion = {"sd1", "sd2", "sdxl", "sd3", "flux", "autoencoder_kl"}  # tested with pipelines
    diffusion |= {"sd_unet", "sdxl_unet", "sd3_transformer", "flux_transformer"}
    assert set(family_names()) - set(FAMILIES) - diffusion == {"siglip", "qwen3_vl_moe"}
    assert set(LAYER_ROLES) == set(FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_tensor_has_its_place(name, build):
    built = build(name, layers=LAYERS)
    family = everything(built)
    assert (family.name, family.known, family.note) == (name, True, None)
    for tensor in built.shapes:
        place = family.place(tensor)
        assert recognised(family, tensor) == place, f"{tensor} is not listed by {name}"
        assert place.role != "other", tensor
        assert (place.layer is None) == (place.position != "layer") == ("{layer}" not in place.template)
        if place.layer is not None:
            assert place.template.replace("{layer}", str(place.layer)) == tensor


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_are_counted_and_hold_their_roles(name, build):
    built = build(name, layers=LAYERS)
    family = everything(built)
    places = [family.place(t) for t in built.shapes]
    for module, roles in LAYER_ROLES[name].items():
        assert family.layer_count(built.shapes, module) == LAYERS
        for layer in range(LAYERS):
            held = {p.role for p in places if p.module == module and p.layer == layer}
            assert roles <= held, (module, layer, roles - held)
    stacked = {p.module for p in places if p.layer is not None}
    assert stacked == set(LAYER_ROLES[name])
    assert disagreements(built.config, family, built.shapes) == []
    assert all(get_path(built.config, family.modules[m].layers_key) == LAYERS for m in stacked)


@pytest.mark.parametrize("name", FAMILIES)
def test_vocabulary_axes_are_those_that_grow_with_the_vocabulary(name, build):
    built, larger = build(name, layers=LAYERS), build(name, layers=LAYERS, vocab=VOCAB + 7)
    family = everything(built)
    for tensor, shape in built.shapes.items():
        grown = [i for i, (a, b) in enumerate(zip(shape, larger.shapes[tensor], strict=True)) if a != b]
        assert grown == [a for a in [family.place(tensor).vocabulary_axis] if a is not None], tensor


@pytest.mark.parametrize("name", FAMILIES)
def test_rename_goes_to_another_layer_and_back(name, build):
    built = build(name, layers=LAYERS)
    family = everything(built)
    for tensor in built.shapes:
        place = family.place(tensor)
        moved = family.place(family.rename(tensor, 11))
        if place.layer is None:
            assert moved == place
        else:
            assert (moved.layer, moved.role, moved.template) == (11, place.role, place.template)
            assert family.rename(moved.name, place.layer) == tensor


@pytest.mark.parametrize("tied", [None, True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_tied_pairs_are_the_tensors_a_live_model_shares(name, tied, build):
    built = build(name, tied=tied)
    live = load(built.folder).state_dict()
    pairs = identify(built.config, {n: tuple(t.shape) for n, t in live.items()}).tied(built.config)
    owners = {t.data_ptr(): n for n, t in reversed(live.items())}
    shared = Counter(t.data_ptr() for t in live.values())
    expected = {
        frozenset((n, m))
        for n, t in live.items()
        for m in live
        if shared[t.data_ptr()] > 1
        if n != m and live[m].data_ptr() == t.data_ptr()
    }
    ours = {p: frozenset(p) for p in pairs if p[0] in live}
    assert set(ours.values()) <= expected
    assert {n for pair in expected for n in pair} == {n for pair in ours for n in pair}, owners
    on_disk = everything(built)
    for derived, owner in on_disk.tied(built.config):
        assert owner in built.shapes and derived not in built.shapes
        assert on_disk.optional(derived)


@pytest.mark.parametrize("name", FAMILIES)
def test_names_of_live_models_mean_the_same(name, build):
    built = build(name, layers=LAYERS)
    live = {n: tuple(t.shape) for n, t in load(built.folder).state_dict().items()}
    family = identify(built.config, live)
    assert family.name == name
    for tensor in live:
        assert recognised(family, tensor) is not None, tensor
        assert family.place(tensor).role != "other", tensor
    for module in LAYER_ROLES[name]:
        assert family.layer_count(live, module) == LAYERS


@pytest.mark.parametrize("name", FAMILIES)
def test_only_poolers_and_tied_copies_may_be_absent(name, build):
    built = build(name, layers=LAYERS, tied=True)
    family = everything(built)
    optional = {t for t in built.shapes if family.optional(t)}
    # T5 keeps one table of position biases for a whole stack, in its first block: other blocks lack it.
    assert all("pooler.dense" in t or "SelfAttention.relative_attention_bias" in t for t in optional)
    assert {n for n in load(built.folder).state_dict() if n not in built.shapes and family.optional(n)} == {
        derived for derived, _ in family.tied(built.config) if derived in load(built.folder).state_dict()
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_identified_by_class_by_type_and_by_names_alone(name, build):
    built = build(name, layers=LAYERS)
    by_class = identify({"architectures": built.config["architectures"]}, built.shapes)
    by_type = identify({"model_type": built.config["model_type"]}, built.shapes)
    by_names = identify(None, built.shapes)
    assert by_class.name == by_type.name == name
    assert by_names.name == SAME_NAMES.get(name, name)
    assert by_names.known and "the tensor names are those of" in by_names.note
    places = [[f.place(t) for t in built.shapes] for f in (by_class, by_type, by_names)]
    assert places[0] == places[1] == places[2]


@pytest.mark.parametrize("name", FAMILIES)
def test_without_config_and_with_strange_names_layers_are_inferred(name, build):
    built = build(name, layers=LAYERS)
    known = everything(built)
    strange = {"net." + re.sub(r"(?<=[a-z])(layers?|h|blocks?)\.(?=\d)", "blk.", n): n for n in built.shapes}
    strange = {f"x{n}": old for n, old in strange.items()}
    family = identify(None, {n: built.shapes[old] for n, old in strange.items()})
    assert not family.known and family.note
    assert family.layer_count(strange) == LAYERS
    stacks = {known.place(strange[n]).module for n in strange if family.place(n).layer is not None}
    assert len(stacks) == 1, "one stack is the model's, whatever experts and other towers it has"
    for n, old in strange.items():
        place, true = family.place(n), known.place(old)
        assert place.module == "default"
        assert place.layer == (true.layer if true.module in stacks else None)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_with_a_layer_doubled_loads_without_a_missing_or_unexpected_tensor(name, build, tmp_path):
    from safetensors.torch import load_file, save_file

    built = build(name, layers=LAYERS)
    family = everything(built)
    order = [0, 1, 2, 1]
    tensors = {}
    for tensor, value in load_file(built.folder / "model.safetensors").items():
        place = family.place(tensor)
        copies = (
            [tensor]
            if place.layer is None
            else [family.rename(tensor, new) for new, old in enumerate(order) if old == place.layer]
        )
        tensors |= {copy: value.clone() for copy in copies}
    config = built.config
    for module in LAYER_ROLES[name]:
        config = with_layers(config, family, module, order)
    assert logits(written(tmp_path, config, tensors, save_file)).isfinite().all()


@pytest.mark.parametrize("name", [f for f in FAMILIES if TINY[f].vocabulary_at])
def test_a_model_with_more_tokens_loads_and_scores_them(name, build, tmp_path):
    from safetensors.torch import load_file, save_file

    built = build(name, layers=LAYERS)
    family = everything(built)
    tensors = {}
    for tensor, value in load_file(built.folder / "model.safetensors").items():
        if family.place(tensor).vocabulary_axis is not None:
            value = torch.cat([value, value[:8] * 0])
        tensors[tensor] = value
    out = logits(written(tmp_path, with_vocabulary(built.config, family, VOCAB + 8), tensors, save_file))
    assert out.isfinite().all()
    usual = logits(built.folder)
    assert out.shape[-1] == usual.shape[-1] + (8 if usual.shape[-1] == VOCAB else 0)


def written(folder: Path, config: dict, tensors: dict, save) -> Path:
    folder = folder / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


# Class, and the beginnings of the names that are its task head.
HEADED = {
    "llama": ("LlamaForSequenceClassification", ("score.",)),
    "qwen3": ("Qwen3ForQuestionAnswering", ("qa_outputs.",)),
    "gpt2": ("GPT2DoubleHeadsModel", ("multiple_choice_head.",)),
    "bert": ("BertForPreTraining", ("cls.seq_relationship.", "bert.pooler.")),
    "roberta": ("RobertaForSequenceClassification", ("classifier.",)),
    "xlm_roberta": ("XLMRobertaForTokenClassification", ("classifier.",)),
    "distilbert": ("DistilBertForSequenceClassification", ("pre_classifier.", "classifier.")),
    "deberta_v2": ("DebertaV2ForMultipleChoice", ("pooler.", "classifier.")),
    "t5": ("T5ForSequenceClassification", ("classification_head.",)),
    "whisper": ("WhisperForAudioClassification", ("projector.", "classifier.")),
    "vit": ("ViTForImageClassification", ("classifier.",)),
    "clip": ("CLIPForImageClassification", ("classifier.",)),
}
BARE = {
    "mistral": ("MistralModel", ()),
    "mixtral": ("MixtralModel", ()),
    "gpt_neox": ("GPTNeoXModel", ()),
    "falcon": ("FalconModel", ()),
    "opt": ("OPTModel", ()),
    "bloom": ("BloomModel", ()),
    "mpt": ("MptModel", ()),
    "deberta": ("DebertaModel", ()),
    "llava": ("LlavaModel", ()),
    "gemma3": ("Gemma3Model", ()),
    "qwen2_vl": ("Qwen2VLModel", ()),
}
BARE_TWINS = {  # families of which HEADED has a member already
    "llama": ("LlamaModel", ()),
    "gpt2": ("GPT2Model", ()),
    "bert": ("BertModel", ("pooler.",)),
    "roberta": ("RobertaModel", ("pooler.",)),
    "t5": ("T5EncoderModel", ()),
    "vit": ("ViTModel", ("pooler.",)),
    "whisper": ("WhisperForCausalLM", ()),
}


@pytest.mark.parametrize(
    ("name", "described"),
    [*HEADED.items(), *BARE.items(), *BARE_TWINS.items()],
    ids=lambda x: x if isinstance(x, str) else x[0],
)
def test_other_classes_of_a_family(name, described, build):
    architecture, heads = described
    built = build(name, layers=LAYERS, architecture=architecture)
    family = everything(built)
    assert family.name == name
    assert all(recognised(family, t) is not None for t in built.shapes)
    counts = {m: family.layer_count(built.shapes, m) for m in LAYER_ROLES[name]}
    assert set(counts.values()) <= {LAYERS, 0} and LAYERS in counts.values()
    assert {t for t in built.shapes if family.head(t)} == {t for t in built.shapes if t.startswith(heads)}
    assert not heads or any(family.head(t) for t in built.shapes)


def test_sharded_models_hold_the_same_names(build):
    one, many = build("llama", layers=LAYERS), build("llama", layers=LAYERS, shards=3)
    assert len(list(many.folder.glob("*.safetensors"))) > 1
    assert one.shapes == many.shapes
