"""The family of a pipeline: the families of its components, each under the component's name.

A component of one module, or with one stack of layers, gives a module of its own name; further modules are called
`<component>.<module>`. Must not
know any single family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from cuvee.families.family import Family, Module
from cuvee.families.globs import Glob
from cuvee.families.infer import Shapes
from cuvee.families.read import generic_roles

Identify = Callable[[Mapping[str, Any] | None, Shapes], Family]
_DENOISERS = ("unet", "transformer", "prior", "decoder")


def is_pipeline(config: Mapping[str, Any]) -> bool:
    """Whether a config is that of a pipeline, with its components' configurations."""
    return "_class_name" in config and isinstance(config.get("components"), Mapping)


def composed(config: Mapping[str, Any], names: Shapes, identify: Identify) -> Family:
    """The family of `<component>.<name>` tensors. Its name is that of the component that removes the noise."""
    parts: dict[str, Family] = {}
    inside: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in names.items():
        part, _, rest = name.partition(".")
        inside.setdefault(part, {})[rest] = shape
    for part, shapes in inside.items():
        parts[part] = identify(config["components"].get(part), shapes)
    modules: dict[str, Module] = {}
    for part, family in parts.items():
        modules |= _modules(part, family, inside[part])
    main = next((part for part in _DENOISERS if part in parts), next(iter(parts), "default"))
    known = main in parts and parts[main].known
    return Family(
        name=parts[main].name if known else str(config["_class_name"]),
        known=known,
        note=_note(parts),
        architectures=(str(config["_class_name"]),),
        modules=modules,
        main=next((name for name in modules if name.split(".")[0] == main), next(iter(modules), main)),
        always_tied=tuple((f"{p}.{d}", f"{p}.{o}") for p, f in parts.items() for d, o in f.always_tied),
        optional_names=tuple(_below(p, g) for p, f in parts.items() for g in f.optional_names),
        generic_roles=generic_roles(),
    )


def _modules(part: str, family: Family, names: Shapes) -> dict[str, Module]:
    """The modules of a component that the names have, under the component's name."""
    used = [m for m in family.modules if any(family.place(n).module == m for n in names)] or [family.main]
    stacked = [m for m in used if family.modules[m].stacks]
    first = used[0] if len(used) == 1 else stacked[0] if len(stacked) == 1 else None
    out = {}
    for module in used:
        name = part if module == first else f"{part}.{module}"
        inner = family.modules[module]
        out[name] = replace(inner, name=name, prefixes=tuple(f"{part}.{p}" for p in inner.prefixes))
    return out


def _below(part: str, pattern: Glob) -> Glob:
    return Glob((f"{part}.{pattern.parts[0]}", *pattern.parts[1:]), pattern.value)


def _note(parts: Mapping[str, Family]) -> str | None:
    unknown = [f"`{part}`" for part, family in parts.items() if not family.known]
    return f"no family is known for {', '.join(unknown)}; names decide there" if unknown else None
