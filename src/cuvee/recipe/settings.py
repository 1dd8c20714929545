"""Settings → the value of a parameter for one tensor, and where that value came from."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass

from cuvee.core.names import matches
from cuvee.errors import PlanError, Where
from cuvee.families.blocks import Block
from cuvee.recipe.curves import at_depth
from cuvee.recipe.model import BlockValues, Curve, Rule, Scalar, Setting


@dataclass(frozen=True, slots=True)
class Spot:
    """What a rule may ask of a tensor: its name, role, module, output layer, depth in the slice (0…1), and block."""

    name: str
    role: str
    module: str
    layer: int | None
    depth: float
    block: Block | None = None


@dataclass(frozen=True, slots=True)
class Resolved:
    """A value with its origin: `default`, or the place of the rule that gave it."""

    value: Scalar
    origin: str
    where: Where | None = None


def resolve(settings: Iterable[Setting | None], spot: Spot) -> Resolved | None:
    """The first matching rule of the first setting that has one; None when nothing matches."""
    for setting in settings:
        for rule in setting or ():
            if applies(rule, spot):
                value = rule.value
                if isinstance(value, BlockValues):
                    return Resolved(at_block(value, spot.block, rule.where), "blocks", rule.where)
                if isinstance(value, Curve):
                    return Resolved(at_depth(value, spot.depth), "curve", rule.where)
                return Resolved(value, "recipe", rule.where)
    return None


def applies(rule: Rule, spot: Spot) -> bool:
    """Whether a rule is for this tensor."""
    if rule.name is not None and rule.name != "*":
        hit = rule.name in spot.name if rule.substring else matches(rule.name, spot.name)
        if not hit:
            return False
    if rule.roles and spot.role not in rule.roles:
        return False
    if rule.layers is not None and not (
        spot.layer is not None and rule.layers[0] <= spot.layer < rule.layers[1]
    ):
        return False
    if rule.blocks and not (
        spot.block and any(fnmatch.fnmatchcase(spot.block.label, b) for b in rule.blocks)
    ):
        return False
    return rule.module is None or rule.module == spot.module or spot.module.startswith(f"{rule.module}.")


def at_block(value: BlockValues, block: Block | None, where: Where | None = None) -> Scalar:
    """The value of a block; PlanError when there are not as many values as blocks."""
    if block is None:
        return value.base
    if isinstance(value.values, Curve):
        return at_depth(value.values, block.depth)
    if len(value.values) != block.count:
        message = f"`blocks` has {len(value.values)} values, and the model has {block.count} blocks"
        raise PlanError("CV-P154", message, where=where)
    return value.values[block.number]
