"""One expert's tensor, chosen for each tensor by rules: donors by role or layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cuvee.errors import RunError
from cuvee.methods.contract import Asks, Place, stage
from cuvee.methods.parameters import PerExpert, each

if TYPE_CHECKING:
    from torch import Tensor


def only(flags: Any, count: int) -> int:
    """The position of the one true flag; RunError where there is none or there are several."""
    chosen = [number for number, flag in enumerate(each(flags, count)) if flag]
    if len(chosen) != 1:
        raise RunError("CV-E140", f"{len(chosen)} of {count} experts are chosen, expected exactly one")
    return chosen[0]


def _check(values: Mapping[str, Any]) -> str | None:
    return not_one(values.get("take"), "take")


def not_one(flags: Any, name: str) -> str | None:
    """What is wrong with a list of flags of which exactly one must be true."""
    if not isinstance(flags, (list, tuple)) or sum(map(bool, flags)) == 1:
        return None
    return f"`{name}` must be true for exactly one model, got {sum(map(bool, flags))} of {len(flags)}"


def asks_for_one(name: str) -> Asks:
    """Of a lazy stage that asks for the one input whose flag of this name is true."""

    def asks(values: Mapping[str, Any], shape: tuple[int, ...], place: Place, count: int) -> Sequence[int]:
        return tuple(map(int, map(bool, each(values[name], count))))

    return asks


@stage("donor", role="combine", takes="weight", check=_check, lazy=True, asks=asks_for_one("take"))
def donor(tensors: list[Tensor], *, take: PerExpert[bool] = False) -> Tensor:
    """Copy the tensor of the one model whose `take` is true there, bit for bit.

    With rules by role or layer every tensor is given to one donor; the plan refuses a tensor that nobody or more than
    one model gives.

    Args:
        take: whether this model gives the tensor; exactly one must
    """
    return tensors[only(take, len(tensors))]
