"""How many operations a method takes, counted: its stages run on small matrices while every tensor operation is noted.

An operation is one +, −, ×, ÷, root, comparison or choice for one number; products of matrices take two for each term,
decompositions what the textbook has for LAPACK's algorithms (Golub and Van Loan, 8.3 and 8.6). Views, copies and
conversions are free. Counts at several sizes tell what grows with m · n · min(m, n) from what grows with the number of
weights. Must not know any method.
"""

from __future__ import annotations

import functools
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cuvee.errors import RecipeError, RunError
from cuvee.methods import registry
from cuvee.methods.contract import Heads, Method, Place
from cuvee.methods.privacy.secret import fingerprint
from cuvee.testing.sample_values import sample_values
from cuvee.testing.stages import run_method

SIZES = (24, 48, 72)  # shares of the directions of 3 and of 8 experts are whole numbers
EXPERTS = (3, 8)
_SECRET = "0" * 64  # for locks
_FREE = {
    "_local_scalar_dense", "_reshape_alias", "_to_copy", "_unsafe_view", "alias", "arange", "as_strided",
    "cat", "clone", "constant_pad_nd", "copy_", "detach", "diag", "diagonal", "empty", "empty_like",
    "empty_strided", "equal", "expand", "eye", "fill_", "flip", "full", "full_like", "gather", "index",
    "index_put_", "index_select", "item", "lift_fresh", "masked_select", "narrow", "new_empty",
    "new_empty_strided", "new_full", "new_ones", "new_zeros", "ones", "ones_like", "permute", "rand",
    "randn", "repeat", "resize_", "resolve_conj", "roll", "scalar_tensor", "scatter", "select",
    "select_backward", "set_", "slice", "split", "split_with_sizes", "squeeze", "stack", "t", "transpose",
    "unbind", "unfold", "unsqueeze", "view", "zero_", "zeros", "zeros_like",
}  # fmt: skip


def _product(inputs: Sequence[Tensor]) -> float:
    """Two for each term of a product; the last two tensors are the factors."""
    left, right = inputs[-2:]
    return 2.0 * left.numel() * (right.shape[-1] if right.dim() > 1 else 1)


def _svd(inputs: Sequence[Tensor]) -> float:
    long, short = max(inputs[0].shape[-2:]), min(inputs[0].shape[-2:])
    return 14.0 * long * short**2 + 8.0 * short**3


def _qr(inputs: Sequence[Tensor]) -> float:
    long, short = max(inputs[0].shape[-2:]), min(inputs[0].shape[-2:])
    return 4.0 * long * short**2 - 4.0 * short**3 / 3


def _sorted(inputs: Sequence[Tensor]) -> float:
    return inputs[0].numel() * math.log2(max(2, inputs[0].shape[-1] if inputs[0].dim() else 2))


_COUNTS: Mapping[str, Callable[[Sequence[Tensor]], float]] = {
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "addmm", "addmm_", "addmv", "baddbmm", "vdot"), _product),
    "_linalg_svd": _svd,
    "_linalg_eigh": lambda inputs: 9.0 * inputs[0].shape[-1] ** 3,
    "linalg_qr": _qr,
    "linalg_solve_triangular": _product,
    **dict.fromkeys(("sort", "argsort", "topk", "kthvalue", "median"), _sorted),
}


class Counting(TorchDispatchMode):
    """Counts what is computed within its block."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        name = function._schema.name.split("::")[1]
        inputs = [one for one in args if isinstance(one, Tensor)]
        if name in _COUNTS:
            self.total += _COUNTS[name](inputs)
        elif name not in _FREE:
            largest = max((one.numel() for one in [*inputs, made] if isinstance(one, Tensor)), default=0)
            self.total += largest
        return made


@dataclass(frozen=True)
class Operations:
    """What merging a matrix of m × n weights with so many experts takes.

    `cubic` · m n min(m, n) and `each` for every weight.
    """

    experts: int
    cubic: float
    each: float


@functools.cache
def operations_of(name: str, *, whole: bool) -> tuple[Operations, ...]:
    """Counts of a method with default values, for a few and for many experts where it takes both.

    `whole`: it sees matrices whole, so that counts may grow faster than the number of weights.
    """
    method = registry.get(name)
    least, most = method.inputs
    counts = [k for k in EXPERTS if k >= least and (most is None or k <= most)] or [least]
    sizes = SIZES if whole else SIZES[1:]
    found = []
    for count in counts:
        with suppress(RecipeError, RunError):  # a number of experts that it does not take
            found.append(Operations(count, *_fitted(sizes, [_counted(method, s, count) for s in sizes])))
    return tuple(found)


def _fitted(sizes: Sequence[int], totals: Sequence[float]) -> tuple[float, float]:
    """Coefficients of s³ (0 for two sizes) and s² in counts for squares of sides s, beside a constant."""
    slopes = []  # of s³ and s² between two neighbouring sizes, so that a constant drops out
    for a, b, x, y in zip(sizes, sizes[1:], totals, totals[1:], strict=False):
        slopes.append(((a * a + a * b + b * b) / (a + b), (y - x) / (b - a) / (a + b)))
    if len(slopes) == 1:
        return 0.0, slopes[0][1]
    (one, first), (other, second) = slopes
    cubic = (second - first) / (other - one)
    return cubic, first - cubic * one


def _counted(method: Method, side: int, experts: int) -> float:
    """All operations of merging one square matrix, the queries of four heads."""
    draw = torch.Generator().manual_seed(0)
    name = "layers.1.q.weight"
    base = {name: torch.randn(side, side, generator=draw)}
    models = [{name: base[name] + 0.1 * torch.randn(side, side, generator=draw)} for _ in range(experts)]
    start = None if method.base == "ordinary" else base
    places = {name: Place(name, "q", 1, 2, Heads(4, 4, side // 4))}
    values = sample_values(method, experts)
    if "key" in values:
        values["key"] = fingerprint(_SECRET)
    locked = patch.dict(os.environ, {"CUVEE_LOCK_KEY": _SECRET})  # this may run in a process of tests
    with locked, warnings.catch_warnings(), Counting() as counting:
        warnings.simplefilter("ignore")
        run_method(method, models, start, values, places=places)
    return counting.total
