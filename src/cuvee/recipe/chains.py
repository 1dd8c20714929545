"""How a model of a recipe gives a value of its own for a parameter of a chain of stages.

Owns the names alone. Must not know what stages do, nor what the plan calls their parameters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from cuvee.methods.parameters import Parameter
from cuvee.methods.registry import stage


def own_names(stages: Sequence[str]) -> list[dict[str, str]]:
    """For each stage of a chain the name under which a model sets each parameter.

    `density`, where one stage has it; `trim.density`, where several have; `0.trim.density`, where the stage itself
    stands more than once in the chain, counted from 0.
    """
    known = [[parameter.name for parameter in stage(name).parameters] for name in stages]
    having = Counter(parameter for names in known for parameter in names)
    standing = Counter(stages)
    out = []
    for number, (name, parameters) in enumerate(zip(stages, known, strict=True)):
        long = name if standing[name] == 1 else f"{number}.{name}"
        out.append({own: own if having[own] == 1 else f"{long}.{own}" for own in parameters})
    return out


def own_parameters(stages: Sequence[str]) -> dict[str, Parameter]:
    """The parameters of a chain by the names under which models set them, and by the short ones that are ambiguous."""
    every = {p.name: p for name in stages for p in stage(name).parameters}
    for name, own in zip(stages, own_names(stages), strict=True):
        every |= {own[p.name]: p for p in stage(name).parameters}
    return every
