"""What the architectures of GGUF files call their tensors, and how their converter changed the values.

A table: GGUF names to the names of Hugging Face models. A new architecture is a new row here and one in
`gguf_config`. Must not read files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Architecture:
    """One value of `general.architecture`.

    `blocks` maps the part of a name after `blk.N.` (without `.weight`) to the part after `model.layers.N.`; a
    `{}` in the target means that the tensor is a stack along its first axis, one Hugging Face tensor each.
    `rotated`: rows of q and k are stored in the order of interleaved rotary embedding.
    `shifted`: norm weights are stored plus one.
    """

    blocks: Mapping[str, str]
    rotated: bool = False
    shifted: bool = False


OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}

_DENSE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_SPARSE = {part: target for part, target in _DENSE.items() if not target.startswith("mlp.")}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_SANDWICH = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
}
_SHARED_EXPERT = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
_MIXTRAL = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
    "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
    "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
}
_FUSED = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}
_STACKED_HEAD_NORMS = {
    "attn_q_norm": "self_attn.q_layernorm.norms.{}",
    "attn_k_norm": "self_attn.k_layernorm.norms.{}",
}
_POST_NORMS = {k: v for k, v in _DENSE.items() if k not in ("attn_norm", "ffn_norm")} | {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}

ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(_DENSE | _MIXTRAL, rotated=True),
    "smollm3": Architecture(_DENSE, rotated=True),
    "granite": Architecture(_DENSE, rotated=True),
    "qwen2": Architecture(_DENSE),
    "qwen2moe": Architecture(_SPARSE | _EXPERTS | _SHARED_EXPERT),
    "qwen3": Architecture(_DENSE | _HEAD_NORMS),
    "qwen3moe": Architecture(_SPARSE | _HEAD_NORMS | _EXPERTS),
    "gemma": Architecture(_DENSE, shifted=True),
    "gemma2": Architecture(_DENSE | _SANDWICH, shifted=True),
    "gemma3": Architecture(_DENSE | _SANDWICH | _HEAD_NORMS, shifted=True),
    "phi3": Architecture(_FUSED),
    "stablelm": Architecture(_DENSE | _STACKED_HEAD_NORMS),
    "olmo2": Architecture(_POST_NORMS | _HEAD_NORMS),
}

# Tables that the converter computed from the config; `gguf_config` turns them back.
COMPUTED = ("rope_freqs", "rope_factors_long", "rope_factors_short")
