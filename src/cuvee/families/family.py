"""What tensor names mean in one architecture: places, layers, roles, vocabulary axes, tied tensors.

Owns the data types and the look-up of one name. Must not know where families come from (`read.py`,
`infer.py`) nor any single family (`data/*.toml`), and never imports torch or transformers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from cuvee.families.blocks import NO_BLOCKS, Block, Blocks, Rows
from cuvee.families.config import class_names
from cuvee.families.globs import Glob, find

Position = Literal["before", "layer", "after"]

_LARGEST_INDEX = 6  # digits
_LANGUAGE_MODEL = (
    "ForCausalLM",
    "ForMaskedLM",
    "LMHeadModel",
    "ForConditionalGeneration",
    "ForPreTraining",
    "DoubleHeadsModel",
)


@dataclass(frozen=True, slots=True)
class Place:
    """What one tensor name means.

    `position` is relative to the layers of `module`; `layer` is the index there. `template` is the name
    with that index replaced by `{layer}`. `vocabulary_axis` is the axis with one entry per token, None if
    there is none. `block` is its block where the module has blocks rather than one stack of layers.
    """

    name: str
    module: str
    position: Position
    layer: int | None
    role: str  # one of ROLES
    template: str
    vocabulary_axis: int | None
    block: Block | None = None


@dataclass(frozen=True, slots=True)
class Module:
    """A part of a model with at most one stack of layers.

    Names of its tensors start with one of `prefixes`, layers are `<prefix><stack>.<n>.`; of several spellings
    of either, the one in use comes first. Keys are dotted paths in config.json; `layers_also` and
    `vocabulary_also` repeat the same number and are updated where present. `per_layer_keys` hold one entry
    per layer, `index_keys` hold layer numbers.
    """

    name: str
    prefixes: tuple[str, ...]
    stacks: tuple[str, ...]
    layers_key: str | None
    layers_also: tuple[str, ...] = ()
    vocabulary_key: str | None = None
    vocabulary_also: tuple[str, ...] = ()
    per_layer_keys: tuple[str, ...] = ()
    index_keys: tuple[str, ...] = ()
    layer_roles: tuple[Glob, ...] = field(default=(), repr=False)
    before_roles: tuple[Glob, ...] = field(default=(), repr=False)
    after_roles: tuple[Glob, ...] = field(default=(), repr=False)
    vocabulary: tuple[Glob, ...] = field(default=(), repr=False)  # value: the axis
    block_rows: Rows = field(default=(), repr=False)  # as the family's file has them
    blocks: Blocks = field(default=NO_BLOCKS, repr=False)  # those that the checkpoint has

    def split(self, name: str) -> tuple[int, int, int] | None:
        """Start of the layer index in the name, its end, the index; None when the name is not of a layer."""
        for head in self.heads():
            if name.startswith(head):
                digits, _, _ = name[len(head) :].partition(".")
                if is_index(digits):
                    return len(head), len(head) + len(digits), int(digits)
        return None

    def heads(self) -> tuple[str, ...]:
        """What can stand before a layer index, the dot included."""
        return tuple(f"{p}{s}." if s else p for p in self.prefixes for s in self.stacks)

    def stripped(self, name: str) -> Iterator[str]:
        """The name without each prefix that it carries."""
        for prefix in self.prefixes:
            if name.startswith(prefix):
                yield name[len(prefix) :]


def is_index(text: str) -> bool:
    """Whether a part of a name is a layer index: digits as `str(int)` writes them, at most six."""
    return (
        text.isascii() and text.isdigit() and len(text) <= _LARGEST_INDEX and (text == "0" or text[0] != "0")
    )


@dataclass(frozen=True, slots=True)
class Family:
    """The names of one architecture.

    `known` families come from a file, the others are inferred; `note` says what was guessed, None if nothing.
    """

    name: str
    known: bool
    note: str | None
    architectures: tuple[str, ...]
    modules: Mapping[str, Module]
    main: str = "default"  # the module of names that no other module claims
    tied_pairs: tuple[tuple[str, str], ...] = ()  # one tensor when the config says so
    always_tied: tuple[tuple[str, str], ...] = ()  # one tensor whatever the config says
    ties_by_default: bool = False  # what a config without the key means
    optional_names: tuple[Glob, ...] = field(default=(), repr=False)
    head_names: tuple[Glob, ...] = field(default=(), repr=False)
    generic_roles: tuple[Glob, ...] = field(default=(), repr=False)

    def place(self, name: str) -> Place:
        """What a name means. Never fails: an unknown name is outside the layers, with role `other`."""
        found = recognised(self, name) or self._guess(name)
        module = self.modules.get(found.module)
        if module is None or not module.blocks.labels:
            return found
        block = next((b for short in module.stripped(name) if (b := module.blocks.of(short))), None)
        return found if block is None else replace(found, block=block)

    def rename(self, name: str, layer: int) -> str:
        """The same tensor in another layer of its module; names outside the layers stay as they are."""
        for module in self.modules.values():
            span = module.split(name)
            if span is not None:
                return f"{name[: span[0]]}{layer}{name[span[1] :]}"
        return name

    def layer_count(self, names: Iterable[str], module: str = "default") -> int:
        """Number of layers of a module, from the names alone; 0 if it has none among them."""
        part = self.modules.get(module)
        if part is None:
            return 0
        return max((span[2] + 1 for n in names if (span := part.split(n)) is not None), default=0)

    def tied(self, config: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
        """(derived, owner) names that are one tensor in a model of this config.

        The derived one may be absent from the files, in some old ones the owner instead. Where both are
        there and differ, transformers keeps both, whatever the config says.
        """
        if not _has_language_head(config):
            return self.always_tied
        text = config.get("text_config")
        nested = text.get("tie_word_embeddings") if isinstance(text, Mapping) else None
        value = config.get("tie_word_embeddings", nested)
        tie = self.ties_by_default if value is None else bool(value)
        return self.always_tied + (self.tied_pairs if tie else ())

    def optional(self, name: str) -> bool:
        """Whether a valid checkpoint may lack this name: constants, unused poolers, tied copies."""
        derived = {d for d, _ in (*self.tied_pairs, *self.always_tied)}
        return name in derived or find(self.optional_names, name) is not None

    def head(self, name: str) -> bool:
        """Whether the tensor belongs to a task head (classifier, score, spans, pooler), not to the body."""
        return find(self.head_names, name) is not None

    def _guess(self, name: str) -> Place:
        role = find(self.generic_roles, name) or "other"
        claims = [
            (len(p), m.name) for m in self.modules.values() for p in m.prefixes if p and name.startswith(p)
        ]
        module = max(claims)[1] if claims else self.main
        return Place(name, module, guessed_position(name, role), None, role, name, None)


def recognised(family: Family, name: str) -> Place | None:
    """The place of a name that one of the family's modules lists, None for any other name."""
    for module in family.modules.values():
        span = module.split(name)
        if span is not None:
            rest = name[span[1] + 1 :]
            role = find(module.layer_roles, rest) or find(family.generic_roles, rest) or "other"
            template = f"{name[: span[0]]}{{layer}}{name[span[1] :]}"
            return Place(name, module.name, "layer", span[2], role, template, None)
    for module in family.modules.values():
        for short in module.stripped(name):
            for position, roles in (("before", module.before_roles), ("after", module.after_roles)):
                listed = find(roles, short)
                if listed is not None:
                    axis = find(module.vocabulary, short)
                    where: Position = "before" if position == "before" else "after"
                    found = None if axis is None else int(axis)
                    return Place(name, module.name, where, None, listed, name, found)
    return None


def guessed_position(name: str, role: str) -> Position:
    """Before the layers, unless the role says that it comes after them; norms of embeddings come before."""
    if role in ("head", "head_transform", "classifier", "pooler"):
        return "after"
    early = "embed" in name or "pre" in name or "patch" in name
    return "after" if role == "norm" and not early else "before"


def _has_language_head(config: Mapping[str, Any]) -> bool:
    classes = class_names(config)
    return not classes or any(word in c for c in classes for word in _LANGUAGE_MODEL)
