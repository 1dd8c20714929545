"""`adapter_config.json` of PEFT: what it says about scales, and whether it means a plain product of factors.

Owns the list of what is refused and why. Must not touch tensors or files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cuvee.core.names import printable
from cuvee.errors import CorruptFile, Diagnostic, SourceError, Where
from cuvee.sources.key_patterns import BadPatternError, first_match

KINDS = ("LORA", "LOHA", "LOKR")
_OTHER_TYPES = {
    "IA3": "IA³ rescales activations instead of adding to weights",
    "ADALORA": "AdaLoRA scales each rank by a trained value and masks some",
    "OFT": "OFT rotates weights instead of adding to them",
    "BOFT": "BOFT rotates weights instead of adding to them",
    "PROMPT_TUNING": "prompt tuning changes inputs, not weights",
    "P_TUNING": "p-tuning changes inputs, not weights",
    "PREFIX_TUNING": "prefix tuning changes inputs, not weights",
    "TRAINABLE_TOKENS": "it replaces single rows of the embedding",
}
_OTHER_FORMS = {
    "trainable_token_indices": "it also trains single rows of the embedding",
    "layer_replication": "it repeats layers of the base",
    "target_parameters": "it adapts fused parameters whose order the file does not name",
    "use_qalora": "QA-LoRA pools inputs in groups",
    "alora_invocation_tokens": "an activated LoRA changes only the tokens after an invocation",
    "use_bdlora": "its factors are block-diagonal",
    "arrow_config": "Arrow routes every token to other adapters",
    "kasa_config": "KaSA truncates the base weights first",
    "monteclora_config": "MonteCLoRA samples its factors",
    "megatron_config": "its factors are laid out for Megatron",
}
_RESIDUAL_STARTS = ("pissa", "corda", "olora", "loftq", "lora_ga")
_HARMLESS = frozenset(
    {
        "peft_type",
        "task_type",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "auto_mapping",
        "peft_version",
        "r",
        "lora_alpha",
        "lora_dropout",
        "target_modules",
        "exclude_modules",
        "fan_in_fan_out",
        "bias",
        "use_rslora",
        "modules_to_save",
        "init_lora_weights",
        "layers_to_transform",
        "layers_pattern",
        "rank_pattern",
        "alpha_pattern",
        "megatron_core",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "lora_bias",
        "qalora_group_size",
        "runtime_config",
        "ensure_weight_tying",
        "velora_config",
        "target_modules_to_tie",
        "use_dora",
        "alpha",
        "rank_dropout",
        "module_dropout",
        "rank_dropout_scale",
        "use_effective_conv2d",
        "decompose_both",
        "decompose_factor",
        "init_weights",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What is needed of a configuration of LoRA or a relative; `base` is what it was trained on, as written there."""

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rslora: bool
    fan_in_fan_out: bool
    modules_to_save: tuple[str, ...]
    base: str | None
    kind: str = "LORA"  # or LOHA, LOKR
    dora: bool = False

    def ranks_of(self, module: str) -> set[int]:
        """The ranks a module's factors may have.

        PEFT takes the first pattern that matches, but sorts patterns when it saves; so the factors decide
        among the ranks of all patterns that match.
        """
        found = {rank for key, rank in self.rank_pattern.items() if first_match([key], module)}
        return found or {self.rank}

    def scale_of(self, module: str, rank: int) -> float:
        """alpha / r, or alpha / √r for rank-stabilised LoRA (arXiv:2312.03732)."""
        key = first_match(self.alpha_pattern, module)
        alpha = self.alpha if key is None else self.alpha_pattern[key]
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def adapter_config(raw: Mapping[str, Any], label: str) -> tuple[AdapterConfig, tuple[Diagnostic, ...]]:
    """The configuration, and a warning per unknown key; SourceError for what is no change of weights."""
    refuse_other_kinds(raw, label)
    kind = _kind(raw)
    found = AdapterConfig(
        rank=_positive(raw, "r", label),
        alpha=_number(raw, "lora_alpha" if kind == "LORA" else "alpha", label),
        rank_pattern=_pattern(raw, "rank_pattern", label),
        alpha_pattern=_pattern(raw, "alpha_pattern", label),
        rslora=raw.get("use_rslora") is True,
        fan_in_fan_out=raw.get("fan_in_fan_out") is True,
        modules_to_save=_names(raw.get("modules_to_save")),
        base=raw["base_model_name_or_path"] if isinstance(raw.get("base_model_name_or_path"), str) else None,
        kind=kind,
        dora=raw.get("use_dora") is True,
    )
    unknown = [key for key, value in raw.items() if value and key not in _HARMLESS | _OTHER_FORMS.keys()]
    where = Where(source=label, file="adapter_config.json")
    message = "the adapter sets `{}`, which cuvee does not know; it is read as plain LoRA"
    return found, tuple(
        Diagnostic("CV-S026", message.format(printable(key)), where, severity="warning") for key in unknown
    )


def refuse_other_kinds(raw: Mapping[str, Any], label: str) -> None:
    """SourceError, with the reason, unless the configuration means a change of weights that is known here."""
    kind = _kind(raw)
    if kind not in KINDS:
        reason = _OTHER_TYPES.get(
            kind, "only LoRA, DoRA, LoHa and LoKr adapters can be applied to weights here"
        )
        raise refused(label, f"is of type `{printable(kind)}`", reason)
    for key, reason in _OTHER_FORMS.items():
        if raw.get(key):
            raise refused(label, f"sets `{key}`", reason)
    start = raw.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_RESIDUAL_STARTS):
        reason = "it belongs to a base whose weights were changed when the adapter was made"
        hint = (
            "save it with `path_initial_model_for_weight_conversion`, or merge it in PEFT and name the result"
        )
        raise refused(label, f"was started by `{printable(start)}`", reason, hint)


def _kind(raw: Mapping[str, Any]) -> str:
    return str(raw.get("peft_type", "LORA")).rpartition(".")[2].upper()


def refused(label: str, what: str, reason: str, hint: str | None = None) -> SourceError:
    return SourceError(
        "CV-S025",
        f"the adapter `{printable(label)}` {what}, which cannot be applied: {reason}",
        where=Where(source=label, file="adapter_config.json"),
        hint=hint or "merge it into its base with PEFT (`merge_and_unload`) and name the merged folder",
    )


def _invalid(label: str, message: str) -> CorruptFile:
    return CorruptFile("CV-S027", message, where=Where(source=label, file="adapter_config.json"))


def _number(raw: Mapping[str, Any], key: str, label: str) -> float:
    value = raw.get(key, 8)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise _invalid(label, f"`{key}` must be a finite number, got `{printable(str(value))}`")
    return float(value)


def _positive(raw: Mapping[str, Any], key: str, label: str) -> int:
    value = raw.get(key, 8)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _invalid(label, f"`{key}` must be a whole number of at least 1, got `{printable(str(value))}`")
    return value


def _pattern(raw: Mapping[str, Any], key: str, label: str) -> dict[str, Any]:
    value = raw.get(key) or {}
    if not isinstance(value, Mapping):
        raise _invalid(label, f"`{key}` must map module names to numbers, got `{printable(str(value))}`")
    for name in value:
        (_positive if key == "rank_pattern" else _number)(value, name, label)
        try:
            first_match([name], "")
        except BadPatternError as error:
            shown = printable(name)
            raise _invalid(label, f"the key `{shown}` of `{key}` is not a usable pattern: {error}") from None
    return dict(value)


def _names(value: Any) -> tuple[str, ...]:
    listed = [value] if isinstance(value, str) else value
    return tuple(item for item in listed or () if isinstance(item, str))
