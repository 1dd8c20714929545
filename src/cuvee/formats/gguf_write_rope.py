"""Rotary embedding for a GGUF file: base, width and scaling as key-values, and the tables that go with them.

Reads both spellings of configs (`rope_theta` with `rope_scaling`, and `rope_parameters`). Must not open files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cuvee.errors import SourceError, Where
from cuvee.formats.refusals import quoted


@dataclass(frozen=True, slots=True)
class Rope:
    """`values` are key-values (without the architecture's prefix), `tables` float32 tensors by their name."""

    values: Mapping[str, Any]
    tables: Mapping[str, tuple[float, ...]]


def rope_of(config: Mapping[str, Any], head_size: int) -> Rope:
    """The rotary embedding a config describes; SourceError CV-S093 for a kind that GGUF has no words for."""
    given = config.get("rope_parameters") or {}
    per_kind = {kind: value for kind, value in given.items() if isinstance(value, Mapping)}
    local = per_kind.get("sliding_attention", {})
    given = per_kind.get("full_attention", given)
    theta = _number(given.get("rope_theta", config.get("rope_theta", 10000.0)), "rope_theta")
    local_theta = local.get("rope_theta", config.get("rope_local_base_freq", 10000.0))
    if str(config.get("model_type")) == "gemma3_text" and local_theta != 10000.0:
        raise _refused(
            f"the base of windowed layers is {quoted(str(local_theta))}, and a reader would assume 10000"
        )
    part = given.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) or 1.0
    width = int(head_size * _number(part, "partial_rotary_factor"))
    values: dict[str, Any] = {"rope.freq_base": theta, "rope.dimension_count": width}
    scaling = given if _kind(given) != "default" else config.get("rope_scaling") or {}
    more, tables = _scaled(scaling, config, theta, width)
    return Rope(values | more, tables)


def _scaled(
    scaling: Mapping[str, Any], config: Mapping[str, Any], theta: float, width: int
) -> tuple[dict[str, Any], dict[str, tuple[float, ...]]]:
    kind = _kind(scaling)
    if kind == "default":
        return {}, {}
    original = scaling.get("original_max_position_embeddings") or config.get(
        "original_max_position_embeddings"
    )
    if kind in ("linear", "yarn"):
        out: dict[str, Any] = {
            "rope.scaling.type": kind,
            "rope.scaling.factor": _number(scaling.get("factor"), "factor"),
        }
        if kind == "yarn":
            _only_defaults(
                scaling, {"beta_fast": 32, "beta_slow": 1, "attention_factor": None, "mscale": None}
            )
            out["rope.scaling.original_context_length"] = int(
                _number(original or config.get("max_position_embeddings"), "original_max_position_embeddings")
            )
        return out, {}
    if kind == "llama3":
        return {}, {"rope_freqs.weight": tuple(llama3_factors(scaling, width // 2, theta))}
    if kind == "longrope":
        return _long(scaling, config, int(_number(original, "original_max_position_embeddings")), width)
    raise _refused(f"rotary embedding of the kind {quoted(kind)}")


def llama3_factors(scaling: Mapping[str, Any], count: int, theta: float) -> list[float]:
    """By what each frequency is divided: 1 for short waves, the factor for long ones, smooth in between."""
    factor = _number(scaling.get("factor", 8.0), "factor")
    low = _number(scaling.get("low_freq_factor", 1.0), "low_freq_factor")
    high = _number(scaling.get("high_freq_factor", 4.0), "high_freq_factor")
    original = _number(
        scaling.get("original_max_position_embeddings", 8192), "original_max_position_embeddings"
    )
    out = []
    for index in range(count):
        turns = original / (2 * math.pi * theta ** (index / count))
        smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
        out.append(1 / ((1 - smooth) / factor + smooth))
    return out


def _long(
    scaling: Mapping[str, Any], config: Mapping[str, Any], original: int, width: int
) -> tuple[dict[str, Any], dict[str, tuple[float, ...]]]:
    """Phi-3's two lists of factors, and how much attention grows with the length."""
    tables = {}
    for length in ("long", "short"):
        factors = scaling.get(f"{length}_factor")
        if not isinstance(factors, list) or len(factors) != width // 2:
            raise _refused(f"`{length}_factor` is not a list of {width // 2} numbers")
        tables[f"rope_factors_{length}.weight"] = tuple(_number(value, "factor") for value in factors)
    stretch = _number(config.get("max_position_embeddings"), "max_position_embeddings") / original
    growth = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
    values = {"rope.scaling.original_context_length": original, "rope.scaling.attn_factor": growth}
    return values, tables


def _kind(scaling: Mapping[str, Any]) -> str:
    """The kind of scaling; old Phi-3 configs say `su`."""
    kind = str(scaling.get("rope_type") or scaling.get("type") or "default")
    return "longrope" if kind == "su" else kind


def _only_defaults(scaling: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    for key, default in defaults.items():
        value = scaling.get(key)
        if value is not None and value != default:
            raise _refused(
                f"`{key}` of the rotary embedding is {quoted(str(value))}, a reader would not see it"
            )


def _number(value: Any, key: str) -> float:
    if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
        raise _refused(f"`{key}` is {quoted(str(value))}, expected a positive number")
    return float(value)


def _refused(message: str) -> SourceError:
    return SourceError(
        "CV-S093",
        f"the config cannot be said in a GGUF file: {message}",
        where=Where(file="config.json"),
        hint="write a folder of safetensors instead: `-o FOLDER`",
    )
