"""Diffusion models in one file: which one it is, told by its names, and the way to and from a pipeline's names.

Owns `key_maps/layouts.toml`. Names are `<component>.<name>` on the side of diffusers. What has no place on the other
side is an error with the reason, unless the layout lists it as unused there.
"""

from __future__ import annotations

import fnmatch
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.core.names import printable
from cuvee.core.tensors import TensorMeta
from cuvee.errors import Diagnostic, SourceError, Where
from cuvee.sources.pipeline import COMPONENTS
from cuvee.sources.source import Source, note

if TYPE_CHECKING:
    from cuvee.sources.key_map import Made
    from cuvee.sources.mapped import MappedSource

_LAYOUTS = Path(__file__).parent / "key_maps" / "layouts.toml"


@dataclass(frozen=True, slots=True)
class Component:
    """Where a pipeline's component lies in a single file, and the table of names inside it."""

    name: str
    prefixes: tuple[str, ...]
    table: str | None
    wrapped: str | None  # may be left off names in diffusers


@dataclass(frozen=True, slots=True)
class Layout:
    """One kind of single-file checkpoint."""

    name: str
    has: tuple[str, ...]
    lacks: tuple[str, ...]
    pipelines: tuple[str, ...]
    unused: tuple[str, ...]
    components: tuple[Component, ...]

    def carried_by(self, names: Iterable[str]) -> bool:
        """Whether the names are those of this layout."""
        listed = list(names)
        return all(_any(p, listed) for p in self.has) and not any(_any(p, listed) for p in self.lacks)

    def placed(self, names: Iterable[str]) -> dict[str, tuple[Component, str]]:
        """Component and prefix of every name that lies in one; the longest prefix wins."""
        prefixes = sorted(((p, c) for c in self.components for p in c.prefixes), key=lambda x: -len(x[0]))
        found = {}
        for name in names:
            for prefix, component in prefixes:
                if name.startswith(prefix):
                    found[name] = (component, prefix)
                    break
        return found


@lru_cache(maxsize=1)
def layouts() -> tuple[Layout, ...]:
    """All layouts, in the order of the file."""
    data = tomllib.loads(_LAYOUTS.read_text(encoding="utf-8"))
    return tuple(_layout(name, section) for name, section in data.items())


def _layout(name: str, section: Mapping[str, Any]) -> Layout:
    components = tuple(
        Component(key, tuple(value["prefixes"]), value.get("map"), value.get("wrapped"))
        for key, value in section["components"].items()
    )
    lists = [tuple(section.get(key, ())) for key in ("has", "lacks", "pipelines", "unused")]
    has, lacks, pipelines, unused = lists
    return Layout(name, has, lacks, pipelines, unused, components)


def layout_of(names: Iterable[str]) -> Layout | None:
    """The layout that the names of a single file are of, None when it is none that is known."""
    listed = list(names)
    return next((layout for layout in layouts() if layout.carried_by(listed)), None)


def layout_for(config: Mapping[str, Any]) -> Layout | None:
    """The single-file layout that a pipeline of this index could be written in.

    Stable Diffusion 1 and 2 have pipelines of one class; version 2 has the text encoder without quick GELU.
    """
    kind = str(config.get("_class_name", ""))
    stem = kind.removesuffix("Pipeline")
    for suffix in ("Img2Img", "Inpaint"):
        stem = stem.removesuffix(suffix)
    known = [layout for layout in layouts() if stem in layout.pipelines]
    if len(known) > 1:
        encoder = config.get(COMPONENTS, {}).get("text_encoder", {})
        second = encoder.get("hidden_act", "quick_gelu") != "quick_gelu"
        known = [layout for layout in known if (layout.name == "sd2") == second]
    return known[0] if known else None


def as_pipeline(single: Source, layout: Layout, like: Source | None = None) -> MappedSource:
    """A single file under the names that its components have in diffusers.

    `like` is a pipeline whose side files, config and spelling the result takes over. SourceError when a tensor has
    no place there.
    """
    from cuvee.sources.key_map import key_map  # hardly any model is put under other names
    from cuvee.sources.mapped import MappedSource

    spelling = set(like.tensors) if like is not None else set()
    made: dict[str, Made] = {}
    strange: list[str] = []
    by_component: dict[Component, dict[str, str]] = {}
    placed = layout.placed(single.tensors)
    for name in single.tensors:
        if name in placed and not _any_of(layout.unused, name):
            component, prefix = placed[name]
            by_component.setdefault(component, {})[name[len(prefix) :]] = name
        elif not _any_of(layout.unused, name):
            strange.append(name)
    for component, inner in by_component.items():
        metas = {short: replace(single.tensors[name], name=short) for short, name in inner.items()}
        found = key_map(component.table).to_diffusers(metas)
        strange += [inner[short] for short in found.strange]
        for short, one in found.made.items():
            target = f"{component.name}.{_spelled(short, component, spelling)}"
            made[target] = _renamed(one, target, inner)
    if strange:
        raise _no_place(single, strange, "diffusers' names", layout)
    unused = len(single.tensors) - sum(len(inner) for inner in by_component.values())
    return MappedSource(single, made, _unused_note(single, unused), like)


def as_single(pipeline: Source, layout: Layout, like: Mapping[str, TensorMeta] | None = None) -> MappedSource:
    """A pipeline under the names of a single file; `like` are the tensors of one whose prefixes it takes over."""
    from cuvee.sources.key_map import key_map
    from cuvee.sources.mapped import MappedSource

    used = {c.name: prefix for c, prefix in layout.placed(like or {}).values()}
    components = {component.name: component for component in layout.components}
    made: dict[str, Made] = {}
    strange: list[str] = []
    lacking: list[str] = []
    by_component: dict[str, dict[str, str]] = {}
    for name in pipeline.tensors:
        part, _, rest = name.partition(".")
        if part in components:
            by_component.setdefault(part, {})[_unspelled(rest, components[part])] = name
    for part, inner in by_component.items():
        component = components[part]
        prefix = used.get(part, component.prefixes[0])
        metas = {short: replace(pipeline.tensors[name], name=short) for short, name in inner.items()}
        found = key_map(component.table).to_original(metas)
        strange += [inner[short] for short in found.strange if not _any_of(layout.unused, short)]
        lacking += [f"{part}.{short}" for short in found.lacking]
        made |= {prefix + short: _renamed(one, prefix + short, inner) for short, one in found.made.items()}
    if strange or lacking:
        raise _no_place(pipeline, strange or lacking, f"the names of `{layout.name}`", layout, bool(lacking))
    left = sorted({name.partition(".")[0] for name in pipeline.tensors} - components.keys())
    notes: tuple[Diagnostic, ...] = ()
    if left:
        message = (
            f"`{layout.name}` checkpoints have no place for {', '.join(f'`{printable(n)}`' for n in left)}"
        )
        notes = (note("CV-S153", message, pipeline.label),)
    single = MappedSource(pipeline, made, notes)
    single.config = None  # that of a pipeline says nothing of a file
    return single


def _spelled(short: str, component: Component, spelling: set[str]) -> str:
    """The name without what the pipeline leaves off."""
    wrapped = component.wrapped
    if wrapped is None or not short.startswith(wrapped) or f"{component.name}.{short}" in spelling:
        return short
    bare = short.removeprefix(wrapped)
    return bare if f"{component.name}.{bare}" in spelling else short


def _unspelled(short: str, component: Component) -> str:
    wrapped = component.wrapped
    if wrapped is None or short.startswith((wrapped, "text_projection")):
        return short
    return wrapped + short


def _renamed(one: Made, target: str, inner: Mapping[str, str]) -> Made:
    parts = tuple(replace(part, name=inner[part.name]) for part in one.parts)
    return replace(one, meta=replace(one.meta, name=target), parts=parts)


def _any(pattern: str, names: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)


def _any_of(patterns: Iterable[str], name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _unused_note(single: Source, unused: int) -> tuple[Diagnostic, ...]:
    if not unused:
        return ()
    message = f"{unused} tensors of the single file have no place in a pipeline and are left out"
    return (note("CV-S153", message, single.label),)


def _no_place(
    source: Source, names: list[str], form: str, layout: Layout, lacking: bool = False
) -> SourceError:
    first = printable(names[0])
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    what = f"`{first}`{more} is missing" if lacking else f"`{first}`{more} has no place"
    return SourceError(
        "CV-S152",
        f"`{printable(source.label)}` cannot be put into {form}: {what}",
        where=Where(source=source.label, tensor=first),
        hint=f"it looks like `{layout.name}`, but its blocks are not those of that architecture",
    )
