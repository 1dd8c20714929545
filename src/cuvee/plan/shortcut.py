"""Where the result of combining is known already: expressions that begin there instead of at the experts.

Coefficients behind the combination (`lambda`) are what searches change most. The stages before them give the same
tensor again, which an engine may have kept; here a plan is cut at that place. Must not know where tensors are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from cuvee.core.dtypes import FLOAT32
from cuvee.core.tensors import TensorMeta
from cuvee.methods.registry import stage
from cuvee.plan.nodes import Apply, Leave, Node, Read, Sum
from cuvee.plan.plan import Opened, OutputTensor, Plan


def joint(tensor: OutputTensor) -> Node | None:
    """The node of a tensor behind which only cheap stages stand, where its value is float32; None without stages
    behind it.
    """
    if tensor.compute != FLOAT32 or tensor.action != "merged":
        return None
    node = tensor.node
    while True:
        if isinstance(node, Leave) or (isinstance(node, Apply) and stage(node.stage).role == "combine"):
            return node if node is not tensor.node else None
        if isinstance(node, Sum) and len(node.terms) == 2:
            node = node.terms[1][1]
        elif isinstance(node, Apply) and stage(node.stage).role == "rescale":
            node = node.inputs[0]
        else:
            return None


def joints_of(plan: Plan) -> dict[str, Node]:
    """The joints of a plan's tensors by name, but for tensors that share a summary with one that has none: cut at some
    of its members only, a summary over the model would be one of fewer tensors.
    """
    found = {tensor.meta.name: node for tensor in plan.tensors if (node := joint(tensor)) is not None}
    groups = [{tensor.meta.name for tensor, _ in members} for members in plan.groups().values()]
    while broken := [names for names in groups if not names <= found.keys() and names & found.keys()]:
        found = {name: node for name, node in found.items() if not any(name in names for names in broken)}
    return found


def until(plan: Plan, joints: Mapping[str, Node]) -> Plan:
    """The plan of the joints' values themselves, in float32, under the names of their tensors."""
    tensors = tuple(
        replace(t, meta=TensorMeta(t.meta.name, FLOAT32, t.meta.shape), node=joints[t.meta.name])
        for t in plan.tensors
        if t.meta.name in joints
    )
    return replace(plan, tensors=tensors)


def since(plan: Plan, joints: Mapping[str, Node], kept: Opened) -> Plan:
    """The plan with each joint's value read from the source `kept`, which has it under the tensor's name."""

    def changed(tensor: OutputTensor) -> OutputTensor:
        place = joints.get(tensor.meta.name)
        if place is None:
            return tensor
        value = Read(kept.key, TensorMeta(tensor.meta.name, FLOAT32, tensor.meta.shape))
        return replace(tensor, node=_with(tensor.node, place, value))

    sources = {**plan.sources, kept.key: kept}
    return replace(plan, sources=sources, tensors=tuple(map(changed, plan.tensors)))


def _with(node: Node, place: Node, value: Node) -> Node:
    """The path from a root down to `place` (see `joint`), ending in the value instead."""
    if node is place:
        return value
    if isinstance(node, Sum):
        first, (coefficient, child) = node.terms
        return Sum((first, (coefficient, _with(child, place, value))))
    assert isinstance(node, Apply)
    return replace(node, inputs=(_with(node.inputs[0], place, value), *node.inputs[1:]))
