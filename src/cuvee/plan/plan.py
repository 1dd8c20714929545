"""The plan as a value: sources, output tensors with their expressions, layout, side files, notes.

Pure data with a digest; building it is `build.py`, showing it `explain.py`, running it the engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from cuvee.core.digests import canonical_json
from cuvee.core.dtypes import DType
from cuvee.core.tensors import TensorMeta
from cuvee.errors import Diagnostic
from cuvee.families import Family
from cuvee.plan.nodes import Apply, Convert, Node, Read, describe, walk
from cuvee.recipe.model import Recipe
from cuvee.recipe.settings import Resolved
from cuvee.sinks.layout import Layout
from cuvee.sources.source import Source


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One tensor of the output: what it is, the expression that gives it, and why its parameters are what they are."""

    meta: TensorMeta
    node: Node
    module: str
    layer: int | None
    role: str
    compute: DType
    parameters: Mapping[str, Resolved | Mapping[str, Resolved]] = field(default_factory=dict)
    simplest: Node | None = None  # after every rule, where some are switched off: what digests see
    parts: tuple[
        tuple[int, int], ...
    ] = ()  # runs of elements that are made, where somebody else has the others

    @property
    def action(self) -> str:
        """`copied` (bytes travel unchanged), `converted` (only the dtype changes) or `merged`."""
        node = self.node
        if isinstance(node, Read):
            return "copied" if node.meta.dtype == self.meta.dtype else "converted"
        if isinstance(node, Convert) and isinstance(node.child, Read):
            return "converted"
        return "merged"


@dataclass(frozen=True, slots=True)
class Opened:
    """A physical source of the plan under its key, and the local paths that the recipe named it by."""

    key: str
    source: Source
    family: Family | None
    paths: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a run needs; nothing in it was computed from weights."""

    recipe: Recipe
    sources: Mapping[str, Opened]
    tensors: tuple[OutputTensor, ...]
    layout: Layout
    family: Family
    donor: str | None  # key of the source whose config and side files the output starts from
    config: Mapping[str, Any] | None  # the output's config.json, without its dtype-dependent edits done
    side_files: Mapping[str, bytes]
    notes: tuple[Diagnostic, ...]
    method_label: str
    nested: tuple[Plan, ...] = ()  # of the recipes among the sources

    @property
    def digest(self) -> str:
        """BLAKE3 of everything that decides the output's bytes."""
        return blake3(canonical_json(self.as_json())).hexdigest()

    def as_json(self) -> dict[str, Any]:
        """The plan as JSON data (schema `cuvee.plan/1`), without notes and origins of parameters."""
        return {
            "method": self.method_label,
            "sources": {k: o.source.identity() for k, o in self.sources.items()},
            "tensors": [
                {
                    "name": t.meta.name,
                    "dtype": t.meta.dtype.name,
                    "shape": list(t.meta.shape),
                    "compute": t.compute.name,
                    "expression": describe(t.simplest or t.node),
                }
                for t in self.tensors
            ],
            "files": [f.name for f in self.layout.files],
            "config": self.config,
            "side_files": {name: blake3(data).hexdigest() for name, data in self.side_files.items()},
        }

    def groups(self) -> dict[str, list[tuple[OutputTensor, Apply]]]:
        """Stage applications that share a summary over several tensors, by group, in the order of tensor names.

        A nested recipe's groups span all of its output, whatever the outer one takes of it, and however often.
        """
        found: dict[str, list[tuple[OutputTensor, Apply]]] = {}
        for plan in self.nested:
            found.update(plan.groups())
        inside = frozenset(found)
        for tensor in sorted(self.tensors, key=lambda t: t.meta.name):
            for node in walk(tensor.node):
                if isinstance(node, Apply) and node.group is not None and node.group not in inside:
                    found.setdefault(node.group, []).append((tensor, node))
        return found

    def close(self) -> None:
        """Release every file the sources hold open."""
        for opened in self.sources.values():
            opened.source.close()
