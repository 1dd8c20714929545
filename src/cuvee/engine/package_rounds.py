"""How many bytes the compiled kernels will read for a package: marks of its tensors, and figures of groups before them.

Owns below which nodes of a tensor bits are marked, for `engine.packing`, which makes them, as well. What kernels leave
to the generic path is counted by `plan.package_reads`. Reads no weight, imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from cuvee.engine.fused.fuse import Fused
from cuvee.engine.rounds import figures_before
from cuvee.methods.combine.consensus import scope
from cuvee.plan.nodes import Apply, Node, walk
from cuvee.plan.packages import MASKED, Piece, pieces
from cuvee.plan.plan import OutputTensor, Plan
from cuvee.plan.reads import Reads


def marked_nodes(piece: Piece) -> Sequence[Node]:
    """The nodes from whose values kernels make bits, as many as nodes: masks of all tasks, or signs of some."""
    if piece.apply.stage in MASKED:
        trimmed = piece.apply.stage == "tall_masks" and scope(dict(piece.apply.values)) is not None
        return () if trimmed else piece.apply.inputs
    own = zip(piece.apply.inputs, piece.codecs, strict=True)
    return [node for node, codec in own if codec == "sign" and isinstance(node, Apply)]


def markable(fused: Fused, piece: Piece, share: int) -> bool:
    """Whether kernels mark a piece with `share` bytes of memory, if its inputs lie plainly and its values allow it."""
    nodes = marked_nodes(piece)
    if not nodes or len(nodes) * piece.tensor.meta.numel // 8 > share:
        return False
    dtype = piece.dtype if piece.apply.stage in MASKED else None
    return fused.recognises_marks(piece.tensor, nodes, dtype)


def prepared(plan: Plan, fused: Fused, share: int) -> Sequence[OutputTensor]:
    """The tensors whose figures of groups kernels find: what is marked, and EMR's, of whose the factors are made."""
    return [p.tensor for p in pieces(plan) if p.apply.stage == "emr_expert" or markable(fused, p, share)]


def marked_reads(
    plan: Plan, fused: Fused, share: int, plain: Callable[[Node], bool]
) -> tuple[Mapping[str, Reads], Reads, frozenset[str]]:
    """What marking takes of each tensor that kernels mark, and what figures of groups take before; those groups of
    which the generic path needs none again.

    `plain`: whether all that lies below a node lies plainly in files or in memory.
    """
    sources = {key: opened.source for key, opened in plan.sources.items()}
    needed = _groups(tensor.node for tensor in prepared(plan, fused, share))
    groups = {name: m for name, m in plan.groups().items() if name in needed and fused.finds(name)}
    least, most, known, before = figures_before(sources, groups, share)
    marked = {
        piece.name: nodes
        for piece in pieces(plan)
        if markable(fused, piece, share) and all(map(plain, nodes := marked_nodes(piece)))
    }
    reads = {name: Reads(least.roots(n, known), most.roots(n, known)) for name, n in marked.items()}
    left = (n for p in pieces(plan) for n in p.apply.inputs if n not in marked.get(p.name, ()))
    return reads, before, frozenset(groups) - _groups(left)


def _groups(nodes: Iterable[Node]) -> set[str]:
    """The groups of stages below some nodes."""
    return {n.group for node in nodes for n in walk(node) if isinstance(n, Apply) and n.group}
