"""The method of a recipe, named or written as a chain of stages, with its parameters in the recipe's dialect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cuvee.methods.contract import Base, Dialect, Method, Missing, Spelling, Step
from cuvee.methods.parameters import Parameter
from cuvee.methods.registry import arguments_for, get, parameters_for, stage
from cuvee.plan.algebra import legal
from cuvee.recipe.chains import own_names
from cuvee.recipe.model import Recipe, Scalar, Settings, StageCall


@dataclass(frozen=True, slots=True)
class Slot:
    """One parameter as the recipe's dialect spells it: its scope, and how a value becomes one of ours."""

    name: str
    scope: Literal["shared", "expert"]
    required: bool
    default: Scalar
    ours: str | None
    spelling: Spelling | None = None
    own: str = ""  # as a model of the recipe writes it, where that differs

    def translate(self, value: Any) -> Any:
        """Our value for the dialect's."""
        return self.spelling.translate(value) if self.spelling else value


@dataclass(frozen=True, slots=True)
class Chosen:
    """A method ready to be planned: what it asks of its inputs under this dialect, its slots and our parameters."""

    method: Method
    base: Base
    inputs: tuple[int, int | None]
    missing: Missing
    slots: tuple[Slot, ...]
    fixed: Mapping[str, Any]
    parameters: Mapping[str, Parameter]
    base_first: bool = False  # the base is the first of the inputs, not what deltas are taken from

    def arguments(self, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Arguments for each stage."""
        return arguments_for(self.method, {**self.fixed, **values})


def choose(recipe: Recipe) -> Chosen:
    """The recipe's method; RecipeError for an unknown name, PlanError for a senseless chain."""
    method = get(recipe.method) if recipe.method else chain(recipe.chain)
    parameters = parameters_for(method)
    dialect = method.dialects.get(recipe.dialect)
    if dialect is not None:
        return _spoken(method, dialect, parameters)
    own = _own_names(recipe.chain)
    slots = tuple(
        Slot(n, "expert" if p.per_expert else "shared", p.required, p.default, n, own=own.get(n, ""))
        for n, p in parameters.items()
    )
    first = _takes_base_first(method, method.base)
    return Chosen(method, method.base, method.inputs, method.missing, slots, {}, parameters, first)


def _takes_base_first(method: Method, base: Base) -> bool:
    """Whether a required base is one of the weights combined (the first), not what task vectors are taken from."""
    combine = next(s for s in (stage(step.stage) for step in method.steps) if s.role == "combine")
    return base == "required" and combine.takes == "weight"


def _spoken(method: Method, dialect: Dialect, parameters: Mapping[str, Parameter]) -> Chosen:
    slots = tuple(
        Slot(s.name, "shared" if s.scope == "shared" else "expert", s.required, s.default, s.ours, s)
        for s in dialect.parameters
    )
    return Chosen(
        method=method,
        base=dialect.base,
        inputs=dialect.inputs,
        missing=dialect.missing,
        slots=slots,
        fixed=dialect.fixed,
        parameters=parameters,
        base_first=_takes_base_first(method, dialect.base),
    )


def step_names(calls: tuple[StageCall, ...]) -> list[dict[str, str]]:
    """For each stage of a chain the method-wide name of each parameter: its own, or `stage.parameter` when shared."""
    seen: dict[str, int] = {}
    for call in calls:
        for parameter in stage(call.stage).parameters:
            seen[parameter.name] = seen.get(parameter.name, 0) + 1
    out = []
    for i, call in enumerate(calls):
        names = {}
        for parameter in stage(call.stage).parameters:
            if seen[parameter.name] > 1:
                names[parameter.name] = f"{i}.{call.stage}.{parameter.name}"
        out.append(names)
    return out


def _own_names(calls: tuple[StageCall, ...]) -> dict[str, str]:
    """What a model writes for each parameter that several stages of a chain have, by the method-wide name."""
    written = own_names([call.stage for call in calls])
    pairs = zip(step_names(calls), written, strict=True)
    return {ours: own[name] for names, own in pairs for name, ours in names.items()}


def chain(calls: tuple[StageCall, ...]) -> Method:
    """A method made of the stages a user chained: conditions, one combine, rescales, with a space around some."""
    stages = [stage(call.stage) for call in calls]
    combine = legal(calls, stages)
    deltas = combine.takes == "delta" or any(s.role != "combine" for s in stages)
    steps = tuple(Step(call.stage, names=names) for call, names in zip(calls, step_names(calls), strict=True))
    base: Base = "required" if deltas else "optional" if combine.takes == "either" else "ordinary"
    listed = " → ".join(s.name for s in stages)
    return Method(
        name="chain",
        steps=steps,
        base=base,
        inputs=combine.inputs,
        summary=listed,
        doc=f"The stages {listed}.",
    )


def chain_settings(calls: tuple[StageCall, ...]) -> Settings:
    """The settings of a chain under their method-wide names."""
    out = {}
    for call, names in zip(calls, step_names(calls), strict=True):
        for parameter, setting in call.settings.items():
            out[names.get(parameter, parameter)] = setting
    return out
