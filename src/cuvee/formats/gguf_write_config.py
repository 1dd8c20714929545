"""The key-values of a GGUF file that come from a model's config: sizes, attention, norms, experts.

The inverse of `gguf_config`, for the same architectures. What a GGUF file has no words for, and what runtimes
settle by the architecture's name alone, is refused when the config says otherwise. Must not open files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cuvee.errors import SourceError, Where
from cuvee.formats.gguf_write_rope import Rope, rope_of
from cuvee.formats.refusals import quoted

FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}
_SILU, _GELU = ("silu", "swish"), ("gelu_pytorch_tanh", "gelu", "gelu_new")
_Table = Mapping[str, tuple[str, ...]]  # key of the file → keys that configs have for it


@dataclass(frozen=True, slots=True)
class _Row:
    """One `model_type`: its GGUF architecture, further numbers, and `check` for what cannot be said.

    `defaults` are those of the config's class, for keys that a config leaves out.
    """

    architecture: str
    activations: tuple[str, ...] = _SILU
    eps: tuple[str, str] = ("attention.layer_norm_rms_epsilon", "rms_norm_eps")
    more: _Table = field(default_factory=dict)
    check: Callable[[ConfigFacts], None] = field(default=lambda facts: None)
    defaults: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ConfigFacts:
    """A config, asked by key: `whole` and `real` refuse values of another kind. Made by `facts_of`."""

    config: Mapping[str, Any]
    row: _Row

    @property
    def architecture(self) -> str:
        """The value of `general.architecture`."""
        return self.row.architecture

    @property
    def query_heads(self) -> int:
        return self.whole("num_attention_heads")

    @property
    def key_heads(self) -> int:
        return self.whole("num_key_value_heads", self.query_heads)

    @property
    def head_size(self) -> int:
        heads = self.query_heads
        return self.whole("head_dim", self.whole("hidden_size") // heads if heads else None)

    @property
    def tied(self) -> bool:
        return bool(self.config.get("tie_word_embeddings", False))

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number, not negative."""
        value = self.config.get(key)
        value = default if value is None else value
        if type(value) is not int or not 0 <= value < 1 << 31:
            raise _refused(f"`{key}` is {quoted(str(value))}, expected a whole number")
        return value

    def real(self, key: str) -> float:
        value: Any = self.config.get(key)
        if type(value) not in (int, float):
            raise _refused(f"`{key}` is {quoted(str(value))}, expected a number")
        return float(value)


def facts_of(config: Mapping[str, Any]) -> ConfigFacts:
    """The config with the defaults of its class; SourceError CV-S092 when its type cannot be written."""
    kind = str(config.get("model_type"))
    row = _ROWS.get(kind)
    if row is None:
        raise SourceError(
            "CV-S092",
            f"models of the type {quoted(kind)} cannot be written to GGUF",
            where=Where(file="config.json"),
            hint=f"types that can be: {', '.join(sorted(TYPES))}",
        )
    return ConfigFacts({**_DEFAULTS, **row.defaults, **config}, row)


def config_metadata(facts: ConfigFacts, *, rows: int) -> tuple[dict[str, Any], Rope]:
    """Key-values under the architecture's prefix, and the rotary embedding with its tables.

    `rows` is the number of rows of the embedding, which is the vocabulary's size whatever the config says.

    Raises:
        SourceError: CV-S093 the config says something that the file could not.
    """
    row = facts.row
    activation = facts.config.get("hidden_activation") or facts.config.get("hidden_act") or row.activations[0]
    if activation not in row.activations:
        raise _refused(
            f"the activation is {quoted(str(activation))}, and a reader would use `{row.activations[0]}`"
        )
    row.check(facts)
    rope = rope_of(facts.config, facts.head_size)
    values: dict[str, Any] = {
        "block_count": facts.whole("num_hidden_layers"),
        "context_length": facts.whole("max_position_embeddings"),
        "embedding_length": facts.whole("hidden_size"),
        "feed_forward_length": facts.whole("intermediate_size"),
        "attention.head_count": facts.query_heads,
        "attention.head_count_kv": facts.key_heads,
        row.eps[0]: facts.real(row.eps[1]),
        "attention.key_length": facts.head_size,
        "attention.value_length": facts.head_size,
        **rope.values,
        "vocab_size": rows,
    }
    for key, names in row.more.items():
        name = next((name for name in names if facts.config.get(name) is not None), names[0])
        if facts.config.get(name) is not None or key in _NEEDED:
            values[key] = facts.real(name) if key in _REAL else _flag_or_whole(facts, name)
    return {f"{row.architecture}.{key}": value for key, value in values.items()}, rope


def general_metadata(name: str, architecture: str, parameters: int, encoding: str) -> dict[str, Any]:
    """The `general.*` key-values."""
    values: dict[str, Any] = {
        "general.architecture": architecture,
        "general.type": "model",
        "general.name": name,
        "general.size_label": size_label(parameters),
        "general.file_type": FILE_TYPES[encoding],
        "general.quantization_version": 2,
    }
    return values


def size_label(parameters: int) -> str:
    """A count as model names say it: at least two digits (`135M`, `1.7B`)."""
    scale, letter = next(
        ((size, letter) for size, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M")) if parameters > size),
        (10**3, "K"),
    )
    amount = parameters / scale
    digits = max(2 - len(str(round(amount)).lstrip("0")), 0)
    return f"{amount:.{digits}f}{letter}"


def _flag_or_whole(facts: ConfigFacts, name: str) -> bool | int:
    value = facts.config.get(name)
    return value if isinstance(value, bool) else facts.whole(name)


def _refused(message: str) -> SourceError:
    return SourceError(
        "CV-S093",
        f"the config cannot be said in a GGUF file: {message}",
        where=Where(file="config.json"),
        hint="write a folder of safetensors instead: `-o FOLDER`",
    )


def _expect(facts: ConfigFacts, key: str, expected: Any) -> None:
    """Refuse a value that readers of the file would not get to see."""
    value = facts.config.get(key, expected)
    if value != expected:
        raise _refused(f"`{key}` is {quoted(str(value))}, and a reader would assume `{expected}`")


def _check_windows(facts: ConfigFacts, period: int) -> None:
    """Every `period`-th layer attends to all positions, the others to a window: so readers assume."""
    kinds = facts.config.get("layer_types")
    if isinstance(kinds, list):
        for number, kind in enumerate(kinds):
            expected = "sliding_attention" if (number + 1) % period else "full_attention"
            if kind != expected:
                raise _refused(
                    f"layer {number} has {quoted(str(kind))}, and a reader would assume `{expected}`"
                )


def _check_query_scale(facts: ConfigFacts, layers_of_largest: int) -> None:
    """Queries are scaled by the head size, in the 27B models by the width per head: so readers assume."""
    largest = facts.whole("num_hidden_layers") == layers_of_largest
    assumed = facts.whole("hidden_size") // facts.query_heads if largest else facts.head_size
    value = facts.config.get("query_pre_attn_scalar", 256)
    if value != assumed:
        raise _refused(
            f"`query_pre_attn_scalar` is {quoted(str(value))}, and a reader would assume {assumed}"
        )


def _gemma(facts: ConfigFacts) -> None:
    if not facts.tied:
        raise _refused("the output is not tied to the embedding, and a reader would assume that it is")


def _gemma2(facts: ConfigFacts) -> None:
    _gemma(facts)
    _check_windows(facts, 2)
    _check_query_scale(facts, 46)


def _gemma3(facts: ConfigFacts) -> None:
    _check_windows(facts, 6)
    _check_query_scale(facts, 62)
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        _expect(facts, key, None)


def _windowless(facts: ConfigFacts) -> None:
    if facts.config.get("use_sliding_window"):
        raise _refused("`use_sliding_window` is set, and a reader would attend to all positions")


def _smollm3(facts: ConfigFacts) -> None:
    layers = facts.whole("num_hidden_layers")
    _expect(facts, "no_rope_layers", [int((number + 1) % 4 != 0) for number in range(layers)])
    _windowless(facts)


def _qwen2_moe(facts: ConfigFacts) -> None:
    _expect(facts, "norm_topk_prob", False)
    _windowless(facts)


def _qwen3_moe(facts: ConfigFacts) -> None:
    if facts.config.get("norm_topk_prob") is not True:
        raise _refused("`norm_topk_prob` is not set, and a reader would assume that it is")
    _windowless(facts)


_REAL = {
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "embedding_scale",
    "residual_scale",
    "attention.scale",
    "logit_scale",
}
_NEEDED = {"expert_count", "expert_used_count"}
_EXPERTS = {
    "expert_count": ("num_experts", "num_local_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
}
_MIXTRAL = {"expert_count": ("num_local_experts",), "expert_used_count": ("num_experts_per_tok",)}
_WINDOW = {"attention.sliding_window": ("sliding_window",)}
_CAPS = {key: (key,) for key in ("attn_logit_softcapping", "final_logit_softcapping")}
_SCALES = {
    "embedding_scale": ("embedding_multiplier",),
    "residual_scale": ("residual_multiplier",),
    "attention.scale": ("attention_multiplier",),
    "logit_scale": ("logits_scaling",),
}
_STABLE = {"use_parallel_residual": ("use_parallel_residual",)}
_PLAIN_EPS = ("attention.layer_norm_epsilon", "layer_norm_eps")
_DEFAULTS = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6}
_MIDDLE, _LONG = {"max_position_embeddings": 32768}, {"max_position_embeddings": 131072}
_THETA, _TIED = {"rope_theta": 1e6}, {"tie_word_embeddings": True}
_GEMMA = {"max_position_embeddings": 8192, "head_dim": 256, **_TIED}
_WIDE = {"sliding_window": 4096}
_GEMMA2 = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, **_WIDE}
_STABLE_DEFAULTS = {"max_position_embeddings": 4096, "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.25}

_ROWS: Mapping[str, _Row] = {
    "llama": _Row("llama"),
    "mistral": _Row("llama", defaults=_LONG),
    "mixtral": _Row("llama", more=_MIXTRAL, defaults=_LONG | _THETA | {"rms_norm_eps": 1e-5}),
    "smollm3": _Row("smollm3", check=_smollm3, defaults=_MIDDLE | _TIED | {"rope_theta": 2e6}),
    "granite": _Row("granite", more=_SCALES),
    "qwen2": _Row("qwen2", check=_windowless, defaults=_MIDDLE),
    "qwen2_moe": _Row("qwen2moe", more=_EXPERTS, check=_qwen2_moe, defaults=_MIDDLE),
    "qwen3": _Row("qwen3", check=_windowless, defaults=_MIDDLE | {"head_dim": 128}),
    "qwen3_moe": _Row("qwen3moe", more=_EXPERTS, check=_qwen3_moe, defaults=_MIDDLE),
    "gemma": _Row("gemma", _GELU, check=_gemma, defaults=_GEMMA),
    "gemma2": _Row("gemma2", _GELU, more=_WINDOW | _CAPS, check=_gemma2, defaults=_GEMMA | _GEMMA2),
    "gemma3_text": _Row(
        "gemma3", _GELU, more=_WINDOW, check=_gemma3, defaults=_GEMMA | _LONG | _THETA | _WIDE
    ),
    "phi3": _Row("phi3", more=_WINDOW, defaults={"max_position_embeddings": 4096, "rms_norm_eps": 1e-5}),
    "stablelm": _Row("stablelm", eps=_PLAIN_EPS, more=_STABLE, defaults=_STABLE_DEFAULTS),
    "olmo2": _Row("olmo2", defaults={"rms_norm_eps": 1e-5}),
}

TYPES = frozenset(_ROWS)  # of configs that can be written
