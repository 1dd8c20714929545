"""The transformers config of a model, rebuilt from the key-values of its GGUF file.

Works on metadata alone: `hf_view` adds, under `cuvee.`, what only tensors tell. Must not open files.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cuvee.errors import SourceError
from cuvee.formats.refusals import quoted


@dataclass(frozen=True, slots=True)
class _Row:
    """How one architecture is configured; `extra` adds fields from the rest of the metadata."""

    model_type: str
    class_name: str
    activation: str = "silu"
    eps: str = "rms_norm_eps"
    extra: Callable[[_Facts], dict[str, Any]] = field(default=lambda facts: {})


@dataclass(frozen=True, slots=True)
class _Facts:
    """Look-ups in the metadata, under the architecture's prefix."""

    metadata: Mapping[str, Any]
    architecture: str

    def get(self, key: str, default: Any = None) -> Any:
        """The value as it is, floats in their shortest spelling."""
        return shortest(self.metadata.get(f"{self.architecture}.{key}", default))

    def own(self, key: str, default: Any = None) -> Any:
        return self.metadata.get(f"cuvee.{key}", default)

    def whole(self, key: str) -> int | None:
        """A whole number; a list that repeats one number is that number."""
        value = self.get(key)
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise _refused(f"`{self.architecture}.{key}` differs from layer to layer")
            value = value[0]
        if value is not None and (type(value) is not int or value < 0):
            raise _refused(f"`{self.architecture}.{key}` is {quoted(str(value))}, expected a whole number")
        return value

    def real(self, key: str, default: float | None = None) -> float | None:
        """A finite number."""
        value: float | None = self.get(key, default)
        if value is not None and (type(value) not in (int, float) or not math.isfinite(value)):
            raise _refused(f"`{self.architecture}.{key}` is {quoted(str(value))}, expected a number")
        return value


def shortest(value: Any) -> Any:
    """The shortest decimal that is the same float32 (`9.99999975e-06`: `1e-05`); other values as they are."""
    if not isinstance(value, float) or not math.isfinite(value):
        return value
    try:
        stored = struct.pack("<f", value)
    except OverflowError:
        return value
    for digits in range(1, 10):
        short = float(f"{value:.{digits}g}")
        if struct.pack("<f", short) == stored:
            return short
    return value


def _refused(message: str) -> SourceError:
    return SourceError("CV-S080", f"the GGUF metadata does not describe a config: {message}")


def hf_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The config for transformers: class, sizes, rope, norms, token ids, tied embeddings.

    Raises: SourceError for an architecture outside the table, or one whose numbers no config can express.
    """
    architecture = str(metadata.get("general.architecture"))
    facts = _Facts(metadata, architecture)
    row = _row(facts)
    if row is None:
        raise _refused(f"the architecture {quoted(architecture)} is not in the table")
    config: dict[str, Any] = {"architectures": [row.class_name], "model_type": row.model_type}
    config.update(_sizes(facts))
    config["hidden_act"] = row.activation
    plain = facts.real("attention.layer_norm_epsilon")
    config[row.eps] = facts.real("attention.layer_norm_rms_epsilon", plain)
    config["tie_word_embeddings"] = bool(facts.own("tie_word_embeddings", False))
    config.update(_rope(facts))
    for key in ("bos", "eos", "pad"):
        name = "padding" if key == "pad" else key
        config[f"{key}_token_id"] = metadata.get(f"tokenizer.ggml.{name}_token_id")
    config.update(row.extra(facts))
    return {key: value for key, value in config.items() if value is not None}


def _row(facts: _Facts) -> _Row | None:
    if facts.architecture == "llama" and facts.get("expert_count"):
        return _Row("mixtral", "MixtralForCausalLM", extra=_mixtral)
    return _ROWS.get(facts.architecture)


def _sizes(facts: _Facts) -> dict[str, Any]:
    heads = facts.whole("attention.head_count")
    hidden = facts.whole("embedding_length")
    dimension = facts.whole("attention.key_length")
    if dimension is None and hidden and heads:
        dimension = hidden // heads
    tokens = facts.metadata.get("tokenizer.ggml.tokens")
    return {
        "hidden_size": hidden,
        "intermediate_size": facts.whole("feed_forward_length"),
        "num_hidden_layers": facts.whole("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": facts.whole("attention.head_count_kv") or heads,
        "head_dim": dimension,
        "max_position_embeddings": facts.whole("context_length"),
        "vocab_size": facts.own("vocab_size")
        or facts.whole("vocab_size")
        or (len(tokens) if tokens else None),
    }


def _rope(facts: _Facts) -> dict[str, Any]:
    """Base and scaling of rotary embeddings."""
    theta = facts.real("rope.freq_base", 10000.0) or 0.0
    if theta <= 0:
        raise _refused(f"the base of the rotary embedding is {theta}")
    out: dict[str, Any] = {"rope_theta": theta}
    kind, factor = facts.get("rope.scaling.type"), facts.real("rope.scaling.factor")
    original = facts.whole("rope.scaling.original_context_length")
    long, short = facts.own("rope_factors_long"), facts.own("rope_factors_short")
    if long and short:
        out["rope_scaling"] = {
            "rope_type": "longrope",
            "long_factor": [shortest(value) for value in long],
            "short_factor": [shortest(value) for value in short],
        }
        out["original_max_position_embeddings"] = original
    elif facts.own("rope_freqs"):
        out["rope_scaling"] = _llama3(list(facts.own("rope_freqs")), theta)
    elif kind in ("linear", "yarn") and factor:
        scaling = {"rope_type": kind, "factor": factor, "original_max_position_embeddings": original}
        out["rope_scaling"] = {key: value for key, value in scaling.items() if value is not None}
    return out


def _llama3(stored: list[float], theta: float) -> dict[str, Any]:
    """The scaling of Llama 3.1 and later, found back from the factors that the converter computed from it."""
    factor = shortest(max(stored))
    if not all(1 <= value < math.inf for value in stored):
        raise _refused("its table of rope factors holds numbers below one")
    for original in (8192, 4096, 16384, 32768):
        guess = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": original,
        }
        pairs = zip(stored, _factors(guess, len(stored), theta), strict=True)
        if all(math.isclose(a, b, rel_tol=1e-4) for a, b in pairs):
            return guess
    raise _refused("its table of rope factors is not that of a known scaling")


def _factors(scaling: Mapping[str, Any], count: int, theta: float) -> list[float]:
    """By what each frequency is divided: 1 for short waves, the factor for long ones, smooth in between."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    original = scaling["original_max_position_embeddings"]
    out = []
    for index in range(count):
        turns = original / (2 * math.pi * theta ** (index / count))
        if turns > high:
            out.append(1.0)
        elif turns < low:
            out.append(float(scaling["factor"]))
        else:
            smooth = (turns - low) / (high - low)
            out.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return out


def _biases(facts: _Facts) -> dict[str, Any]:
    return {"attention_bias": facts.own("attention_bias"), "mlp_bias": facts.own("mlp_bias")}


def _mixtral(facts: _Facts) -> dict[str, Any]:
    return {
        "num_local_experts": facts.whole("expert_count"),
        "num_experts_per_tok": facts.whole("expert_used_count"),
    }


def _qwen_experts(facts: _Facts) -> dict[str, Any]:
    return {
        "num_experts": facts.whole("expert_count"),
        "num_experts_per_tok": facts.whole("expert_used_count"),
        "moe_intermediate_size": facts.whole("expert_feed_forward_length"),
        "shared_expert_intermediate_size": facts.whole("expert_shared_feed_forward_length"),
        "norm_topk_prob": facts.architecture == "qwen3moe",
    }


def _gemma2(facts: _Facts) -> dict[str, Any]:
    return {
        "sliding_window": facts.whole("attention.sliding_window"),
        "attn_logit_softcapping": facts.real("attn_logit_softcapping"),
        "final_logit_softcapping": facts.real("final_logit_softcapping"),
        "query_pre_attn_scalar": _query_scalar(facts),
        "hidden_activation": "gelu_pytorch_tanh",
    }


def _gemma3(facts: _Facts) -> dict[str, Any]:
    return {
        "sliding_window": facts.whole("attention.sliding_window"),
        "query_pre_attn_scalar": _query_scalar(facts),
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_local_base_freq": 10000.0,
    }


def _query_scalar(facts: _Facts) -> int | None:
    """What queries are scaled by: the head size, in the 27B models the width per head (llama.cpp's rule)."""
    if facts.whole("block_count") == (46 if facts.architecture == "gemma2" else 62):
        hidden, heads = facts.whole("embedding_length"), facts.whole("attention.head_count")
        return hidden // heads if hidden and heads else None
    return facts.whole("attention.key_length")


def _stablelm(facts: _Facts) -> dict[str, Any]:
    rotary, sizes = facts.whole("rope.dimension_count"), _sizes(facts)
    return {
        "use_qkv_bias": facts.own("attention_bias"),
        "use_parallel_residual": not facts.own("second_norm", True),
        "qk_layernorm": facts.own("query_norm"),
        "partial_rotary_factor": rotary / sizes["head_dim"] if rotary and sizes["head_dim"] else None,
    }


def _phi3(facts: _Facts) -> dict[str, Any]:
    rotary, dimension = facts.whole("rope.dimension_count"), _sizes(facts)["head_dim"]
    part = rotary / dimension if rotary and dimension and rotary != dimension else None
    return {"sliding_window": facts.whole("attention.sliding_window"), "partial_rotary_factor": part}


def _granite(facts: _Facts) -> dict[str, Any]:
    return {
        "embedding_multiplier": facts.real("embedding_scale"),
        "residual_multiplier": facts.real("residual_scale"),
        "attention_multiplier": facts.real("attention.scale"),
        "logits_scaling": facts.real("logit_scale"),
    }


_GELU = "gelu_pytorch_tanh"
_ROWS = {
    "llama": _Row("llama", "LlamaForCausalLM", extra=_biases),
    "smollm3": _Row("smollm3", "SmolLM3ForCausalLM", extra=_biases),
    "granite": _Row("granite", "GraniteForCausalLM", extra=lambda f: _granite(f) | _biases(f)),
    "qwen2": _Row("qwen2", "Qwen2ForCausalLM"),
    "qwen2moe": _Row("qwen2_moe", "Qwen2MoeForCausalLM", extra=_qwen_experts),
    "qwen3": _Row("qwen3", "Qwen3ForCausalLM"),
    "qwen3moe": _Row("qwen3_moe", "Qwen3MoeForCausalLM", extra=_qwen_experts),
    "gemma": _Row("gemma", "GemmaForCausalLM", _GELU),
    "gemma2": _Row("gemma2", "Gemma2ForCausalLM", _GELU, extra=_gemma2),
    "gemma3": _Row("gemma3_text", "Gemma3ForCausalLM", _GELU, extra=_gemma3),
    "phi3": _Row("phi3", "Phi3ForCausalLM", extra=_phi3),
    "stablelm": _Row("stablelm", "StableLmForCausalLM", eps="layer_norm_eps", extra=_stablelm),
    "olmo2": _Row("olmo2", "Olmo2ForCausalLM"),
}
