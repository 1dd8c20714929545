"""A live PEFT model as base weights plus what its active LoRA, DoRA, LoHa or LoKr adapters add, without merging it.

Knows PEFT's modules by their attributes (so PEFT itself is never imported): `base_layer`, `lora_A`,
`scaling`, `modules_to_save`. Adapters that are merged already are part of the base weights. Must not change
the model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from cuvee.core.names import printable
from cuvee.core.tensors import TensorMeta
from cuvee.errors import SourceError, Where
from cuvee.sources.adapted import AdaptedSource, Overlay
from cuvee.sources.low_rank import Delta, FactorCache, LowRank, Scaled, Sum
from cuvee.sources.memory import config_of, elements, module_source
from cuvee.sources.other_deltas import Made, Rescaled
from cuvee.sources.peft_config import refuse_other_kinds
from cuvee.sources.source import Source

if TYPE_CHECKING:
    import torch as torch_types
    from torch import Tensor

_OWN = re.compile(
    r"lora_(A|B|embedding_A|embedding_B|dropout|magnitude_vector)|hada_(w[12]_[ab]|t[12])|lokr_(w[12](_[ab])?|t2)"
)


def open_peft(model: Any, label: str) -> Source:
    """The weights that the model computes with now; SourceError when they are not base + LoRA."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    active = _active(model)
    for name in active:
        config = model.peft_config[name]
        refuse_other_kinds(config.to_dict() if hasattr(config, "to_dict") else {}, name)
    modules = dict(inner.named_modules())
    state = {
        plain: tensor
        for key, tensor in inner.state_dict().items()
        if (plain := _plain(key, modules)) is not None
    }
    base = module_source(inner, label, state)
    deltas = _deltas(modules, base, label)
    identity: dict[str, Any] = {
        "kind": "adapter",
        "name": ",".join(active) or "none",
        "revision": None,
        "files": [],
    }
    adapted = AdaptedSource(base, Overlay({}, deltas, identity), label)
    adapted.config = config_of(inner)
    return adapted


def _active(model: Any) -> list[str]:
    names = getattr(model, "active_adapters", None) or getattr(model, "active_adapter", None) or []
    found = names() if callable(names) else names
    return [found] if isinstance(found, str) else list(found)


def _plain(key: str, modules: Mapping[str, Any]) -> str | None:
    """The name of a tensor in the merged model; None for adapter parameters and for what is not in use."""
    parts = key.split(".")
    kept: list[str] = []
    module: Any = modules[""]
    skip = 0
    for depth, part in enumerate(parts):
        path = ".".join(parts[:depth])
        module = modules.get(path, module)
        if skip:
            skip -= 1
        elif _OWN.fullmatch(part) and hasattr(module, "base_layer"):
            return None
        elif part == "base_layer" and hasattr(module, "base_layer"):
            continue
        elif part in ("original_module", "modules_to_save") and hasattr(module, "original_module"):
            used = _saved_in_use(module)
            if (part == "modules_to_save") != (used is not None) or (used and parts[depth + 1] != used):
                return None
            skip = 1 if used else 0
        elif part == "token_adapter" and hasattr(module, "token_adapter"):
            raise _unsupported(path, "it trains single rows of the embedding")
        else:
            kept.append(part)
    return ".".join(kept)


def _saved_in_use(module: Any) -> str | None:
    """The adapter whose copy of a saved module computes now, if any does."""
    if getattr(module, "disable_adapters", False):
        return None
    active = [name for name in module.active_adapters if name in module.modules_to_save]
    return active[0] if active else None


def _deltas(modules: Mapping[str, Any], base: Source, label: str) -> dict[str, Delta]:
    cache, tensors = FactorCache(), base.tensors
    found: dict[str, list[Delta]] = {}
    for path, module in modules.items():
        if not (hasattr(module, "scaling") and hasattr(module, "base_layer")):
            continue
        name = ".".join(part for part in path.split(".") if part != "base_layer")
        weight, bias = f"{name}.weight", f"{name}.bias"
        for adapter in _unmerged(module):
            if weight not in tensors:
                raise _unsupported(path, "its base weight is tied to another tensor or is not a plain weight")
            found.setdefault(weight, []).append(_delta(module, adapter, tensors[weight], base, cache))
            factors = getattr(module, "lora_B", {})
            trained = getattr(factors[adapter], "bias", None) if adapter in factors else None
            if trained is not None and bias in tensors:
                slice_of = partial(elements, trained.detach().cpu())
                found.setdefault(bias, []).append(Scaled(slice_of, module.scaling[adapter]))
    return {name: deltas[0] if len(deltas) == 1 else Sum(tuple(deltas)) for name, deltas in found.items()}


def _unmerged(module: Any) -> list[str]:
    """Active adapters of a layer that are not part of its weight yet; others than plain LoRA are refused."""
    if getattr(module, "disable_adapters", False):
        return []
    merged = getattr(module, "merged_adapters", [])
    names = [n for n in module.active_adapters if n in module.scaling and n not in merged]
    variants = [n for n in names if n in getattr(module, "lora_variant", {})]
    magnitudes = getattr(module, "lora_magnitude_vector", None) or {}
    if any(n not in magnitudes for n in variants) or hasattr(module, "parameter_name"):
        raise _unsupported(type(module).__name__, "it is not plain LoRA")
    if variants and len(names) > 1:
        raise _unsupported(type(module).__name__, "several adapters are active, and one of them is DoRA")
    return names


def _delta(module: Any, adapter: str, meta: TensorMeta, base: Source, cache: FactorCache) -> Delta:
    """What one adapter adds to a layer's weight."""
    if not hasattr(module, "lora_A"):
        return Made(partial(_made, module, adapter), cache)
    product = _low_rank(module, adapter, meta, cache)
    if adapter not in getattr(module, "lora_variant", {}):
        return product
    rows, columns = meta.shape[0], meta.numel // max(1, meta.shape[0])
    turned = adapter in module.lora_embedding_A or bool(getattr(module, "fan_in_fan_out", False))
    magnitude = module.lora_magnitude_vector[adapter].weight
    weight, vector = (
        partial(base.read, meta.name),
        partial(_matrix, magnitude, (1, magnitude.numel()), turned=False),
    )
    return Rescaled(product, weight, vector, (rows, columns), turned, cache)


def _made(module: Any, adapter: str, dtype: torch_types.dtype) -> Tensor:
    """LoHa and LoKr: PEFT's layers say themselves what they add."""
    made: Tensor = module.get_delta_weight(adapter).detach().cpu().to(dtype)
    return made


def _low_rank(module: Any, adapter: str, base: TensorMeta, cache: FactorCache) -> LowRank:
    """The product of a live layer's factors, turned the way its weight lies."""
    rows = base.shape[0]
    columns = base.numel // max(1, rows)
    if adapter in module.lora_embedding_A:
        a, b, turned = module.lora_embedding_A[adapter], module.lora_embedding_B[adapter], True
    else:
        a, b = module.lora_A[adapter].weight, module.lora_B[adapter].weight
        turned = bool(getattr(module, "fan_in_fan_out", False))
    if b.shape[1] != a.shape[0]:
        raise _unsupported(type(module).__name__, "it adapts a convolution in groups")
    rank = a.shape[0]
    first, second = (a, (rank, rows)), (b, (columns, rank))
    if not turned:
        first, second = (b, (rows, rank)), (a, (rank, columns))
    left = partial(_matrix, *first, turned=turned)
    right = partial(_matrix, *second, turned=turned)
    return LowRank(left, right, module.scaling[adapter], columns, cache)


def _matrix(factor: Tensor, shape: tuple[int, int], *, turned: bool) -> Tensor:
    matrix = factor.detach().cpu().reshape(shape)
    return matrix.T if turned else matrix


def _unsupported(what: str, reason: str) -> SourceError:
    return SourceError(
        "CV-S025",
        f"`{printable(what)}` of the PEFT model cannot be read as base + LoRA: {reason}",
        where=Where(tensor=printable(what)),
        hint="call `merge_and_unload()` on the model and pass the result",
    )
