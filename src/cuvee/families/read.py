"""From a family's file to a `Family`: reads `data/<name>.toml`, follows `extends`, makes the look-up tables.

Files are read when asked for. A family may say `extends = "llama"`: it then starts from that family's
modules, and its own tables replace the parent's role by role; class names, model types and the signature
are never taken over. One module of a composed model may say `like = "clip.vision_model"` and start from
that module of that family.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from cuvee.families.blocks import rows_of
from cuvee.families.family import Family, Module
from cuvee.families.globs import Glob, glob, table

DATA = Path(__file__).with_name("data")
GENERIC = "generic"  # roles, heads and constants that hold whatever the family
_OWN = ("architectures", "model_types", "signature")


@lru_cache(maxsize=1)
def texts() -> Mapping[str, str]:
    """The text of every family file, by family name, in alphabetical order."""
    paths = sorted(DATA.glob("*.toml"))
    return {p.stem: p.read_text(encoding="utf-8") for p in paths if p.stem != GENERIC}


def family_names() -> tuple[str, ...]:
    """The names of all families that have a file."""
    return tuple(texts())


@lru_cache(maxsize=256)
def facts(name: str) -> Mapping[str, Any]:
    """The parsed file of one family with what it extends filled in; must not be changed by callers."""
    path = DATA / f"{name}.toml"
    own = tomllib.loads(path.read_text(encoding="utf-8"))
    own["modules"] = {key: _like(module) for key, module in own.get("modules", {}).items()}
    parent = own.pop("extends", None)
    if parent is None:
        return own
    inherited = {k: v for k, v in facts(parent).items() if k not in _OWN}
    return _overlaid(inherited, own)


def _like(module: Mapping[str, Any]) -> Mapping[str, Any]:
    """A module with what its `like = "family.module"` says filled in."""
    own = dict(module)
    model = own.pop("like", None)
    if model is None:
        return own
    family, _, name = str(model).partition(".")
    return _overlaid(facts(family)["modules"][name], own)


@lru_cache(maxsize=256)
def load(name: str) -> Family:
    """The family of this name, not yet fitted to a checkpoint (all spellings of prefixes and tied names)."""
    data, generic = facts(name), facts(GENERIC)
    tied = data.get("tied", {})
    modules = {key: _module(key, value) for key, value in data["modules"].items()}
    return Family(
        name=name,
        known=True,
        note=None,
        architectures=tuple(data.get("architectures", ())),
        modules=modules,
        main=data.get("main", next(iter(modules))),
        tied_pairs=tuple((d, o) for d, o in tied.get("pairs", ())),
        always_tied=tuple((d, o) for d, o in tied.get("always", ())),
        ties_by_default=bool(tied.get("default", False)),
        optional_names=tuple(glob(p) for p in (*data.get("optional", ()), *generic["optional"])),
        head_names=tuple(glob(p) for p in (*data.get("heads", ()), *generic["heads"])),
        generic_roles=generic_roles(),
    )


@lru_cache(maxsize=1)
def generic_roles() -> tuple[Glob, ...]:
    """Patterns of whole names that mean the same in most architectures."""
    return table(facts(GENERIC)["roles"])


def _module(name: str, data: Mapping[str, Any]) -> Module:
    return Module(
        name=name,
        prefixes=tuple(data["prefixes"]),
        stacks=_spellings(data.get("stack")),
        layers_key=data.get("layers_key"),
        layers_also=tuple(data.get("layers_also", ())),
        vocabulary_key=data.get("vocabulary_key"),
        vocabulary_also=tuple(data.get("vocabulary_also", ())),
        per_layer_keys=tuple(data.get("per_layer_keys", ())),
        index_keys=tuple(data.get("index_keys", ())),
        layer_roles=table(data.get("layer", {})),
        before_roles=table(data.get("before", {})),
        after_roles=table(data.get("after", {})),
        vocabulary=tuple(glob(p, "0") for p in data.get("vocabulary", ())),
        block_rows=rows_of(data.get("blocks", {})),
    )


def _spellings(value: str | list[str] | None) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def _overlaid(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`below` with the values of `above` put over it, table by table; new keys of a table come first."""
    out = {k: v for k, v in above.items() if k not in below}
    for key, value in below.items():
        mine = above.get(key, value)
        tables = isinstance(value, Mapping) and isinstance(mine, Mapping)
        out[key] = _overlaid(value, mine) if tables else mine
    return out
