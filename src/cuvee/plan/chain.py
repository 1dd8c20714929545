"""One output tensor's expression: inputs → (realign, convert) → task vectors → stages → base added back."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cuvee.errors import Diagnostic
from cuvee.methods.contract import Place
from cuvee.methods.registry import stage
from cuvee.plan.methods import Chosen
from cuvee.plan.nodes import Apply, Difference, Node, Sum, walk
from cuvee.plan.plan import OutputTensor


@dataclass(frozen=True, slots=True)
class Call:
    """What a chain needs besides its inputs: what the output tensor is, labels of the experts, seed, group prefix."""

    place: Place
    labels: Sequence[str]
    seed: int
    prefix: str


def expression(
    chosen: Chosen, ours: dict[str, Any], experts: list[Node], base: Node | None, call: Call
) -> Node:
    """The merged tensor; `experts` and `base` are in the compute dtype already."""
    arguments = chosen.arguments(ours)
    stages = [stage(step.stage) for step in chosen.method.steps]
    combine = next(i for i, s in enumerate(stages) if s.role == "combine")
    takes = stages[combine].takes
    deltas = base is not None and (takes in ("delta", "either") or combine > 0)
    current: list[Node] = (
        [Difference(e, base) for e in experts] if deltas and base is not None else list(experts)
    )
    beside: dict[str | None, tuple[Node, ...]] = {"experts": tuple(current), "base": (base,) if base else ()}
    for number in range(combine):
        extra = beside.get(stages[number].beside, ())
        current = [
            _apply(stages[number].name, number, (node, *extra), _of(arguments[number], i), call, label)
            for i, (node, label) in enumerate(zip(current, call.labels, strict=True))
        ]
    result = _apply(stages[combine].name, combine, tuple(current), arguments[combine], call, "")
    for number in range(combine + 1, len(stages)):
        extra = beside.get(stages[number].beside, ())
        result = _apply(stages[number].name, number, (result, *extra), arguments[number], call, "")
    return Sum(((1.0, base), (1.0, result))) if deltas and base is not None else result


def _of(arguments: dict[str, Any], expert: int) -> dict[str, Any]:
    """One expert's arguments of a condition stage."""
    return {k: v[expert] if isinstance(v, list) else v for k, v in arguments.items()}


def _apply(
    name: str, number: int, inputs: tuple[Node, ...], arguments: dict[str, Any], call: Call, label: str
) -> Apply:
    values = tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in arguments.items())
    group = None
    if stage(name).scope_for(arguments) == "model":
        # A model-wide figure spans the tensors that share stage, expert and parameter values.
        content = hashlib.blake2b(repr(values).encode(), digest_size=8).hexdigest()
        group = f"{call.prefix}{number}:{name}:{label}:{len(inputs)}:{content}"
    seed = call.seed if stage(name).random else 0
    return Apply(name, inputs, values, call.place.name, label, group, seed, call.place)


def thresholds_apart(tensors: Iterable[OutputTensor], nested: Container[str]) -> Iterator[Diagnostic]:
    """A note for each stage whose model-wide figure is taken over several sets of tensors, since values differ.

    `nested`: the groups of recipes among the sources, which say it themselves.
    """
    seen: dict[str, dict[tuple[str, int], dict[tuple[tuple[str, Any], ...], None]]] = {}
    for tensor in tensors:
        for node in walk(tensor.node):
            if isinstance(node, Apply) and node.group is not None and node.group not in nested:
                own = seen.setdefault(node.stage, {}).setdefault((node.label, len(node.inputs)), {})
                own[node.values] = None
    for name, applications in seen.items():
        sets = max(applications.values(), key=len)
        if len(sets) < 2:
            continue
        values = [dict(one) for one in sets]
        differing = ", ".join(f"`{k}`" for k in values[0] if len({repr(v[k]) for v in values}) > 1)
        message = (
            f"`{name}` looks at the whole model, but {differing} differs between tensors: those with equal values "
            f"are taken together, {len(sets)} sets apart"
        )
        yield Diagnostic("CV-P043", message, severity="note")
