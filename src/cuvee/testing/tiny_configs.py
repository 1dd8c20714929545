"""Settings of tiny random models, one row per family: config class, model class and the smallest sizes that
work.

Data only; `tiny_models.py` turns a row into a folder. Must not import transformers or torch. Hidden sizes
are 32 with four heads of 8 (two key-value heads where the family groups them), so that every division comes
out even and a fused q/k/v matrix is not square by accident.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class TinyConfig:
    """How to build one family: transformers class names, arguments, and where sizes go (dotted argument
    paths)."""

    config: str
    architecture: str
    values: Mapping[str, Any] = field(default_factory=dict)
    layers_at: tuple[str, ...] = ("num_hidden_layers",)
    vocabulary_at: tuple[str, ...] = ("vocab_size",)


_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_PLAIN = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "max_position_embeddings": 64}
_DENSE = {**_PLAIN, **_SPECIAL}
_GROUPED = {**_DENSE, "num_key_value_heads": 2}
_WITH_HEAD_DIM = {**_GROUPED, "head_dim": 8}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
_NESTED = {
    "layers_at": ("text_config.num_hidden_layers", "vision_config.num_hidden_layers"),
    "vocabulary_at": ("text_config.vocab_size",),
}
_QWEN_VISION = {"num_heads": 4, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
_QWEN_TOKENS = {
    "image_token_id": 5,
    "video_token_id": 6,
    "vision_start_token_id": 3,
    "vision_end_token_id": 4,
}
_QWEN_LAYERS = {
    "layers_at": ("text_config.num_hidden_layers", "vision_config.depth"),
    "vocabulary_at": ("text_config.vocab_size",),
}
_MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}
_MASKED = {**_PLAIN, "pad_token_id": 0, "type_vocab_size": 2}
_LLAVA_IMAGE = {"image_token_index": 5, "vision_feature_layer": -1}


def _decoder(name: str, values: Mapping[str, Any], config: str | None = None) -> TinyConfig:
    return TinyConfig(config or f"{name}Config", f"{name}ForCausalLM", values)


TINY: Mapping[str, TinyConfig] = {
    "llama": _decoder("Llama", _GROUPED),
    "mistral": _decoder("Mistral", _GROUPED),
    "mixtral": _decoder("Mixtral", {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": _decoder("Qwen2", _GROUPED),
    "qwen2_moe": _decoder("Qwen2Moe", {**_GROUPED, **_EXPERTS, "shared_expert_intermediate_size": 24}),
    "qwen3": _decoder("Qwen3", _WITH_HEAD_DIM),
    "qwen3_moe": _decoder("Qwen3Moe", {**_WITH_HEAD_DIM, **_EXPERTS}),
    "gemma": _decoder("Gemma", _WITH_HEAD_DIM),
    "gemma2": _decoder("Gemma2", _WITH_HEAD_DIM),
    "gemma3_text": _decoder("Gemma3", _WITH_HEAD_DIM, "Gemma3TextConfig"),
    "gemma3": TinyConfig(
        "Gemma3Config",
        "Gemma3ForConditionalGeneration",
        {
            "text_config": _WITH_HEAD_DIM,
            "vision_config": _VISION,
            "mm_tokens_per_image": 4,
            "image_token_index": 5,
            "boi_token_index": 3,
            "eoi_token_index": 4,
        },
        **_NESTED,
    ),
    "phi3": _decoder("Phi3", _GROUPED),
    "gpt2": TinyConfig(
        "GPT2Config",
        "GPT2LMHeadModel",
        {"n_embd": 32, "n_head": 4, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2},
        ("n_layer",),
    ),
    "gpt_neox": _decoder("GPTNeoX", _DENSE),
    "falcon": _decoder(
        "Falcon",
        {
            "hidden_size": 32,
            "num_attention_heads": 4,
            "num_kv_heads": 2,
            "new_decoder_architecture": True,
            **_SPECIAL,
        },
    ),
    "olmo": _decoder("Olmo", _GROUPED),
    "olmo2": _decoder("Olmo2", _GROUPED),
    "cohere": _decoder("Cohere", {**_GROUPED, "use_qk_norm": True}),
    "cohere2": _decoder("Cohere2", _GROUPED),
    "stablelm": _decoder("StableLm", {**_GROUPED, "use_qkv_bias": True}),
    "granite": _decoder("Granite", _GROUPED),
    "gptj": _decoder("GPTJ", {"n_embd": 32, "n_head": 4, "n_positions": 64, "rotary_dim": 4, **_SPECIAL}),
    "opt": _decoder(
        "OPT",
        {
            "hidden_size": 32,
            "ffn_dim": 48,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 32,
            **_SPECIAL,
        },
    ),
    "bloom": _decoder("Bloom", {"hidden_size": 32, "n_head": 4, **_SPECIAL}),
    "mpt": _decoder("Mpt", {"d_model": 32, "n_heads": 4, "max_seq_len": 64, **_SPECIAL}),
    "bert": TinyConfig("BertConfig", "BertForMaskedLM", _MASKED),
    "roberta": TinyConfig("RobertaConfig", "RobertaForMaskedLM", {**_MASKED, **_SPECIAL}),
    "xlm_roberta": TinyConfig("XLMRobertaConfig", "XLMRobertaForMaskedLM", {**_MASKED, **_SPECIAL}),
    "distilbert": TinyConfig(
        "DistilBertConfig",
        "DistilBertForMaskedLM",
        {"dim": 32, "hidden_dim": 48, "n_heads": 4, "max_position_embeddings": 64},
        ("n_layers",),
    ),
    "deberta": TinyConfig(
        "DebertaConfig",
        "DebertaForSequenceClassification",
        {**_MASKED, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    ),
    "deberta_v2": TinyConfig(
        "DebertaV2Config",
        "DebertaV2ForMaskedLM",
        {
            **_MASKED,
            "relative_attention": True,
            "position_buckets": 8,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
        },
    ),
    "t5": TinyConfig(
        "T5Config",
        "T5ForConditionalGeneration",
        {
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_heads": 4,
            "feed_forward_proj": "gated-gelu",
            "decoder_start_token_id": 0,
        },
        ("num_layers", "num_decoder_layers"),
    ),
    "whisper": TinyConfig(
        "WhisperConfig",
        "WhisperForConditionalGeneration",
        {
            "d_model": 32,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "num_mel_bins": 8,
            "max_source_positions": 20,
            "max_target_positions": 32,
            "decoder_start_token_id": 1,
            "suppress_tokens": [],
            "begin_suppress_tokens": None,
            **_SPECIAL,
        },
        ("encoder_layers", "decoder_layers"),
    ),
    "vit": TinyConfig("ViTConfig", "ViTForImageClassification", _VISION, vocabulary_at=()),
    "clip": TinyConfig(
        "CLIPConfig",
        "CLIPModel",
        {
            "text_config": {**_DENSE, "projection_dim": 16},
            "vision_config": {**_VISION, "projection_dim": 16},
            "projection_dim": 16,
        },
        **_NESTED,
    ),
    "llava": TinyConfig(
        "LlavaConfig",
        "LlavaForConditionalGeneration",
        {
            "text_config": {"model_type": "llama", **_GROUPED},
            "vision_config": {"model_type": "clip_vision_model", **_VISION},
            **_LLAVA_IMAGE,
        },
        **_NESTED,
    ),
    "llava_next": TinyConfig(
        "LlavaNextConfig",
        "LlavaNextForConditionalGeneration",
        {
            "text_config": {"model_type": "mistral", **_GROUPED},
            "vision_config": {"model_type": "clip_vision_model", **_VISION},
            "image_grid_pinpoints": [[16, 16]],
            **_LLAVA_IMAGE,
        },
        **_NESTED,
    ),
    "mistral3": TinyConfig(
        "Mistral3Config",
        "Mistral3ForConditionalGeneration",
        {
            "text_config": {"model_type": "mistral", **_WITH_HEAD_DIM},
            "vision_config": {"model_type": "pixtral", **_VISION, "head_dim": 8},
            "spatial_merge_size": 1,
            **_LLAVA_IMAGE,
        },
        **_NESTED,
    ),
    "qwen2_vl": TinyConfig(
        "Qwen2VLConfig",
        "Qwen2VLForConditionalGeneration",
        {
            "text_config": {**_GROUPED, **_MROPE},
            "vision_config": {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2, **_QWEN_VISION},
            **_QWEN_TOKENS,
        },
        **_QWEN_LAYERS,
    ),
    "qwen2_5_vl": TinyConfig(
        "Qwen2_5_VLConfig",
        "Qwen2_5_VLForConditionalGeneration",
        {
            "text_config": {**_GROUPED, **_MROPE},
            "vision_config": {
                "hidden_size": 32,
                "out_hidden_size": 32,
                "intermediate_size": 48,
                "window_size": 16,
                "fullatt_block_indexes": [1],
                **_QWEN_VISION,
            },
            **_QWEN_TOKENS,
        },
        **_QWEN_LAYERS,
    ),
    "qwen3_vl": TinyConfig(
        "Qwen3VLConfig",
        "Qwen3VLForConditionalGeneration",
        {
            "text_config": {**_WITH_HEAD_DIM, **_MROPE},
            "vision_config": {
                "hidden_size": 32,
                "out_hidden_size": 32,
                "intermediate_size": 48,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0],
                **_QWEN_VISION,
            },
            **_QWEN_TOKENS,
        },
        **_QWEN_LAYERS,
    ),
}
