"""Scores along a line between two models, and over the plane through three: is there a barrier between them?

Owns interpolation and what follows from scores. Knows no task: `score` is any function of a dictionary of tensors, such
as one that loads them into a track's examinee. Memory: the models and one candidate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from cuvee.api.checkpoint import Checkpoint
from cuvee.charts import Chart, contour, lines
from cuvee.core.names import printable
from cuvee.errors import EvaluationError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

Weights: TypeAlias = "Mapping[str, Tensor]"
Score = Callable[[Weights], float]
Better = Literal["higher", "lower"]
_FLAT = 1e-12  # of the squares of two changes: below it their directions are one


@dataclass(frozen=True, slots=True)
class Path:
    """Scores at equal steps from the first model (0) to the second (1)."""

    positions: tuple[float, ...]
    scores: tuple[float, ...]
    better: Better

    @property
    def barrier(self) -> float:
        """How far the path falls below the straight line between its ends' scores, at worst; 0 where it never does.

        Linear mode connectivity (Frankle et al. 2020) is a barrier of about 0.
        """
        sign = 1 if self.better == "higher" else -1
        first, last = self.scores[0], self.scores[-1]
        falls = ((1 - t) * first + t * last - s for t, s in zip(self.positions, self.scores, strict=True))
        return max(0.0, *(sign * fall for fall in falls))

    def chart(self) -> Chart:
        """The scores as a line."""
        said = f"Barrier {self.barrier:.4g}; {self.better} is better. The straight line joins the ends."
        ends = [(1 - t) * self.scores[0] + t * self.scores[-1] for t in self.positions]
        series = {"score": self.scores, "between the ends": ends}
        names = [f"{t:.3g}" for t in self.positions]
        return lines("Score along the line", said, names, series, column="share of the second model")

    def _repr_html_(self) -> str:
        return self.chart()._repr_html_()


@dataclass(frozen=True, slots=True)
class Plane:
    """Scores at origin + x (first − origin) + y (second − origin), `scores[row][column]` at `ys[row]`, `xs[column]`."""

    xs: tuple[float, ...]
    ys: tuple[float, ...]
    scores: tuple[tuple[float, ...], ...]
    better: Better

    @property
    def best(self) -> tuple[float, float, float]:
        """x, y and score of the best grid point."""
        sign = 1 if self.better == "higher" else -1
        every = [
            (x, y, s)
            for y, row in zip(self.ys, self.scores, strict=True)
            for x, s in zip(self.xs, row, strict=True)
        ]
        return max(every, key=lambda one: sign * one[2])

    def chart(self) -> Chart:
        """Contours, with the three models marked."""
        x, y, score = self.best
        said = f"{self.better.capitalize()} is better; the best grid point is ({x:.3g}, {y:.3g}) with {score:.4g}."
        points = {"origin": (0.0, 0.0), "first": (1.0, 0.0), "second": (0.0, 1.0)}
        axes = ("coefficient of the first", "coefficient of the second")
        return contour("Score over the plane", said, self.xs, self.ys, self.scores, points=points, axes=axes)

    def _repr_html_(self) -> str:
        return self.chart()._repr_html_()


def path(first: Any, second: Any, score: Score, *, steps: int = 11, better: Better = "higher") -> Path:
    """Score models on the line from `first` to `second` (paths, hub URIs, dictionaries of tensors).

    Args:
        score: from a dictionary of tensors to a finite number.
        steps: how many models are scored, both ends included; at least 2.
        better: whether higher or lower scores are better.

    Raises:
        EvaluationError: the models differ in their tensors (CV-B231), or a score is not finite (CV-B232).
        UsageError: `better` is another word (CV-U391).
    """
    _check_direction(better)
    positions = _steps(0.0, 1.0, steps)
    with opened_alike(first, second) as (start, end):
        scores = tuple(_scored(score, blend(start, [(t, end)])) for t in positions)
    return Path(positions, scores, better)


def plane(
    origin: Any,
    first: Any,
    second: Any,
    score: Score,
    *,
    steps: int = 9,
    span: tuple[float, float] = (-0.25, 1.25),
    better: Better = "higher",
) -> Plane:
    """Score `steps` × `steps` models on the plane through three; errors as of `path`.

    `span` is the range of both coefficients: the origin is at (0, 0), the others at (1, 0) and (0, 1). UsageError
    CV-U392 where the three lie on one line.
    """
    _check_direction(better)
    grid = _steps(*span, steps)
    with opened_alike(origin, first, second) as (base, a, b):
        _check_plane(base, a, b)
        scores = tuple(tuple(_scored(score, blend(base, [(x, a), (y, b)])) for x in grid) for y in grid)
    return Plane(grid, grid, scores, better)


def _check_direction(better: str) -> None:
    if better not in ("higher", "lower"):
        raise UsageError("CV-U391", f"`better` is `higher` or `lower`, not `{printable(str(better))}`")


def _check_plane(base: Weights, first: Weights, second: Weights) -> None:
    """UsageError unless two directions lead away from the base: (a·b)² < (a·a)(b·b)."""
    names = [name for name, tensor in base.items() if tensor.is_floating_point()]
    squares = [0.0, 0.0, 0.0]
    for name in names:
        a, b = ((model[name].double() - base[name].double()).flatten() for model in (first, second))
        squares = [s + float(x @ y) for s, (x, y) in zip(squares, ((a, a), (b, b), (a, b)), strict=True)]
    if squares[0] * squares[1] - squares[2] ** 2 <= _FLAT * squares[0] * squares[1]:
        raise UsageError(
            "CV-U392",
            "the three models lie on one line, or two of them are the same, so that no plane goes through them alone",
            hint="score the line between two of them with `analyze.path`",
        )


def _steps(low: float, high: float, count: int) -> tuple[float, ...]:
    if count < 2 or not high > low:
        raise EvaluationError(
            "CV-B233",
            f"a line needs at least 2 steps and a range that ascends, not {count} over {low:g} … {high:g}",
        )
    return tuple(low + (high - low) * i / (count - 1) for i in range(count))


@contextmanager
def opened_alike(*models: Any) -> Iterator[list[Weights]]:
    """The tensors of several models; EvaluationError CV-B231 unless all have the float tensors of the first."""
    with ExitStack() as stack:
        found: list[Weights] = []
        for model in models:
            checkpoint = Checkpoint.opened(model)
            if checkpoint is not model:
                stack.callback(checkpoint.close)
            found.append({name: checkpoint.tensor(name) for name in checkpoint.source.tensors})
        for other in found[1:]:
            _same_tensors(found[0], other)
        yield found


def _same_tensors(first: Weights, other: Weights) -> None:
    for name, tensor in first.items():
        if tensor.is_floating_point() and (name not in other or other[name].shape != tensor.shape):
            raise EvaluationError(
                "CV-B231",
                f"`{printable(name)}` is not in all models with the same shape, so there is no line between them",
                hint="leave out what differs, such as heads, by giving dictionaries of tensors",
            )


def blend(start: Weights, ends: Sequence[tuple[float, Weights]]) -> Weights:
    """start + Σ t (end − start), computed in float32 or wider; tensors that are no floats are those of `start`."""
    out = {}
    for name, tensor in start.items():
        if not tensor.is_floating_point():
            out[name] = tensor
            continue
        wide = tensor.double() if tensor.dtype.itemsize > 4 else tensor.float()
        moved = wide
        for t, end in ends:
            moved = moved + t * (end[name].to(wide.dtype) - wide)
        out[name] = moved.to(tensor.dtype)
    return out


def _scored(score: Score, weights: Weights) -> float:
    found = float(score(weights))
    if not math.isfinite(found):
        raise EvaluationError(
            "CV-B232", f"the score of a model between the given ones is {found}, not a finite number"
        )
    return found
