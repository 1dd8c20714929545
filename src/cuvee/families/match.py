"""Which family a checkpoint belongs to, and the names its tensors have without the wrappers of training code.

Asks class names first, then `model_type`, then the names alone; checks the answer against the names. Must
not know any single family: signatures are in `data/*.toml`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from cuvee.core.names import printable
from cuvee.families.blocks import fitted
from cuvee.families.compose import composed, is_pipeline
from cuvee.families.config import class_names, get_path
from cuvee.families.family import Family, Module, is_index, recognised
from cuvee.families.globs import glob
from cuvee.families.infer import Shapes, infer
from cuvee.families.read import facts, load, texts

_WRAPPED_ANYWHERE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_WRAPPED_AT_START = ("module.", "base_model.model.")
_WRAPPER_STATE = ("n_averaged",)  # what averaging wrappers keep beside the model
_SAMPLE = 256
_ENOUGH = 0.5


def identify(config: Mapping[str, Any] | None, names: Shapes) -> Family:
    """The family of a checkpoint, fitted to it: prefixes, config keys and tied names are those in use.

    Args:
        config: config.json as read, or None.
        names: shapes by canonical tensor name; only names decide among known families.

    Returns:
        A known family when the config names one and at least half of the names fit it, or when the config
        names none and the names carry a family's signature; else a family inferred from the names, with a
        note.
    """
    if config is not None and is_pipeline(config):
        return composed(config, names, identify)
    named = _named(config or {})
    if named is not None and (not names or _fits(load(named), names)):
        return _fitted(load(named), config or {}, names)
    reason = _reason(config or {}, named)
    signed = _signed(names) if named is None else None
    if signed is not None and _fits(load(signed), names):
        note = f"{reason}; the tensor names are those of `{signed}`"
        return replace(_fitted(load(signed), config or {}, names), note=note)
    return infer(config, names, reason)


def canonical_names(names: Iterable[str]) -> dict[str, str]:
    """Stored name → name without wrappers of training code.

    `_orig_mod.` (torch.compile), `_fsdp_wrapped_module.` and `_checkpoint_wrapped_module.` are taken out
    wherever a part of a name is one of them. `module.` (data parallel) and `base_model.model.` (PEFT) are
    taken off the start, repeatedly, as long as every name carries them (`n_averaged`, the counter of
    averaging wrappers, aside). If two names became equal, nothing is changed at all.
    """
    stored = list(names)
    clean = {n: _unwrapped(n) for n in stored}
    while True:
        body = [c for c in clean.values() if c not in _WRAPPER_STATE]
        prefix = next((p for p in _WRAPPED_AT_START if body and all(c.startswith(p) for c in body)), None)
        if prefix is None:
            break
        clean = {n: c if c in _WRAPPER_STATE else c[len(prefix) :] for n, c in clean.items()}
    usable = len(set(clean.values())) == len(stored) and all(clean.values())
    return clean if usable else {n: n for n in stored}


def _unwrapped(name: str) -> str:
    for wrapper in _WRAPPED_ANYWHERE:
        if wrapper in name:
            name = f".{name}".replace(f".{wrapper}", ".")[1:]
    return name


def _named(config: Mapping[str, Any]) -> str | None:
    """The family whose file lists one of the config's classes, else its model type."""
    classes, types = _index()
    for name in class_names(config):
        if name in classes:
            return classes[name]
    kind = config.get("model_type")
    return types.get(kind) if isinstance(kind, str) else None


@lru_cache(maxsize=1)
def _index() -> tuple[dict[str, str], dict[str, str]]:
    """Class name → family and model type → family, read off the files' first lines without parsing them."""
    classes: dict[str, str] = {}
    types: dict[str, str] = {}
    for family, text in texts().items():
        for line in text.splitlines():
            key, _, value = line.partition(" = ")
            if key in ("architectures", "model_types"):
                into = classes if key == "architectures" else types
                into.update(dict.fromkeys((v.strip(' "') for v in value.strip("[] ").split(",")), family))
            elif line.startswith("["):
                break
    return classes, types


def _signed(names: Shapes) -> str | None:
    """The family whose signature the names carry; the longest signature if several do."""
    shapes = {_numberless(n) for n in names}
    best: tuple[int, str] | None = None
    for family in texts():
        signature = facts(family).get("signature")
        if signature is None:
            continue
        has, lacks = signature["has"], signature.get("lacks", [])
        if all(_any(p, shapes) for p in has) and not any(_any(p, shapes) for p in lacks):
            best = max(best or (0, ""), (len(has) + len(lacks), family))
    return None if best is None else best[1]


def _numberless(name: str) -> str:
    return ".".join("#" if is_index(part) else part for part in name.split("."))


def _any(pattern: str, names: Iterable[str]) -> bool:
    ready = glob(pattern)
    return any(ready.matches(n) for n in names)


def _fits(family: Family, names: Shapes) -> bool:
    """Whether at least half of (a spread of) the names are listed by the family."""
    step = max(1, len(names) // _SAMPLE)
    seen = list(names)[::step]
    return sum(recognised(family, n) is not None for n in seen) >= _ENOUGH * len(seen)


def _fitted(family: Family, config: Mapping[str, Any], names: Shapes) -> Family:
    pairs = tuple(p for p in family.tied_pairs if p[1] in names)
    always = tuple(p for p in family.always_tied if p[1] in names or p[0] in names)
    modules = {key: _fitted_module(m, config, names) for key, m in family.modules.items()}
    return replace(
        family,
        modules=modules,
        tied_pairs=pairs or family.tied_pairs,
        always_tied=always or family.always_tied,
    )


def _fitted_module(module: Module, config: Mapping[str, Any], names: Shapes) -> Module:
    """The module with the prefix and the config keys that are in use put first."""
    used = {p: i for i, p in enumerate(module.prefixes) if _carries(module, p, names)}
    prefixes = tuple(sorted(module.prefixes, key=lambda p: p not in used))
    layers = _present(config, (module.layers_key, *module.layers_also))
    rows = _present(config, (module.vocabulary_key, *module.vocabulary_also))
    inner = [short for n in names for short in module.stripped(n)] if module.block_rows else []
    return replace(
        module,
        blocks=fitted(module.block_rows, inner),
        prefixes=prefixes,
        layers_key=layers[0],
        layers_also=tuple(k for k in layers[1:] if k is not None),
        vocabulary_key=rows[0],
        vocabulary_also=tuple(k for k in rows[1:] if k is not None),
    )


def _carries(module: Module, prefix: str, names: Shapes) -> bool:
    """Whether this checkpoint has names of the module's stack, or any if it has none, with the prefix."""
    heads = tuple(f"{prefix}{s}." if s else prefix for s in module.stacks) or (prefix,)
    return any(n.startswith(heads) for n in names)


def _present(config: Mapping[str, Any], keys: tuple[str | None, ...]) -> tuple[str | None, ...]:
    """The keys with the first one that the config has moved to the front."""
    first = next((k for k in keys if k is not None and get_path(config, k) is not None), None)
    return keys if first is None else (first, *(k for k in keys if k != first))


def _reason(config: Mapping[str, Any], named: str | None) -> str:
    if named is not None:
        return f"the config says `{named}`, but most tensor names are not that family's"
    said = next(iter(class_names(config)), None) or config.get("model_type")
    return (
        f"`{printable(str(said))}` is not a known architecture"
        if said
        else "no config names the architecture"
    )
