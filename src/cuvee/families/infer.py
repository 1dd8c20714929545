"""Families of architectures that no file describes: stack, roles and vocabulary found from names, shapes
and config.

The rules, all of them guesses and said so in the family's note: names are grouped by what precedes their
first part that is an index (so `blk.3.experts.7.w1` is layer 3); the group with the most indices, then the
most tensors, is the stack of the only module, `default`. Everything else is before or after it by its
likely role. An axis is the vocabulary's if it is as long as the config says, on a tensor that looks like
embeddings or an output head. Must not know any known family.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cuvee.families.config import class_names, get_path, numbers
from cuvee.families.family import Family, Module, guessed_position, is_index
from cuvee.families.globs import Glob, find, glob
from cuvee.families.read import GENERIC, facts, generic_roles

_LAYER_WORDS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "depth", "encoder_layers")
_VOCABULARY_WORDS = ("vocab_size", "n_vocab", "vocabulary_size")
_ROW_ROLES = ("embeddings", "head")

Shapes = Mapping[str, tuple[int, ...]]


def infer(config: Mapping[str, Any] | None, names: Shapes, reason: str) -> Family:
    """The family that names, shapes and config suggest; `reason` opens its note."""
    config = config or {}
    stack, count = longest_stack(names)
    outside = {n: s for n, s in names.items() if stack is None or _index_after(stack, n) is None}
    size = _vocabulary_size(config)
    vocabulary = _vocabulary_axes(outside, None if size is None else size[1])
    module = Module(
        name="default",
        prefixes=("",),
        stacks=() if stack is None else (stack,),
        layers_key=_layers_key(config, count),
        vocabulary_key=None if size is None else size[0],
        before_roles=_exactly(outside, "before"),
        after_roles=_exactly(outside, "after"),
        vocabulary=tuple(glob(n, str(axis)) for n, axis in vocabulary.items()),
    )
    ties = [(h, e) for h, e in _same_rows(outside, vocabulary) if names[h] == names[e]]
    generic = facts(GENERIC)
    return Family(
        name="inferred",
        known=False,
        note=f"{reason}; {_found(stack, count, module.layers_key)}",
        architectures=class_names(config),
        modules={"default": module},
        tied_pairs=tuple(ties) if len(ties) == 1 else (),
        optional_names=tuple(glob(p) for p in generic["optional"]),
        head_names=tuple(glob(p) for p in generic["heads"]),
        generic_roles=generic_roles(),
    )


def longest_stack(names: Shapes) -> tuple[str | None, int]:
    """(path before the layer index, number of layers) of the largest stack; (None, 0) without any index."""
    indices: dict[str, set[int]] = {}
    tensors: dict[str, int] = {}
    for name in names:
        parts = name.split(".")
        at = next((i for i, part in enumerate(parts) if is_index(part)), None)
        if at is not None:
            path = ".".join(parts[:at])
            indices.setdefault(path, set()).add(int(parts[at]))
            tensors[path] = tensors.get(path, 0) + 1
    if not indices:
        return None, 0
    best = max(indices, key=lambda p: (len(indices[p]), tensors[p], p))
    return best, max(indices[best]) + 1


def _index_after(stack: str, name: str) -> int | None:
    head = f"{stack}." if stack else ""
    if not name.startswith(head):
        return None
    digits = name[len(head) :].partition(".")[0]
    return int(digits) if is_index(digits) else None


def _exactly(outside: Shapes, position: str) -> tuple[Glob, ...]:
    """The role of each name outside the stack whose likely position is this one, as exact patterns."""
    roles = {n: find(generic_roles(), n) or "other" for n in outside if "*" not in n}
    return tuple(glob(n, role) for n, role in roles.items() if guessed_position(n, role) == position)


def _layers_key(config: Mapping[str, Any], count: int) -> str | None:
    """The config path that holds the number of layers: usual words first, then any with `layer` in it."""
    fits = [path for path, value in numbers(config) if value == count and count > 0]
    for word in _LAYER_WORDS:
        for path in fits:
            if path.split(".")[-1] == word:
                return path
    return next((p for p in fits if "layer" in p.split(".")[-1]), None)


def _vocabulary_size(config: Mapping[str, Any]) -> tuple[str, int] | None:
    for path in (*_VOCABULARY_WORDS, *(f"text_config.{w}" for w in _VOCABULARY_WORDS)):
        value = get_path(config, path)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return path, value
    return None


def _vocabulary_axes(outside: Shapes, size: int | None) -> dict[str, int]:
    """Axis with one entry per token, by name; without a size, rows of word embeddings count as tokens."""
    roles = {n: find(generic_roles(), n) for n in outside}
    rows = size
    if rows is None:
        tables = [s[0] for n, s in outside.items() if roles[n] == "embeddings" and len(s) == 2]
        rows = max(tables, default=None)
    if rows is None:
        return {}
    tokens = {n: s for n, s in outside.items() if roles[n] in _ROW_ROLES and rows in s}
    return {n: s.index(rows) for n, s in tokens.items()}


def _same_rows(outside: Shapes, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """(output head, embeddings) pairs that could be one tensor."""
    two = {n: find(generic_roles(), n) for n in vocabulary if len(outside[n]) == 2}
    heads = [n for n, role in two.items() if role == "head"]
    tables = [n for n, role in two.items() if role == "embeddings"]
    return [(h, t) for h in heads for t in tables]


def _found(stack: str | None, count: int, key: str | None) -> str:
    if stack is None:
        return "no layers were found in the tensor names, so layer curves take their first value"
    counted = f"{count} layers were found under `{stack}`" if stack else f"{count} layers were found"
    return counted if key else f"{counted}, and no entry of the config holds their number"
