"""What a merge method is: stages with typed parameters and declared traits, chained into named presets.

A *stage* is a pure function on tensors. Its roles:

    condition   one task vector → one task vector     trim, drop, magprune, band
    combine     all inputs of a tensor → one tensor   weighted_sum, elect, slerp, sce
    rescale     one tensor → one tensor               scale
    space       all inputs → their coordinates         knots, core_space
    leave       one tensor of coordinates → one tensor leave

A *method* (`ties`, `dare_linear`, …) names a chain of stages with their defaults; users may also write the
chain. From a stage's signature come its parameters, their schema, help and validation (`parameters.py`).

How an engine may call a stage (the traits; `cuvee.testing` tries to refute each one):

- `access="element"`: on any run of elements, cut anywhere; `"row"`: on whole rows; `"tensor"`: on the whole
  tensor, or only on those tensors that `whole` names, all others by elements.
- tensors arrive flat (`element`), as (rows, row length) (`row`, see `rows_of`), or in their own shape
  (`tensor`), all in one compute dtype, which is float32 unless the recipe says otherwise; a stage with
  `upcast=True` gets at least float32. Flat blocks start at multiples of 1024 elements.
- a stage that needs figures over more than a block declares `summarise(stream, **parameters)`, which reads a
  `Stream` of the stage's own inputs as often as it likes, before the stage itself runs; its result arrives as
  `summary`. `scope_for` says over what (a tensor, the model), or None where these parameter values need no
  summary: then `summary` is an empty mapping. The tensors of a model are numbered by sorted output name.
- randomness arrives as `uniforms`, a counter-based stream addressed by element index.
- decompositions of matrices are asked of `decompose`, which keeps them from run to run.
- what the tensor is (its name, role and layer in the output) stands in `block.place`; how its attention is built too,
  for a stage that declares `heads=True`.
- a condition or rescale stage that declares `beside="base"` or `beside="experts"` finds the base's tensor, or the task
  vectors as they entered the chain, behind its own tensor in `block.tensors`, in its summary's stream too.
- a combine stage that declares `lazy=True` gets a sequence that evaluates an input when it is asked for, so that what
  it does not ask for is not read; whole tensors are evaluated anew each time, so that memory does not grow with the
  number of experts. Others get a list.
- a space turns the task vectors of one matrix into `Coordinates`, whose shape the data may decide; the stages behind
  it work on those as on any tensor, until its `leave` makes a task vector of what they combined to. It sees whole
  tensors (`access="tensor"`), and low-rank factors of its inputs where it names `factors`.
- no in-place change of an argument; no global state; accumulation in the compute dtype or better.

This package imports only `cuvee.core`, `cuvee.errors` and (lazily) torch and NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from cuvee.methods.handed import (
    NOWHERE,
    Block,
    Coordinates,
    Decomposer,
    Factors,
    Heads,
    Place,
    Stream,
    Uniforms,
    rows_of,
)
from cuvee.methods.parameters import Parameter, parameters_of

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "NOWHERE", "Access", "Asks", "Base", "Beside", "Block", "Coordinates", "Decomposer", "Dialect", "Factors", "Heads",
    "Kind", "Method", "Missing", "Place", "Role", "Scope", "Spelling", "Stage", "Status", "Step", "Stream", "Summary",
    "Uniforms", "rows_of", "stage",
]  # fmt: skip

Kind = Literal["weight", "delta", "either"]
Access = Literal["element", "row", "tensor"]
Role = Literal["condition", "combine", "rescale", "space", "leave"]
Scope = Literal["tensor", "model"]
Base = Literal["required", "optional", "ordinary"]
Missing = Literal["error", "skip", "base"]
Status = Literal["exact", "exact-math", "reconstructed"]
Beside = Literal["base", "experts"]
Summary = Mapping[str, Any]
Asks = Callable[
    [Mapping[str, Any], tuple[int, ...], Place, int], Sequence[int]
]  # values, shape, place, inputs


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a merge with its declared traits.

    Callables among the traits (`access`, `scope`, `check`) take the parameter values by argument name,
    without torch.
    """

    name: str
    role: Role
    function: Callable[..., Tensor]
    takes: Kind
    access: Access | Callable[[Mapping[str, Any]], Access]
    parameters: tuple[Parameter, ...]
    summarise: Callable[..., Summary] | None
    scope: Callable[[Mapping[str, Any]], Scope | None]
    check: Callable[[Mapping[str, Any]], str | None]
    random: bool
    upcast: bool
    lazy: bool
    beside: Beside | None
    inputs: tuple[int, int | None]
    doc: str
    paper: str | None
    leave: Callable[[Tensor, Any], Tensor] | None = None
    records: tuple[str, ...] = ()
    heads: bool = False
    factored: bool = False
    fits: Callable[[Mapping[str, Any], int], tuple[str, str] | None] | None = None
    whole: Callable[[tuple[int, ...], Place, Mapping[str, Any]], bool] | None = None
    acts: Callable[[tuple[int, ...], Place, Mapping[str, Any]], bool] | None = None
    passes: int | Callable[[Mapping[str, Any]], int] = 1
    passes_more: int | Callable[[Mapping[str, Any]], int] = 0
    asks: int | Asks = 1
    asks_before: int | Asks = 1
    apart: bool = False

    def access_for(
        self, values: Mapping[str, Any], shape: tuple[int, ...] | None = None, place: Place = NOWHERE
    ) -> Access:
        """The access this stage needs with these parameter values: for a tensor of this shape and place, or, without
        a shape, for those that need most.
        """
        access = self.access(values) if callable(self.access) else self.access
        if access == "tensor" and self.whole and shape is not None and not self.whole(shape, place, values):
            return "element"
        return access

    def scope_for(self, values: Mapping[str, Any]) -> Scope | None:
        """What the stage's summary covers with these parameter values; None where it needs none."""
        return self.scope(values) if self.summarise else None

    def passes_for(self, values: Mapping[str, Any]) -> int:
        """How often the summary walks its stream with these parameter values; 0 where it needs none."""
        if self.scope_for(values) is None:
            return 0
        return self.passes(values) if callable(self.passes) else self.passes

    def passes_at_most(self, values: Mapping[str, Any]) -> int:
        """How often the summary walks its stream at most, whatever the data: magnitudes may tie at a threshold."""
        if self.scope_for(values) is None:
            return 0
        more = self.passes_more(values) if callable(self.passes_more) else self.passes_more
        return self.passes_for(values) + more

    def asks_for(
        self, values: Mapping[str, Any], shape: tuple[int, ...], place: Place, count: int
    ) -> tuple[int, ...]:
        """How often the stage asks for each of `count` inputs of a tensor; once where it takes all of them together."""
        found = self.asks if self.lazy else 1
        return (found,) * count if isinstance(found, int) else tuple(found(values, shape, place, count))

    def asks_before_for(
        self, values: Mapping[str, Any], shape: tuple[int, ...], place: Place, count: int
    ) -> tuple[int, ...]:
        """The same of one walk of the stage's summary over its stream."""
        found = self.asks_before if self.lazy else 1
        return (found,) * count if isinstance(found, int) else tuple(found(values, shape, place, count))

    def problem(self, values: Mapping[str, Any]) -> str | None:
        """What is wrong with scalar values that are each within range, as a sentence without full stop, or
        None.
        """
        return self.check(values)


@dataclass(frozen=True, slots=True)
class Step:
    """A stage in a method's chain, with the defaults the method gives it and the parameters it fixes.

    All three mappings are keyed by the stage's parameter names. `names` gives a parameter another name in the
    method, where two stages have one of the same name that must not be one.
    """

    stage: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Spelling:
    """One parameter as another program's recipes write it.

    `scope`: one value for all (`shared`), one for each model but the base (`expert`), or for each model
    (`input`). `ours`: the method's parameter it sets; None where it is accepted without effect. `values`
    translates choices; numbers beyond `clamp` mean its ends.
    """

    name: str
    type: Literal["float", "int", "bool"]
    scope: Literal["shared", "expert", "input"]
    required: bool = False
    default: Any = None
    ours: str | None = None
    values: Mapping[Any, Any] = field(default_factory=dict)
    clamp: tuple[float, float] | None = None

    def translate(self, value: Any) -> Any:
        """Our value for one of theirs; numbers beyond `clamp` mean its ends."""
        if self.clamp is not None and value is not None:
            low, high = self.clamp
            return min(max(value, low), high)
        return self.values.get(value, value) if self.values else value


@dataclass(frozen=True, slots=True)
class Dialect:
    """How another program's recipes speak of a method: the parameters legal there, and what it asks of its
    inputs.

    `fixed` are values of our parameters that cannot be changed from there and differ from our defaults.
    `inputs` counts models as `Method.inputs` does.
    """

    parameters: tuple[Spelling, ...]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    base: Base = "required"
    inputs: tuple[int, int | None] = (0, None)
    missing: Missing = "skip"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters that are legal."""
        return tuple(spelling.name for spelling in self.parameters)

    @property
    def defaults(self) -> dict[str, Any]:
        """Values of our parameters where a recipe says nothing."""
        given = {s.ours: s.translate(s.default) for s in self.parameters if s.ours and not s.required}
        return {**self.fixed, **given}

    def spelling(self, name: str) -> Spelling | None:
        """The parameter of this name, or None."""
        return next((s for s in self.parameters if s.name == name), None)

    def translate(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Our parameter values for scalar values of theirs, defaults filled in; KeyError on unknown names."""
        known = {s.name: s for s in self.parameters}
        pairs = [(known[name], value) for name, value in given.items()]
        return {**self.defaults, **{s.ours: s.translate(value) for s, value in pairs if s.ours}}


@dataclass(frozen=True, slots=True)
class Method:
    """A named preset: a chain of stages, what it asks of a base and inputs, and where it is defined.

    - `base`: `required` (task vectors are taken from it), `optional`, or `ordinary` (just another input).
    - `inputs`: least and most number of models besides the base (for `ordinary`: of all models).
    - `missing`: what happens where a tensor exists in some inputs only: `error`, `skip` (merge those that have
      it) or `base` (treat an absent expert as unchanged).
    - `dialects`: how other front doors spell it, by name (`mergekit`).
    """

    name: str
    steps: tuple[Step, ...]
    base: Base
    inputs: tuple[int, int | None]
    summary: str
    doc: str
    paper: str | None = None
    status: Status = "exact"
    missing: Missing = "skip"
    dialects: Mapping[str, Dialect] = field(default_factory=dict)
    bibtex: str | None = None


def stage(  # noqa: PLR0913 (one keyword for each trait)
    name: str,
    *,
    role: Role,
    takes: Kind = "delta",
    access: Access | Callable[[Mapping[str, Any]], Access] = "element",
    summarise: Callable[..., Summary] | None = None,
    scope: Callable[[Mapping[str, Any]], Scope | None] | None = None,
    check: Callable[[Mapping[str, Any]], str | None] | None = None,
    random: bool = False,
    upcast: bool = False,
    lazy: bool = False,
    beside: Beside | None = None,
    inputs: tuple[int, int | None] = (1, None),
    paper: str | None = None,
    leave: Callable[[Tensor, Any], Tensor] | None = None,
    records: tuple[str, ...] = (),
    heads: bool = False,
    factored: bool = False,
    fits: Callable[[Mapping[str, Any], int], tuple[str, str] | None] | None = None,
    whole: Callable[[tuple[int, ...], Place, Mapping[str, Any]], bool] | None = None,
    acts: Callable[[tuple[int, ...], Place, Mapping[str, Any]], bool] | None = None,
    passes: int | Callable[[Mapping[str, Any]], int] = 1,
    passes_more: int | Callable[[Mapping[str, Any]], int] = 0,
    asks: int | Asks = 1,
    asks_before: int | Asks = 1,
    apart: bool = False,
) -> Callable[[Callable[..., Any]], Stage]:
    """Make a stage of a function; its keyword-only annotated arguments become parameters.

    The function receives, positionally, one tensor (condition, rescale) or the list of input tensors
    (combine), then by keyword its parameters (`PerExpert` ones as a single value in condition stages and as a
    list in combine stages) and, where it names them, `summary`, `uniforms`, `decompose`, `factors` and `block`.
    `summarise` gets the stream, the same parameters and, where it names it, `decompose`. `check` gets the same values
    at plan time (single ones in a condition, lists in a combine stage) and says what is wrong with their combination.

    `records` names entries of a model-wide summary, numbers, that go into the output's manifest, for a later run to
    go on from.

    `whole(shape, place, values)` says of a stage of `tensor` access without a summary which tensors it needs whole; the
    others come to it as runs of elements, so that no memory is spent on them. `acts(shape, place, values)` says of a
    stage of matrices which tensors it treats as such; a plan warns where it does so with none.

    `passes` says how often `summarise` walks its stream, `passes_more` how much more often at most, as the data have
    it. `asks`: how often a lazy stage asks for each input, one number or one for each by (values, shape, place, number
    of inputs); `asks_before` the same of a walk of its summary; `apart`: each input has walks of its own. The bytes of
    a plan are predicted by them, exactly, so they must be right.

    `heads=True` asks for `block.place.heads` in every layer; a model whose attention is not known is then refused.

    A space receives the list of input tensors and gives `Coordinates`; `leave` receives what was made of them, and
    their frame. Combine stages and spaces of `tensor` access may name `factors`: a list with the `Factors` of each
    input, or None where it is not known as a product. `factored=True` says of a combine stage that it is made for them:
    nothing may stand before it in a chain, and a plan warns where no expert has any.

    `fits(values, count)` names a parameter of a combine stage whose value does not go with so many inputs, and says
    why; defaults are not held against it.
    """

    def wrap(function: Callable[..., Any]) -> Stage:
        return Stage(
            name=name,
            role=role,
            function=function,
            takes=takes,
            access=access,
            parameters=parameters_of(function),
            summarise=summarise,
            scope=scope or (lambda values: "tensor"),
            check=check or (lambda values: None),
            random=random,
            upcast=upcast,
            lazy=lazy,
            beside=beside,
            inputs=inputs,
            doc=function.__doc__ or "",
            paper=paper,
            leave=leave,
            records=records,
            heads=heads,
            factored=factored,
            fits=fits,
            whole=whole,
            acts=acts,
            passes=passes,
            passes_more=passes_more,
            asks=asks,
            asks_before=asks_before,
            apart=apart,
        )

    return wrap
