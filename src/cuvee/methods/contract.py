"""What a merge method is: stages with typed parameters and declared traits, chained into named presets.

A *stage* is a pure function on tensors. Three roles:

    condition   one task vector → one task vector     trim, drop, magprune, band
    combine     all inputs of a tensor → one tensor   weighted_sum, elect, slerp, sce
    rescale     one tensor → one tensor               scale

A *method* (`ties`, `dare_linear`, …) names a chain of stages with their defaults; users may also write the chain.
From a stage's signature come its parameters, their schema, help and validation (`parameters.py`).

How an engine may call a stage (the traits; `cuvee.testing` tries to refute each one):

- `access="element"`: on any run of elements, cut anywhere; `"row"`: on whole rows of the last axis; `"tensor"`: whole.
- tensors arrive flat (`element`), as (rows, row length) (`row`), or in their own shape (`tensor`), all in one
  compute dtype, which is float32 unless the recipe says otherwise; a stage with `upcast=True` gets at least float32.
- a stage that needs figures over more than a block declares `summarise`, which reads a `Stream` as often as it
  likes, before the stage itself runs; its result arrives as `summary`.
- randomness arrives as `uniforms`, a counter-based stream addressed by element index.
- no in-place change of an argument; no global state; accumulation in the compute dtype or better.

This package imports only `cuvee.core`, `cuvee.errors` and (lazily) torch and NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from cuvee.methods.parameters import Parameter, parameters_of

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["weight", "delta", "either"]
Access = Literal["element", "row", "tensor"]
Role = Literal["condition", "combine", "rescale"]
Status = Literal["exact", "exact-math", "reconstructed"]
Summary = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Block:
    """A run of elements of one tensor, and the inputs of a stage there.

    `tensors` has one entry per input (one for condition and rescale stages), each shaped as the stage's access says.
    `start` is the index of the first element within the flattened tensor, `shape` the whole tensor's shape,
    `number` the position of the tensor in its group (0 unless a summary spans several tensors).
    """

    tensors: list[Tensor]
    start: int
    shape: tuple[int, ...]
    number: int = 0


class Stream(Protocol):
    """The inputs of a stage, block by block in a fixed order; may be walked any number of times."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of elements of each tensor in the group (one entry unless the scope is the model)."""
        ...

    @property
    def inputs(self) -> int:
        """Number of inputs (experts) in each block."""
        ...

    def blocks(self) -> Iterator[Block]:
        """One pass over the data."""
        ...

    def uniforms(self, number: int) -> Uniforms:
        """The random stream the stage itself will be handed for tensor `number` of the group."""
        ...


class Uniforms(Protocol):
    """Independent uniform 32-bit integers, one for each element of a tensor (Philox4x32-10, counter = element)."""

    def words(self, start: int, stop: int) -> Tensor:
        """int64 tensor of shape (stop − start,), values in [0, 2³²)."""
        ...


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a merge with its declared traits."""

    name: str
    role: Role
    function: Callable[..., Tensor]
    takes: Kind
    access: Access | Callable[[Mapping[str, Any]], Access]
    parameters: tuple[Parameter, ...]
    summarise: Callable[..., Summary] | None
    scope: Callable[[Mapping[str, Any]], Literal["tensor", "model"]]
    random: bool
    upcast: bool
    inputs: tuple[int, int | None]
    doc: str
    paper: str | None

    def access_for(self, values: Mapping[str, Any]) -> Access:
        """The access this stage needs with these parameter values."""
        return self.access(values) if callable(self.access) else self.access


@dataclass(frozen=True, slots=True)
class Step:
    """A stage in a method's chain, with the defaults the method gives it and the parameters it fixes."""

    stage: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Method:
    """A named preset: a chain of stages, what it asks of a base and inputs, and where it is defined.

    `base`: `required` (task vectors are taken from it), `optional`, or `ordinary` (just another input).
    `inputs`: least and most number of models besides the base (for `ordinary`: of all models).
    `missing`: what happens where a tensor exists in some inputs only: `error`, `skip` (merge those that have it) or
    `base` (treat an absent expert as unchanged).
    `dialects`: other defaults under other front doors, `{"mergekit": {"density": 1.0, …}}`.
    """

    name: str
    steps: tuple[Step, ...]
    base: Literal["required", "optional", "ordinary"]
    inputs: tuple[int, int | None]
    summary: str
    doc: str
    paper: str | None = None
    status: Status = "exact"
    missing: Literal["error", "skip", "base"] = "skip"
    dialects: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    bibtex: str | None = None


def stage(
    name: str,
    *,
    role: Role,
    takes: Kind = "delta",
    access: Access | Callable[[Mapping[str, Any]], Access] = "element",
    summarise: Callable[..., Summary] | None = None,
    scope: Callable[[Mapping[str, Any]], Literal["tensor", "model"]] | None = None,
    random: bool = False,
    upcast: bool = False,
    inputs: tuple[int, int | None] = (1, None),
    paper: str | None = None,
) -> Callable[[Callable[..., Tensor]], Stage]:
    """Make a stage of a function; its keyword-only annotated arguments become parameters.

    The function receives, positionally, one tensor (condition, rescale) or the list of input tensors (combine), then
    by keyword its parameters (`PerExpert` ones as a single value in condition stages and as a list in combine
    stages) and, where it names them, `summary`, `uniforms` and `block`.
    """

    def wrap(function: Callable[..., Tensor]) -> Stage:
        return Stage(
            name=name,
            role=role,
            function=function,
            takes=takes,
            access=access,
            parameters=parameters_of(function),
            summarise=summarise,
            scope=scope or (lambda values: "tensor"),
            random=random,
            upcast=upcast,
            inputs=inputs,
            doc=function.__doc__ or "",
            paper=paper,
        )

    return wrap
