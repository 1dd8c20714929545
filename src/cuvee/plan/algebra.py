"""Which chains of stages make sense: condition*, space, condition*, combine, rescale*, leave, rescale*.

Owns the order and says what is missing or too much. Knows stages by their declarations; runs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cuvee.errors import PlanError
from cuvee.methods.contract import Stage
from cuvee.recipe.model import StageCall


@dataclass(frozen=True, slots=True)
class _Chain:
    calls: Sequence[StageCall]
    stages: Sequence[Stage]

    def refused(self, code: str, what: str, number: int, hint: str | None = None) -> PlanError:
        listed = " → ".join(s.name for s in self.stages)
        where = self.calls[number].where if self.calls else None
        return PlanError(code, what.format(chain=f"the chain {listed}"), where=where, hint=hint)

    def positions(self, role: str) -> list[int]:
        return [i for i, s in enumerate(self.stages) if s.role == role]


def legal(calls: Sequence[StageCall], stages: Sequence[Stage]) -> Stage:
    """The stage that combines; PlanError that names the missing or superfluous step when the chain is senseless."""
    chain = _Chain(calls, stages)
    combine = _combine(chain)
    _space(chain, combine)
    _factors(chain, combine)
    _order(chain, combine)
    one = stages[combine]
    if one.takes == "weight" and len(stages) > 1:
        what = f"`{one.name}` combines weights, but the stages around it work on task vectors"
        hint = "combine with `weighted_sum` or `elect`, which take task vectors"
        raise chain.refused("CV-P012", what, combine, hint)
    return one


def _combine(chain: _Chain) -> int:
    found = chain.positions("combine")
    if len(found) > 1:
        names = [f"`{chain.stages[i].name}`" for i in found]
        hint = f"keep one of {', '.join(names[:-1])} and {names[-1]}"
        what = "{chain} has more than one stage that combines the experts"
        raise chain.refused("CV-P010", what, found[1], hint)
    if not found:
        before = [s.name for s in chain.stages if s.role in ("condition", "space")]
        beside = f"behind `{before[-1]}`" if before else "before `" + chain.stages[0].name + "`"
        hint = f"put `weighted_sum`, `elect` or another combine stage (`cuvee methods --stages`) {beside}"
        raise chain.refused("CV-P010", "{chain} has no stage that combines the experts", 0, hint)
    return found[0]


def _order(chain: _Chain, combine: int) -> None:
    """Conditions stand before the combine stage and rescale stages behind it."""
    one = chain.stages[combine].name
    for number, stage in enumerate(chain.stages):
        if stage.role == "condition" and number > combine:
            what, hint = (
                f"single experts, which `{one}` has combined already",
                f"put `{stage.name}` before `{one}`",
            )
        elif stage.role == "rescale" and number < combine:
            what, hint = (
                f"the merged tensor, which `{one}` makes only later",
                f"put `{stage.name}` behind `{one}`",
            )
        else:
            continue
        raise chain.refused(
            "CV-P011", f"{{chain}} is out of order: `{stage.name}` works on {what}", number, hint
        )


def _space(chain: _Chain, combine: int) -> None:
    """A space is entered once, before the combine stage, and left once, behind it."""
    spaces, leaves, stages = chain.positions("space"), chain.positions("leave"), chain.stages
    if len(spaces) > 1:
        first, second = (stages[i].name for i in spaces[:2])
        hint = f"keep `{first}` or `{second}`; one merge happens in one space"
        raise chain.refused("CV-P170", f"{{chain}} enters `{second}` within `{first}`", spaces[1], hint)
    if leaves and not spaces:
        hint = "add a space such as `knots` before the combine stage, or take `leave` out"
        raise chain.refused("CV-P171", "{chain} leaves a space that it never entered", leaves[0], hint)
    if not spaces:
        return
    space = stages[spaces[0]].name
    if spaces[0] > combine:
        hint = f"put `{space}` before `{stages[combine].name}`"
        raise chain.refused(
            "CV-P172", f"{{chain}} enters `{space}` when the experts are combined already", spaces[0], hint
        )
    if len(leaves) > 1 or (leaves and leaves[0] < combine):
        what = f"{{chain}} leaves `{space}` " + (
            "twice" if len(leaves) > 1 else "before the experts are combined"
        )
        raise chain.refused("CV-P171", what, leaves[-1], "put one `leave` behind the combine stage, or none")
    end = leaves[0] if leaves else combine
    for number in range(spaces[0], end):
        if stages[number].beside == "base":
            what = (
                "{chain} "
                f"has `{stages[number].name}` within `{space}`, but it looks at the base, which has no coordinates"
            )
            raise chain.refused("CV-P173", what, number, f"put it before `{space}` or behind `leave`")


def _factors(chain: _Chain, combine: int) -> None:
    """A stage made for the factors of adapters takes the experts as they are: other stages do not keep factors."""
    stages = chain.stages
    if not stages[combine].factored or combine == 0 or stages[0].role not in ("condition", "space"):
        return
    before, one = stages[0].name, stages[combine].name
    what = f"{{chain}} has `{before}` before `{one}`, which merges the factors of adapters and would get none"
    raise chain.refused(
        "CV-P335", what, 0, f"take `{before}` out, or combine with another stage than `{one}`"
    )
