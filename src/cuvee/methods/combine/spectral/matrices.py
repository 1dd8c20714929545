"""What every method of matrices shares: which tensors it takes as matrices, and what happens elsewhere.

`matrix_stage` makes a combine stage of a function of matrices. It adds the parameters that say which tensors are
matrices, hands the others (1-D, more axes, excluded, without elements) to the rule for elsewhere, and declares the
traits: whole tensors, one expert at a time. Must not know any method.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cuvee.core.lazy import torch
from cuvee.methods.contract import Access, Asks, Block, Kind, Place, Scope, Stage, Summary, stage
from cuvee.methods.parameters import PerExpert, each

if TYPE_CHECKING:
    from torch import Tensor

Elsewhere = Literal["mean", "sum", "base"]
Tensors = Literal["matrices", "layers"]
Asked = Callable[[Mapping[str, Any], tuple[int, ...], int], Sequence[int]]

# Roles of `families.ROLES` that stand around the layers: what "layers" leaves out.
_AROUND = frozenset(
    {"norm", "embeddings", "position_embeddings", "type_embeddings", "class_token", "conv", "head"}
    | {"head_transform", "classifier", "pooler", "projector", "scale", "buffer", "position_q", "position_k"}
)

_SHARED = """\
    weight: factor of each task vector before anything else
    spectral: whether the tensor is treated as a matrix; false, for tensors that a filter names, merges them by the
        rule of `elsewhere`, block by block
    tensors: `matrices` takes every tensor of two axes, `layers` leaves out embeddings, heads and what else stands
        around the layers
    exclude: parts of names, separated by commas; tensors with one of them in their name are not treated as matrices
    flatten: treat a tensor of more than two axes (a convolution) as the matrix (first axis, all others)
    elsewhere: what happens to tensors that are no matrices: the `mean` or the `sum` of the task vectors is added to
        the base, or the `base` stays as it is
"""


@dataclass(frozen=True, slots=True)
class Matrices:
    """The inputs of a stage as matrices of one shape; each is evaluated when asked for, and kept by nobody."""

    deltas: Sequence[Tensor]
    weights: Sequence[Any]
    shape: tuple[int, int]
    place: Place

    def __len__(self) -> int:
        return len(self.deltas)

    def __getitem__(self, index: int) -> Tensor:
        matrix = self.deltas[index].reshape(self.shape)
        weight = self.weights[index]
        return matrix if isinstance(weight, (int, float)) and weight == 1 else matrix * weight

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(len(self)))

    @property
    def directions(self) -> int:
        """The number of singular values, min(rows, columns)."""
        return min(self.shape)

    def sum(self) -> Tensor:
        """Σ τᵢ in a tensor of its own."""
        return added(iter(self))

    def mean(self) -> Tensor:
        """Σ τᵢ / K in a tensor of its own."""
        return self.sum().div_(len(self))


def added(tensors: Iterator[Tensor]) -> Tensor:
    """The sum of tensors that come one at a time, in order, in a tensor of its own."""
    total = next(tensors).clone()
    while (tensor := next(tensors, None)) is not None:
        total.add_(tensor)
        del tensor  # before the next is made
    return total


def matrix_stage(  # noqa: PLR0913 (one keyword for each trait and default)
    *,
    name: str,
    paper: str,
    elsewhere: Elsewhere | None = "mean",
    tensors: Tensors = "matrices",
    exclude: str = "text_projection",
    cut: bool = True,
    takes: Kind = "delta",
    summarise: Callable[..., Summary] | None = None,
    scope: Callable[[Mapping[str, Any]], Scope | None] | None = None,
    check: Callable[[Mapping[str, Any]], str | None] | None = None,
    rest: Callable[..., Tensor] | None = None,
    rest_help: str = "",
    records: tuple[str, ...] = (),
    asks: int | Asked = 1,
    asks_rest: int | Asks = 1,
    asks_before: int | Asks = 1,
    passes: int = 1,
    apart: bool = False,
) -> Callable[[Callable[..., Tensor]], Stage]:
    """Make a stage of a function `f(matrices, *, …) -> Tensor` that merges `Matrices` to one matrix.

    The function's keyword arguments are the stage's own parameters, or `summary`, `decompose`, `block`. The result is
    brought into the tensor's shape. Tensors that are no matrices go to `rest`, where given, else to the rule of
    `elsewhere` (None: there is no such parameter); `rest_help` are help of parameters that then mean another thing.
    `cut`: whether tensors that are no matrices may be merged in pieces (with `summarise` those with `spectral: false`
    alone). `asks`: how often each matrix is asked for, one number or one for each by (values, shape, number of inputs);
    `asks_rest`: how often `rest` asks for each input of other tensors. Gradients do not pass.
    """
    shared = _shared_parameters(elsewhere, tensors, exclude)

    def wrap(core: Callable[..., Tensor]) -> Stage:
        own = [p for p in inspect.signature(core).parameters.values() if p.kind is p.KEYWORD_ONLY]
        wanted = {p.name for p in own}

        def function(deltas: Sequence[Tensor], *, block: Block, **given: Any) -> Tensor:
            values = {key: given.pop(key) for key in shared}
            if "block" in wanted:
                given["block"] = block
            with torch.no_grad():
                matrices = matrices_of(deltas, block, values)
                if matrices is not None:
                    return core(matrices, **given).reshape(block.shape)
                if rest is not None:
                    return rest(deltas, block=block, **given, **values)
                return merged_elsewhere(deltas, values)

        function.__doc__ = _with_shared(core.__doc__ or "") + rest_help
        function.__module__, function.__qualname__ = core.__module__, core.__qualname__
        _declare(function, core, [*own, *shared.values()])
        made = stage(
            name,
            role="combine",
            takes=takes,
            access=_access if cut else "tensor",
            whole=is_matrix if cut and summarise is None else None,
            acts=is_matrix,
            summarise=summarise,
            scope=scope,
            check=check,
            upcast=True,
            lazy=True,
            paper=paper,
            records=records,
            asks=_asks(asks, asks_rest),
            asks_before=asks_before,
            passes=passes,
            apart=apart,
        )
        return made(function)

    return wrap


def matrices_of(deltas: Sequence[Tensor], block: Block, values: Mapping[str, Any]) -> Matrices | None:
    """The inputs as matrices, or None where the tensor is not to be treated as one."""
    shape = block.shape
    if not is_matrix(shape, block.place, values):
        return None
    columns = 1
    for axis in shape[1:]:
        columns *= axis
    return Matrices(deltas, each(values["weight"], len(deltas)), (shape[0], columns), block.place)


def is_matrix(shape: tuple[int, ...], place: Place, values: Mapping[str, Any]) -> bool:
    """Whether a tensor is treated as a matrix with these values of the shared parameters."""
    return (
        values["spectral"]
        and (len(shape) == 2 or (values["flatten"] and len(shape) > 2))
        and all(shape)
        and not (values["tensors"] == "layers" and place.role in _AROUND)
        and not is_excluded(place, values)
    )


def is_excluded(place: Place, values: Mapping[str, Any]) -> bool:
    """Whether a tensor's name has one of the parts in `exclude`."""
    parts = [part.strip() for part in values["exclude"].split(",")]
    return any(part and part in place.name for part in parts)


def merged_elsewhere(deltas: Sequence[Tensor], values: Mapping[str, Any]) -> Tensor:
    """What is added to the base where a tensor is no matrix; any run of elements will do."""
    if values["elsewhere"] == "base":
        return torch.zeros_like(deltas[0])
    weights = each(values["weight"], len(deltas))
    total = added(deltas[i] * weight for i, weight in enumerate(weights))
    return total.div_(len(deltas)) if values["elsewhere"] == "mean" else total


def _asks(matrices: int | Asked, rest: int | Asks) -> Asks:
    """How often a stage asks for each input: of a matrix, by `rest`, or by the rule for elsewhere."""

    def asks(values: Mapping[str, Any], shape: tuple[int, ...], place: Place, count: int) -> Sequence[int]:
        if is_matrix(shape, place, values):
            return (matrices,) * count if isinstance(matrices, int) else matrices(values, shape, count)
        if values.get("elsewhere") == "base":
            return (1, *(0,) * (count - 1))  # for its type and shape
        return (rest,) * count if isinstance(rest, int) else rest(values, shape, place, count)

    return asks


def _access(values: Mapping[str, Any]) -> Access:
    return "tensor" if values["spectral"] else "element"


def _shared_parameters(
    elsewhere: Elsewhere | None, tensors: Tensors, exclude: str
) -> dict[str, inspect.Parameter]:
    defaults: dict[str, tuple[Any, Any]] = {
        "weight": (PerExpert[float], 1.0),
        "spectral": (bool, True),
        "tensors": (Tensors, tensors),
        "exclude": (str, exclude),
        "flatten": (bool, False),
        "elsewhere": (Elsewhere, elsewhere),
    }
    keyword = inspect.Parameter.KEYWORD_ONLY
    return {
        name: inspect.Parameter(name, keyword, default=default, annotation=hint)
        for name, (hint, default) in defaults.items()
        if default is not None  # no such parameter
    }


def _declare(function: Any, core: Callable[..., Tensor], parameters: Sequence[inspect.Parameter]) -> None:
    """Give a function the signature that its parameters are read from; hints of `core` are resolved in its module."""
    first = inspect.Parameter("deltas", inspect.Parameter.POSITIONAL_ONLY)
    block = inspect.Parameter("block", inspect.Parameter.KEYWORD_ONLY, annotation=Block)
    ordered = {p.name: p for p in (*parameters, block)}
    function.__signature__ = inspect.Signature([first, *ordered.values()])
    hints = {k: v for k, v in core.__annotations__.items() if k not in ("matrices", "return")}
    function.__annotations__ = {**hints, **{p.name: p.annotation for p in parameters if p.name not in hints}}
    function.__wrapped__ = core


def _with_shared(doc: str) -> str:
    """The documentation with the shared parameters behind the function's own."""
    text = inspect.cleandoc(doc)
    if "\nArgs:\n" not in text:
        text += "\n\nArgs:"
    return f"{text}\n{_SHARED}"
