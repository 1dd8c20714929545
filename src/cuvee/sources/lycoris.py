"""LoHa and LoKr modules of a PEFT adapter: which of their forms a module has, and the delta it stands for.

Owns the shapes each form must have. The mathematics is in `other_deltas`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from cuvee.core.lazy import torch
from cuvee.core.tensors import TensorMeta
from cuvee.sources.low_rank import Delta, FactorCache
from cuvee.sources.other_deltas import Hadamard, Kronecker, Made, mode_products
from cuvee.sources.peft_config import AdapterConfig
from cuvee.sources.stored import StoredTensors

if TYPE_CHECKING:
    import torch as torch_types
    from torch import Tensor


class ShapesError(ValueError):
    """Parts of a module are missing, or their shapes do not give the base tensor's."""


def relative_delta(
    stored: StoredTensors,
    config: AdapterConfig,
    module: str,
    parts: Mapping[str, str],
    base: TensorMeta,
    cache: FactorCache,
) -> Delta:
    """The delta of one module on a base tensor; ShapesError where its parts do not make one."""
    made = _Module(stored, parts, base, cache)
    return made.hadamard(config, module) if config.kind == "LOHA" else made.kronecker(config, module)


class _Module:
    """The parts of one module by name."""

    def __init__(
        self, stored: StoredTensors, parts: Mapping[str, str], base: TensorMeta, cache: FactorCache
    ) -> None:
        self.stored = stored
        self.parts = parts
        self.base = base
        self.cache = cache
        self.rows, self.columns = base.shape[0], math.prod(base.shape[1:])

    def hadamard(self, config: AdapterConfig, module: str) -> Delta:
        """LoHa: plain, or with a core for each factor of a convolution."""
        self.require("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", optional={"hada_t1", "hada_t2"})
        if "hada_t1" in self.parts:
            self.require("hada_t1", "hada_t2", optional=set(self.parts))
            scale = config.scale_of(module, self.shape("hada_t1")[0])
            return Made(partial(self._cored, scale), self.cache)
        scale = config.scale_of(module, self.shape("hada_w1_a")[1])
        for number in (1, 2):
            (rows, rank), (again, columns) = self.shape(f"hada_w{number}_a"), self.shape(f"hada_w{number}_b")
            self.fits((rows, columns), rank == again)
        lefts = (self.load("hada_w1_a"), self.load("hada_w2_a"))
        rights = (self.load("hada_w1_b"), self.load("hada_w2_b"))
        return Hadamard(lefts, rights, scale, self.columns, self.cache)

    def _cored(self, scale: float, dtype: torch_types.dtype) -> Tensor:
        first, second = (
            mode_products(*(self.read(f"hada_{part}").to(dtype) for part in (f"t{n}", f"w{n}_a", f"w{n}_b")))
            for n in (1, 2)
        )
        return first * second * scale

    def kronecker(self, config: AdapterConfig, module: str) -> Delta:
        """LoKr: each of the two matrices whole or as a product, the second also with a core."""
        names = set(self.parts)
        first = {"lokr_w1"} if "lokr_w1" in names else {"lokr_w1_a", "lokr_w1_b"}
        second = {"lokr_w2"} if "lokr_w2" in names else {"lokr_w2_a", "lokr_w2_b"}
        self.require(*first, *second, optional={"lokr_t2"})
        scale = config.scale_of(module, self._rank(config, module))
        a, b = self.shape("lokr_w1") if "lokr_w1" in names else self._product("lokr_w1")
        c, d, spread = self._second()
        self.fits((a * c, b * d), True)
        if spread:
            return Made(partial(self._spread, scale), self.cache)
        return Kronecker(self._first_matrix, partial(self._second_matrix, c), scale, self.columns, self.cache)

    def _second(self) -> tuple[int, int, bool]:
        """Rows and columns of the second matrix, and whether it is one that PEFT spreads over other axes."""
        if "lokr_w2" in self.parts:
            shape = self.shape("lokr_w2")
            return shape[0], math.prod(shape[1:]), len(shape) == 3
        if "lokr_t2" in self.parts:
            kernel = self.shape("lokr_t2")[2:]
            return self.shape("lokr_w2_a")[1], self.shape("lokr_w2_b")[1] * math.prod(kernel), False
        return *self._product("lokr_w2"), False

    def _rank(self, config: AdapterConfig, module: str) -> int:
        """That of a part which is a product; else the configuration's, which must then be one."""
        for name, axis in (("lokr_w1_b", 0), ("lokr_t2", 0), ("lokr_w2_b", 0)):
            if name in self.parts:
                return self.shape(name)[axis]
        ranks = config.ranks_of(module)
        if len(ranks) > 1:
            raise ShapesError(
                "several patterns of `rank_pattern` match it, and whole matrices do not tell which"
            )
        return min(ranks)

    def _first_matrix(self) -> Tensor:
        if "lokr_w1" in self.parts:
            return self.read("lokr_w1").double()
        return self.read("lokr_w1_a").double() @ self.read("lokr_w1_b").double()

    def _second_matrix(self, rows: int) -> Tensor:
        if "lokr_w2" in self.parts:
            return self.read("lokr_w2").double().reshape(rows, -1)
        a, b = self.read("lokr_w2_a").double(), self.read("lokr_w2_b").double()
        if "lokr_t2" in self.parts:
            return mode_products(self.read("lokr_t2").double(), a, b).reshape(rows, -1)
        return a @ b

    def _spread(self, scale: float, dtype: torch_types.dtype) -> Tensor:
        """Kernels of one dimension: PEFT takes the product over the last two axes and reshapes it."""
        return torch.kron(self._first_matrix(), self.read("lokr_w2").double()).to(dtype) * scale

    def _product(self, name: str) -> tuple[int, int]:
        (rows, rank), (again, columns) = self.shape(f"{name}_a"), self.shape(f"{name}_b")
        self.fits(None, rank == again)
        return rows, columns

    def require(self, *names: str, optional: set[str]) -> None:
        """ShapesError unless the module has these parts and no others."""
        if not set(names) <= set(self.parts) <= set(names) | optional:
            raise ShapesError(f"expected {', '.join(sorted(names))}, found {', '.join(sorted(self.parts))}")

    def fits(self, found: tuple[int, int] | None, alike: bool) -> None:
        """ShapesError unless ranks agree and the product has the base's size."""
        if not alike:
            raise ShapesError("the ranks of two of its factors differ")
        if found is not None and found != (self.rows, self.columns):
            raise ShapesError(f"they give {list(found)}, the tensor is {list(self.base.shape)}")

    def shape(self, part: str) -> tuple[int, ...]:
        return self.stored.tensors[self.parts[part]].shape

    def load(self, part: str) -> Any:
        return partial(self.read, part)

    def read(self, part: str) -> Tensor:
        return self.stored.read(self.parts[part]).reshape(self.shape(part))
