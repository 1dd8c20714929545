"""Values of which only the place in a graph is known: arithmetic on them, and torch functions, add operations to it.

What is not here is left to the generic path (`Unfusable`). Types are kept apart as torch keeps them; knows no stages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from cuvee.core.lazy import torch
from cuvee.engine.fused.builder import Unfusable
from cuvee.engine.fused.graph import Graph
from cuvee.engine.kernels.operations import Code

# A truth is 0 or 1, a count a small whole number; both lie in float32 registers. What is wide can only be multiplied
# by its like, which makes a product, and summed.
Number = float
Kind = Literal["float", "truth", "count", "wide", "product"]


class Traced:
    """A run of elements of which only the place in a graph is known."""

    __slots__ = ("graph", "index", "kind", "other")

    def __init__(self, graph: Graph, index: int, kind: Kind = "float", other: int = 0) -> None:
        self.graph = graph
        self.index = index
        self.kind: Kind = kind
        self.other = other  # the second factor of a product

    @property
    def dtype(self) -> Any:
        kinds = {"float": torch.float32, "truth": torch.bool, "count": torch.int32}
        return kinds.get(self.kind, torch.float64)

    @property
    def shape(self) -> tuple[int, ...]:
        return ()

    def reshape(self, *shape: Any) -> Traced:
        return self

    def __bool__(self) -> bool:
        raise Unfusable("a decision by values")

    def __hash__(self) -> int:
        return id(self)

    # -- types ------------------------------------------------------------------------------------------------------

    def double(self) -> Traced:
        return Traced(self.graph, self._floats().index, "wide")

    def float(self) -> Traced:
        return self.to(torch.float32)

    def to(self, dtype: Any) -> Traced:
        if self.kind in ("wide", "product"):
            raise Unfusable("arithmetic in float64")
        kinds: dict[Any, Kind] = {torch.float32: "float", torch.int32: "count"}
        if dtype not in kinds or (self.kind == "float" and dtype != torch.float32):
            raise Unfusable(f"a conversion to {dtype}")
        return Traced(self.graph, self.index, kinds[dtype])

    def _floats(self) -> Traced:
        if self.kind in ("wide", "product"):
            raise Unfusable("arithmetic in float64")
        return self

    # -- arithmetic -------------------------------------------------------------------------------------------------

    def __mul__(self, other: Any) -> Traced:
        if isinstance(other, Traced):
            if self.kind == other.kind == "wide":
                return Traced(self.graph, self.index, "product", other.index)
            if "truth" == self.kind == other.kind or "count" in (self.kind, other.kind):
                raise Unfusable("a product of whole numbers")
            return self._made(Code.MUL, self._floats(), other._floats())
        if self.kind == "count":
            raise Unfusable("a product of whole numbers")
        return self._made(Code.SCALE, self._floats(), x=number(other))

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Traced:
        if isinstance(other, Traced):
            return self._made(Code.DIVIDE, self._floats(), other._floats())
        return self._made(Code.SHRINK, self._floats(), x=number(other))

    def __rtruediv__(self, other: Any) -> Traced:
        return self._made(Code.DIVIDE, self._of(other), self._floats())

    def __add__(self, other: Any) -> Traced:
        right = self._of(other)
        return self._made(Code.ADD, self._floats(), right._floats(), kind=self._sum_kind(right))

    __radd__ = __add__

    def __sub__(self, other: Any) -> Traced:
        right = self._of(other)
        return self._made(Code.SUB, self._floats(), right._floats(), kind=self._sum_kind(right))

    def __rsub__(self, other: Any) -> Traced:
        return self._of(other) - self

    def __neg__(self) -> Traced:
        return self._made(Code.SCALE, self._floats(), x=-1.0, kind=self.kind)

    def abs(self) -> Traced:
        return self._made(Code.ABS, self._floats(), kind=self.kind)

    def sign(self) -> Traced:
        return self._made(Code.SIGN, self._floats(), kind=self.kind)

    def square(self) -> Traced:
        return self * self

    def clamp(self, min: Any = None) -> Traced:
        if min is None:
            raise Unfusable("a bound above")
        return self._made(Code.AT_LEAST, self._floats(), x=number(min), kind=self.kind)

    def _sum_kind(self, other: Traced) -> Kind:
        if "float" in (self.kind, other.kind):
            return "float"
        if self.kind == other.kind == "truth":
            raise Unfusable("a sum of truths")
        return "count"

    # -- truths -----------------------------------------------------------------------------------------------------

    def __gt__(self, other: Any) -> Traced:
        return self._made(Code.ABOVE, self._floats(), self._of(other)._floats(), kind="truth")

    def __ge__(self, other: Any) -> Traced:
        return self._made(Code.REACHES, self._floats(), self._of(other)._floats(), kind="truth")

    def __lt__(self, other: Any) -> Traced:
        return self._of(other) > self

    def __le__(self, other: Any) -> Traced:
        return self._of(other) >= self

    def __eq__(self, other: object) -> Traced:  # type: ignore[override]
        return self._made(Code.EQUALS, self._floats(), self._of(other)._floats(), kind="truth")

    def __ne__(self, other: object) -> Traced:  # type: ignore[override]
        return ~(self == other)

    def __and__(self, other: Traced) -> Traced:
        return self._made(Code.MUL, self._truth(), other._truth(), kind="truth")

    def __or__(self, other: Traced) -> Traced:
        return self._made(Code.GREATER, self._truth(), other._truth(), kind="truth")

    def __invert__(self) -> Traced:
        return self._made(Code.EQUALS, self._truth(), self._of(0.0), kind="truth")

    def _truth(self) -> Traced:
        if self.kind != "truth":
            raise Unfusable("a truth of numbers")
        return self

    # -- steps ------------------------------------------------------------------------------------------------------

    def filled(self, x: Any, kind: Kind = "float") -> Traced:
        """Equal values."""
        return Traced(self.graph, self.graph.add(Code.FILL, x=number(x)), kind)

    def _of(self, other: Any) -> Traced:
        return other if isinstance(other, Traced) else self.filled(other, self.kind)

    def _made(self, code: Code, *of: Traced, x: Number = 0.0, kind: Kind = "float") -> Traced:
        return Traced(self.graph, self.graph.add(code, *(each.index for each in of), x=x), kind)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Traced:
        found = _FUNCTIONS.get(function.__name__)
        if found is None:
            raise Unfusable(f"torch.{function.__name__}")
        return found(*args, **(kwargs or {}))


def number(x: Any) -> float:
    """A number that is the same for all elements."""
    if isinstance(x, Traced):
        raise Unfusable("values where a number is meant")
    return float(x)


def _where(truth: Traced, one: Any, other: Any) -> Traced:
    left, right = (x if isinstance(x, Traced) else truth.filled(x) for x in (one, other))
    if left.kind != right.kind or left.kind in ("wide", "product"):
        raise Unfusable("a choice between types")
    return truth._made(Code.CHOOSE, left, right, truth._truth(), kind=left.kind)


def _maximum(one: Traced, other: Traced) -> Traced:
    return one._made(Code.GREATER, one._floats(), other._floats())


def _zeros_like(like: Traced, dtype: Any = None) -> Traced:
    return _full_like(like, 0.0, dtype)


def _ones_like(like: Traced, dtype: Any = None) -> Traced:
    return _full_like(like, 1.0, dtype)


def _full_like(like: Traced, x: Any, dtype: Any = None) -> Traced:
    kinds: dict[Any, Kind] = {torch.float32: "float", torch.bool: "truth", torch.int32: "count"}
    wanted = like.dtype if dtype is None else dtype
    if wanted not in kinds:
        raise Unfusable(f"values of {wanted}")
    return like.filled(x, kinds[wanted])


_FUNCTIONS: Mapping[str, Callable[..., Traced]] = {
    "where": _where,
    "maximum": _maximum,
    "zeros_like": _zeros_like,
    "ones_like": _ones_like,
    "full_like": _full_like,
    "mul": lambda one, other: other * one,
    "add": lambda one, other: other + one,
    "rsub": lambda one, other: other - one,
}
