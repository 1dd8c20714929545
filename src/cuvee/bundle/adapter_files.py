"""What PEFT expects of an adapter: the names of its tensors and its configuration.

Owns the way from modules to names and back to a configuration. Must not touch tensors' values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Form = Literal["linear", "transposed", "convolution", "embedding"]
STEM = "adapter_model"
_PREFIX = "base_model.model."
_TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}
_TRANSPOSED = {
    "gpt2",
    "imagegpt",
    "openai-gpt",
    "decision_transformer",
}  # model types whose Conv1D is (in, out)
_CONV1D = ("c_attn", "c_proj", "c_fc", "q_attn")


@dataclass(frozen=True, slots=True)
class Target:
    """A matrix that becomes two factors: its module, how it lies, the shape of its weight, and the rank."""

    module: str
    form: Form
    shape: tuple[int, ...]
    rank: int

    @property
    def names(self) -> tuple[str, str]:
        """The two tensors' names, the input side first."""
        kind = "lora_embedding" if self.form == "embedding" else "lora"
        leaf = "" if self.form == "embedding" else ".weight"
        return f"{_PREFIX}{self.module}.{kind}_A{leaf}", f"{_PREFIX}{self.module}.{kind}_B{leaf}"

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The two tensors' shapes, the input side first."""
        first, rest = self.shape[0], self.shape[1:]
        if self.form == "convolution":
            return (self.rank, *rest), (first, self.rank, *(1 for _ in rest[1:]))
        if self.form == "linear":
            return (self.rank, rest[0]), (first, self.rank)
        return (self.rank, first), (rest[0], self.rank)


def form_of(name: str, shape: Sequence[int], role: str, config: Mapping[str, Any] | None) -> Form | None:
    """How a tensor can be written as factors; None where PEFT has no adapter for its module."""
    if not name.endswith(".weight") or len(shape) < 2 or role in ("norm", "position_embeddings"):
        return None
    if role in ("embeddings", "type_embeddings"):
        return "embedding" if len(shape) == 2 else None
    if len(shape) > 2:
        return "convolution" if len(shape) <= 5 else None
    kind = (config or {}).get("model_type")
    conv1d = kind in _TRANSPOSED and name.split(".")[-2] in _CONV1D
    return "transposed" if conv1d else "linear"


def saved_name(name: str, targets: Iterable[str]) -> str:
    """The name of a whole tensor in the file: biases of adapted modules lie beside their factors."""
    module, _, leaf = name.rpartition(".")
    return f"{_PREFIX}{module}.base_layer.{leaf}" if module in set(targets) else _PREFIX + name


def configuration(
    targets: Sequence[Target], saved: Iterable[str], base: str | None, config: Mapping[str, Any] | None
) -> dict[str, Any]:
    """`adapter_config.json` for these targets and whole tensors; every scale is 1."""
    modules = {target.module: target for target in targets}
    rank = max((target.rank for target in targets), default=1)
    other = {t.module: t.rank for t in sorted(targets, key=lambda t: t.module) if t.rank != rank}
    whole = sorted({name.rpartition(".")[0] for name in saved} - set(modules))
    biases = any(name.rpartition(".")[0] in modules for name in saved)
    return {
        "peft_type": "LORA",
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "task_type": _task(config),
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "rank_pattern": other,
        "alpha_pattern": other,
        "use_rslora": False,
        "use_dora": False,
        "target_modules": sorted(modules),
        "modules_to_save": whole or None,
        "fan_in_fan_out": any(target.form == "transposed" for target in targets),
        "bias": "all" if biases else "none",
        "init_lora_weights": True,
    }


def _task(config: Mapping[str, Any] | None) -> str | None:
    names = (config or {}).get("architectures") or [""]
    return next((task for suffix, task in _TASKS.items() if str(names[0]).endswith(suffix)), None)
