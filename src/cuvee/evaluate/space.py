"""Which parameters of a method are tuned, and over which ranges: derived from the method's own signature.

The coefficient (λ, or what plays its part) is searched on a log scale around its default, for sums of N experts around
default ÷ √N; fractions on a linear one. Users may name other parameters and ranges. Knows parameters, not searchers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cuvee.core.names import printable
from cuvee.errors import UsageError
from cuvee.methods import registry
from cuvee.methods.contract import Method
from cuvee.methods.parameters import Parameter, Range

COEFFICIENTS = (
    "lambda",
    "scale",
    "t",
    "beta",
    "eta",
    "weight",
)  # the first that a method has is its coefficient
# fractions that only decide where a formula ends or is replaced by its limit
_GUARDS = {"threshold", "rank_tol"}
REACH = 4.0  # a coefficient is searched from its centre ÷ this to its centre × this
# stages that add experts up, some of them only where they are not told to average: the sum of N nearly orthogonal task
# vectors is √N times as long as one of them, and as long as one where the coefficient is 1 / √N
_SUMS = {"weighted_sum", "consensus", "forget", "cabs", "factorwise", "elect"}


@dataclass(frozen=True, slots=True)
class Dimension:
    """One tuned parameter: an interval (`log` or linear, whole numbers if `whole`) or a list of `choices`."""

    name: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    whole: bool = False
    choices: tuple[Any, ...] = ()

    def at(self, share: float) -> Any:
        """The value at a share 0…1 of the dimension."""
        if self.choices:
            return self.choices[min(int(share * len(self.choices)), len(self.choices) - 1)]
        if self.log:
            value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + share * (self.high - self.low)
        return round(value) if self.whole else min(max(value, self.low), self.high)  # a logarithm is rounded

    def levels(self, count: int) -> list[Any]:
        """`count` values spread over the dimension, its ends included; all choices of a list."""
        if self.choices:
            return list(self.choices)
        return [self.at(i / max(1, count - 1)) for i in range(count)] if count > 1 else [self.at(0.5)]


def dimensions(
    method: str,
    given: Mapping[str, Any] | None = None,
    *,
    experts: int = 1,
    settings: Mapping[str, Any] | None = None,
) -> list[Dimension]:
    """What is tuned of a method: its coefficient and its first fraction, or exactly the `given` ranges.

    The coefficient's range is a quarter of its centre to four times its centre; the centre is the default, of methods
    that add so many `experts` up, with these `settings`, the default ÷ √experts.

    `given` maps parameter names to `[low, high]`, to a list of more values to choose from, or to None: the range of the
    signature. UsageError for a name the method does not have, values it refuses, or a text without values.
    """
    asked = registry.get(method)
    known = registry.parameters_for(asked)
    if given is not None:
        return [_given(method, known, name, values) for name, values in given.items()]
    found = []
    coefficient = next((n for n in COEFFICIENTS if n in known and _plain(known[n])), None)
    if coefficient == "t":
        found.append(Dimension("t", 0.0, 1.0))
    elif coefficient is not None and not (coefficient == "weight" and _cancels(asked, known)):
        centre = _default(known[coefficient]) / math.sqrt(experts if _adds_up(asked, settings or {}) else 1)
        found.append(Dimension(coefficient, centre / REACH, centre * REACH, log=True))
    free = [p for p in known.values() if p.name != coefficient and not {p.name, p.argument} & _GUARDS]
    fraction = next(filter(_is_fraction, free), None)
    if fraction is not None:
        found.append(Dimension(fraction.name, 0.02, 1.0))
    return found


def parsed(text: str) -> tuple[str, list[Any] | None]:
    """A name and its range from `name`, `name=low:high` or `name=one,two,…`; UsageError CV-U372 for another text."""
    name, equals, values = text.partition("=")
    if not equals:
        return name, None
    pieces = values.split(":") if ":" in values else values.split(",")
    if len(pieces) < 2 or (":" in values and len(pieces) != 2) or not all(pieces):
        raise UsageError(
            "CV-U372",
            f"`{printable(text)}` is no range to tune over",
            hint="write `density=0.1:0.9` for an interval, `merge=mean,sum` for a list, `density` for the whole range",
        )
    found = [_value(piece) for piece in pieces]
    if ":" not in values and len(found) == 2 and all(type(value) in (int, float) for value in found):
        raise UsageError(
            "CV-U372",
            f"`{printable(text)}` may mean an interval or two values",
            hint=f"write `{printable(name)}={pieces[0]}:{pieces[1]}` for the interval, or three values or more",
        )
    return name, found


def _value(text: str) -> Any:
    """A number, true or false, or the text itself."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _cancels(method: Method, known: Mapping[str, Parameter]) -> bool:
    """Whether one common weight changes nothing: it is divided out, or weights (not task vectors) are averaged."""
    normalised = known.get("normalize")
    return method.base != "required" or (normalised is not None and normalised.default is True)


def _adds_up(method: Method, settings: Mapping[str, Any]) -> bool:
    """Whether the merge is a sum over experts that no number of them divides."""
    chosen = registry.arguments_for(method, settings)
    return any(
        step.stage in _SUMS and not values.get("normalize") and values.get("merge", "sum") == "sum"
        for step, values in zip(method.steps, chosen, strict=True)
    )


def _default(parameter: Parameter) -> float:
    """The default, or 1 where it is none that a log scale can be centred on."""
    default = parameter.default
    return float(default) if isinstance(default, (int, float)) and default > 0 else 1.0


def _plain(parameter: Parameter) -> bool:
    return parameter.type == "float" and (parameter.name != "weight" or parameter.per_expert)


def _is_fraction(parameter: Parameter) -> bool:
    bounds = parameter.range
    whole = bounds is not None and (bounds.low, bounds.high) == (0.0, 1.0)
    return (
        whole
        and not parameter.optional
        and parameter.type == "float"
        and 0.0 < (parameter.default or 0.0) < 1.0
    )


def _from_signature(parameter: Parameter) -> Dimension:
    """The whole range that a signature gives; where it has no end, a tenth to ten times the default."""
    name, bounds = parameter.name, parameter.range or Range()
    if name == "t" and parameter.type == "float" and parameter.range is None:
        return Dimension("t", 0.0, 1.0)  # between two models, as it is tuned without being named
    if parameter.type in ("bool", "choice"):
        return Dimension(name, choices=(False, True) if parameter.type == "bool" else parameter.choices)
    if parameter.type == "str":
        raise UsageError("CV-U371", f"`{name}` is a text: it is tuned over values that are named")
    whole = parameter.type == "int"
    if math.isfinite(bounds.low) and math.isfinite(bounds.high):
        if 0 < bounds.low <= bounds.high / REACH**2 and not (bounds.open_low or bounds.open_high):
            return Dimension(name, bounds.low, bounds.high, log=True, whole=whole)
        inside = 0.0 if whole else 0.02 * (bounds.high - bounds.low)  # bounds may be excluded
        return Dimension(name, bounds.low + inside, bounds.high - inside * bounds.open_high, whole=whole)
    middle = _default(parameter)
    low, high = max(middle / 10, bounds.low), min(middle * 10, bounds.high)
    low = max(low, 1.0) if whole else low
    return Dimension(name, low, high, log=low > 0, whole=whole)


def _given(method: str, known: Mapping[str, Parameter], name: str, values: Sequence[Any] | None) -> Dimension:
    if name not in known:
        raise UsageError(
            "CV-U030",
            f"`{method}` has no parameter `{printable(name)}` to tune",
            hint=f"it has {', '.join(known)}",
        )
    parameter = known[name]
    if values is None:
        return _from_signature(parameter)
    for value in values:
        problem = parameter.problem(value)
        if problem:
            raise UsageError("CV-U031", f"the range of `{name}` is wrong: a value {problem}")
    if parameter.type in ("float", "int") and len(values) == 2:
        low, high = (float(v) for v in values)
        if low >= high:
            raise UsageError(
                "CV-U372",
                f"the interval of `{name}` from {low:g} to {high:g} is empty",
                hint="write the smaller end first; a value that is not tuned is a setting",
            )
        if not math.isfinite(high - low):
            raise UsageError(
                "CV-U372", f"the interval of `{name}` from {low:g} to {high:g} is wider than numbers go"
            )
        return Dimension(name, low, high, log=low > 0 and high / low >= 10, whole=parameter.type == "int")
    return Dimension(name, choices=tuple(values))
