"""How the attention of the output's modules is built, for chains with a stage that asks for it.

Owns the refusal where that is not known. Must not know what a stage does with heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cuvee.core.names import printable
from cuvee.errors import Diagnostic, Where
from cuvee.families.attention import Attention, attention
from cuvee.methods.contract import Heads
from cuvee.methods.registry import stage
from cuvee.plan.arrangement import Target
from cuvee.plan.methods import Chosen
from cuvee.plan.views import View

_LOOSE = frozenset({"q", "k", "v", "o", "cross_q", "cross_k", "cross_v", "cross_o"})
_NORMS = frozenset({"q_norm", "k_norm"})


def heads_of(
    chosen: Chosen, donor: View, targets: Sequence[Target], found: list[Diagnostic]
) -> Mapping[str, Heads]:
    """Heads of each module with attention, by name; a diagnostic where they are not known or laid out otherwise."""
    wanting = [step.stage for step in chosen.method.steps if stage(step.stage).heads]
    if not wanting:
        return {}
    roles: dict[str, dict[str, str]] = {}
    for target in targets:
        if target.place.layer is not None:
            roles.setdefault(target.place.module, {}).setdefault(target.place.role, target.name)
    known: dict[str, Heads] = {}
    for module, names in roles.items():
        built = _built(donor, module, names)
        if isinstance(built, Attention):
            known[module] = Heads(
                built.heads, built.groups, built.size, built.rope, built.rotated, built.norm
            )
        elif built is not None:
            name = next(iter(names.values()))
            message = f"`{wanting[0]}` must know the heads of `{printable(module)}`, but {built}"
            found.append(Diagnostic("CV-P190", message, Where(source=donor.alias, tensor=name)))
    if not known and not found:
        message = f"`{wanting[0]}` changes attention, and no layer of this model is known to have any"
        found.append(Diagnostic("CV-P190", message, Where(source=donor.alias)))
    return known


def _built(donor: View, module: str, names: Mapping[str, str]) -> Attention | str | None:
    """The attention, why it is not known, or None for a module that has none."""
    if not names.keys() & _LOOSE and "qkv" not in names:
        return None
    built = attention(donor.family.name, module, donor.config or {})
    if isinstance(built, str):
        return built
    if names.keys() & _NORMS and not built.norm:
        norm = next(name for role, name in names.items() if role in _NORMS)
        return f"the norm `{printable(norm)}` is of a kind that is not described"
    return built
