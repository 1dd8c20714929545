"""One output tensor's expression: inputs → (realign, convert) → task vectors → stages → base added back.

Owns the order of a chain: where a space is entered and left, and what stands beside a stage.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from cuvee.errors import Diagnostic
from cuvee.methods.contract import Place, Stage
from cuvee.methods.registry import stage
from cuvee.methods.vectors import is_map
from cuvee.plan.methods import Chosen
from cuvee.plan.nodes import Apply, Coordinate, Difference, Enter, Leave, Node, Sum, walk
from cuvee.plan.plan import OutputTensor


class Shared:
    """Nodes of the last two expressions of one tensor, so that the next is made of the same objects where it says the
    same. What an engine found out about a node then holds for the next plan too.
    """

    def __init__(self) -> None:
        self._before: dict[Any, Node] = {}
        self._now: dict[Any, Node] = {}

    def begin(self) -> None:
        """The next expression begins."""
        self._before, self._now = self._now, {}

    def node(self, what: Any, inputs: Sequence[Node], make: Callable[[], Node]) -> Node:
        """The node of this description over these very inputs; made where there is none."""
        key = (
            what,
            *map(id, inputs),
        )  # a node that is kept keeps its inputs, so that no other has their identity
        found = self._now.get(key) or self._before.get(key)
        self._now[key] = found = found or make()
        return found


@dataclass(frozen=True, slots=True)
class Call:
    """What a chain needs besides its inputs: what the output tensor is, labels of the experts, seed, group prefix."""

    place: Place
    labels: Sequence[str]
    seed: int
    prefix: str
    shared: Shared = field(default_factory=Shared)


def expression(
    chosen: Chosen, ours: dict[str, Any], experts: list[Node], base: Node | None, call: Call
) -> Node:
    """The merged tensor; `experts` and `base` are in the compute dtype already."""
    arguments = chosen.arguments(ours)
    stages = [stage(step.stage) for step in chosen.method.steps]
    combine = next(i for i, s in enumerate(stages) if s.role == "combine")
    takes = stages[combine].takes
    deltas = base is not None and (takes in ("delta", "either") or combine > 0)
    origin: Node | None = base if deltas else None
    shared = call.shared
    shared.begin()
    entered = list(experts)
    if origin:
        entered = [shared.node("difference", (e, origin), partial(Difference, e, origin)) for e in experts]
    result = _Walk(call, entered, base).through(stages, arguments)
    if origin is None:
        return result
    return shared.node("sum", (origin, result), partial(Sum, ((1.0, origin), (1.0, result))))


class _Walk:
    """The way of one tensor's inputs through the stages of a chain."""

    def __init__(self, call: Call, inputs: list[Node], base: Node | None) -> None:
        self.call = call
        self.current = inputs
        self.entered = tuple(inputs)
        self.space: Enter | None = None
        self.beside: dict[str | None, tuple[Node, ...]] = {
            "experts": self.entered,
            "base": (base,) if base else (),
        }

    def through(self, stages: Sequence[Stage], arguments: Sequence[dict[str, Any]]) -> Node:
        """One node: what the last stage gives, in the tensor's own coordinates."""
        explicit = any(one.role == "leave" for one in stages)
        for number, (one, values) in enumerate(zip(stages, arguments, strict=True)):
            if one.role == "space":
                self._enter(one, values)
            elif one.role == "leave":
                self._leave()
            elif one.role == "combine":
                self.current = [_apply(one.name, number, tuple(self.current), values, self.call, "")]
                if not explicit:
                    self._leave()
            else:
                self._each(one, number, values, merged=any(s.role == "combine" for s in stages[:number]))
        (result,) = self.current
        return result

    def _each(self, one: Stage, number: int, values: dict[str, Any], *, merged: bool) -> None:
        extra = self.beside.get(one.beside, ())
        labels = [""] if merged else self.call.labels
        self.current = [
            _apply(one.name, number, (node, *extra), values if merged else _of(values, i), self.call, label)
            for i, (node, label) in enumerate(zip(self.current, labels, strict=True))
        ]

    def _enter(self, space: Stage, values: dict[str, Any]) -> None:
        """Only maps have a space to go to; other tensors pass the stages within as they are."""
        if not is_map(self.current[0].shape, self.call.place):
            return
        inputs, given, shared = tuple(self.current), tuple(values.items()), self.call.shared
        make = partial(Enter, space.name, inputs, given, self.call.place)
        made = shared.node(("enter", space.name, repr(given)), inputs, make)
        assert isinstance(made, Enter)
        self.space = made
        self.current = [
            shared.node(("coordinate", i), (made,), partial(Coordinate, made, i)) for i in range(len(inputs))
        ]
        self.beside["experts"] = tuple(self.current)

    def _leave(self) -> None:
        if self.space is not None:
            space, shared = self.space, self.call.shared
            self.current = [shared.node("leave", (space, n), partial(Leave, space, n)) for n in self.current]
            self.beside["experts"] = self.entered
        self.space = None


def _of(arguments: dict[str, Any], expert: int) -> dict[str, Any]:
    """One expert's arguments of a condition stage."""
    return {k: v[expert] if isinstance(v, list) else v for k, v in arguments.items()}


def _apply(
    name: str, number: int, inputs: tuple[Node, ...], arguments: dict[str, Any], call: Call, label: str
) -> Node:
    values = tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in arguments.items())
    make = partial(_applied, name, number, inputs, arguments, values, call, label)
    return call.shared.node((name, number, label, repr(values)), inputs, make)


def _applied(
    name: str,
    number: int,
    inputs: tuple[Node, ...],
    arguments: dict[str, Any],
    values: tuple[tuple[str, Any], ...],
    call: Call,
    label: str,
) -> Apply:
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
