"""What lies in files below an expression: tensors as they are stored, each once, and what adapters add to them.

Owns the question which bytes two inputs share: several adapters over one base read its tensor together, and a change
that adapters know by themselves needs no base. Asks sources by their protocol; must not know an engine, nor torch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cuvee.core.dtypes import DType
from cuvee.errors import SourceError
from cuvee.methods.registry import stage
from cuvee.plan.changes import changes_of
from cuvee.plan.nodes import Apply, Convert, Difference, Node, Read
from cuvee.sources.adapted import sum_dtype
from cuvee.sources.source import Source, stored_form, unfetched

if TYPE_CHECKING:
    from cuvee.core.tensors import Extent
    from cuvee.sources.low_rank import Delta

Sources = Mapping[str, Source]
Bytes = Mapping[Hashable, int]  # of stored tensors, by what tells them apart


@dataclass(frozen=True, slots=True)
class Leaf:
    """A tensor as `source` holds it, what is added to it on the way (in the type `kind`), and what tells it apart."""

    source: Source
    name: str
    deltas: tuple[Delta, ...]
    kind: DType
    key: Hashable
    nbytes: int


def leaf_of(node: Read, sources: Sources) -> Leaf:
    """What reading an input reads of a source below all adapters."""
    source, name = sources[node.source], node.meta.name
    under = getattr(source, "under", None)
    holder, deltas = under(name) if under else (source, ())
    kind = sum_dtype(holder.tensors[name].dtype) if deltas else holder.tensors[name].dtype
    place = _place(holder, name)
    if place is None:
        return Leaf(holder, name, deltas, kind, (id(holder), name), stored_form(holder, name).nbytes)
    # Another source's tensor may stand in for this one: what is read is then that, whosever it is.
    return Leaf(holder, name, deltas, kind, (_file(place.path), place.offset, place.nbytes), place.nbytes)


def _place(source: Source, name: str) -> Extent | None:
    """Where the tensor lies, for one that lies plainly; sources of one file are then the same."""
    try:
        return None if unfetched(source) else source.extent(name)  # asking would fetch the weights
    except SourceError:  # it was closed
        return None


def _file(path: Path) -> Hashable:
    """The file behind a path, whatever links lead there now; of a file that is not there, the path."""
    try:
        found = path.stat()
    except OSError:
        return path
    return found.st_dev, found.st_ino


def stored_below(
    nodes: Iterable[Node], sources: Sources, stop: Callable[[Node], bool] = lambda node: False
) -> Bytes:
    """Bytes of every stored tensor below some nodes, down to those where `stop` holds (which is asked of no root)."""
    found: dict[Hashable, int] = {}
    roots = list(nodes)
    seen, left = {id(node) for node in roots}, list(roots)
    while left:
        node = left.pop()
        if isinstance(node, Read):
            leaf = leaf_of(node, sources)
            found[leaf.key] = leaf.nbytes
        elif not known(node, sources):
            children = [child for child in asked(node) if id(child) not in seen and not stop(child)]
            seen.update(map(id, children))
            left += children
    return found


def laid_below(nodes: Iterable[Node], sources: Sources) -> Bytes:
    """Bytes of what adapters add to the tensors below some nodes, as far as sources tell."""
    found: dict[Hashable, int] = {}
    seen: set[int] = set()
    left = list(nodes)
    while left:
        node = left.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, Read):
            found[node.source, node.meta.name] = _laid(node, sources) or 0
        elif isinstance(node, Difference) and known(node, sources):
            expert, base = (read for side in (node.expert, node.base) if (read := _read(side)) is not None)
            own = (_laid(expert, sources) or 0) - (_laid(base, sources) or 0)
            found.setdefault((expert.source, expert.meta.name), own)
        else:
            left += asked(node)
    return found


def asked(node: Node) -> Sequence[Node]:
    """The children of a node without those that a stage leaves alone."""
    if not isinstance(node, Apply) or not stage(node.stage).lazy:
        return node.children
    step, values, count = stage(node.stage), dict(node.values), len(node.inputs)
    often = step.asks_for(values, node.shape, node.place, count)
    if step.scope_for(values) is not None and node.group is None:
        before = step.asks_before_for(values, node.shape, node.place, count)
        often = tuple(map(max, often, before))
    return [child for child, times in zip(node.inputs, often, strict=True) if times]


def needed(root: Node) -> list[Node]:
    """Every node that evaluating one comes to, children first, shared ones once; not those that stages leave alone."""
    seen: set[int] = set()
    found: list[Node] = []

    def visit(node: Node) -> None:
        seen.add(id(node))
        for child in asked(node):
            if id(child) not in seen:
                visit(child)
        found.append(node)

    visit(root)
    return found


def untold(source: Source) -> int:
    """Bytes of the adapters over a source that do not tell how much of them each tensor takes."""
    laid = getattr(source, "laid", None)
    if laid is None or all(laid(name) is not None for name in source.tensors):
        return 0
    return sum(facts.nbytes for facts in getattr(source, "overlays", ()))


def known(node: Node, sources: Sources) -> bool:
    """Whether adapters know a difference by themselves; not where sources were closed and cannot be asked."""
    try:
        return isinstance(node, Difference) and changes_of(node, sources) is not None
    except SourceError:
        return False


def _laid(node: Read, sources: Sources) -> int | None:
    laid = getattr(sources[node.source], "laid", None)
    found: int | None = 0 if laid is None else laid(node.meta.name)
    return found


def _read(node: Node) -> Read | None:
    inner = node.child if isinstance(node, Convert) else node
    return inner if isinstance(inner, Read) else None
