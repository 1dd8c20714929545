"""What one module of a diffusion model's LoRA file stands for: LoRA, LoCon, LoHa, LoKr, whole differences, with DoRA.

Owns the forms that kohya's scripts, LyCORIS, diffusers and PEFT write, and their scales. Must not know which tensor of
a base a module belongs to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from cuvee.core.lazy import torch
from cuvee.core.names import printable
from cuvee.core.tensors import TensorMeta
from cuvee.errors import CorruptFile, Where
from cuvee.sources.low_rank import Delta, FactorCache, LowRank, Scaled
from cuvee.sources.lycoris import ShapesError, relative_delta
from cuvee.sources.other_deltas import Rescaled
from cuvee.sources.peft_config import AdapterConfig
from cuvee.sources.stored import StoredTensors

if TYPE_CHECKING:
    from torch import Tensor

Parts = Mapping[str, str]  # names of tensors by part (`key_maps/lora.toml`)
_AROUND = {"alpha", "dora", "magnitude", "diff_b"}  # what may stand beside any form of a weight's change


def leaves_of(parts: Parts) -> list[str]:
    """Which tensors of its module an entry changes: `weight`, `bias` or both."""
    beside = "diff_b" in parts
    weight = bool(set(parts) - {"diff_b", "alpha"}) or not beside
    return (["weight"] if weight else []) + (["bias"] if beside else [])


@dataclass(frozen=True, slots=True)
class ModuleReader:
    """From the parts of modules to deltas; `configs` are PEFT's, by component, where a file carries them."""

    stored: StoredTensors
    configs: Mapping[str, AdapterConfig]
    cache: FactorCache

    def delta(
        self,
        module: str,
        parts: Parts,
        leaf: str,
        target: TensorMeta,
        values: Callable[[int, int], Tensor],
    ) -> tuple[Delta, int | None]:
        """What a module adds to its weight or bias, and its rank where it has one; CorruptFile where nothing fits.

        `values` reads elements of the tensor that is changed, for DoRA.
        """
        if not target.dtype.is_float or not target.shape:
            message = f"`{printable(target.name)}` is no tensor of floats with axes, so nothing can be added"
            raise misfit(self.stored, module, message)
        if leaf == "bias":
            return self._whole(module, parts["diff_b"], target), None
        form = set(parts) - _AROUND
        made: tuple[Delta, int | None]
        if form == {"diff"}:
            made = self._whole(module, parts["diff"], target), None
        elif {"down", "up"} <= form <= {"down", "up", "mid"}:
            made = self._product(module, parts, target.shape)
        elif any(part.startswith(("hada_", "lokr_")) for part in form):
            made = self._relative(module, parts, target)
        else:
            found = ", ".join(f"`{part}`" for part in sorted(form))
            raise misfit(
                self.stored, module, f"`{printable(module)}` of the LoRA is not one module: it has {found}"
            )
        return self._decomposed(module, parts, target, made[0], values), made[1]

    def _product(self, module: str, parts: Parts, shape: tuple[int, ...]) -> tuple[LowRank, int]:
        """s · up · down as a matrix of the target's rows; of a Tucker form s · up · (mid · down)."""
        down, up = self._shape(parts["down"]), self._shape(parts["up"])
        rows, columns = shape[0], math.prod(shape[1:])
        rank = down[0] if down else 0
        mid = self._shape(parts["mid"]) if "mid" in parts else ()
        outer = mid[0] if mid else rank
        fits = rank > 0 and up[:2] == (rows, outer) and math.prod(up) == rows * outer
        if "mid" in parts:
            inputs = shape[1] if len(shape) > 1 else 0
            fits = fits and mid[1:2] == (rank,) and math.prod(down) == rank * inputs and mid[2:] == shape[2:]
        elif math.prod(down) != rank * columns:
            fits = False
        if not fits:
            message = (
                f"the factors {list(down)} and {list(up)} of `{printable(module)}` do not fit {list(shape)}"
            )
            raise misfit(self.stored, module, message)
        left = partial(self._matrix, parts["up"], (rows, outer))
        right: Callable[[], Tensor] = partial(self._matrix, parts["down"], (rank, math.prod(down) // rank))
        if "mid" in parts:
            right = partial(self._core, parts["mid"], right)
        scale = self._scale(module, parts, rank)
        return LowRank(left, right, scale, columns, self.cache), rank

    def _core(self, name: str, down: Callable[[], Tensor]) -> Tensor:
        """The product of a core (outer, inner, kernel…) and the factor (inner, inputs), as (outer, inputs · kernel)."""
        core = self.stored.read(name).reshape(self._shape(name)).double()
        return torch.einsum("ij...,jr->ir...", core, down().double()).flatten(1)

    def _relative(self, module: str, parts: Parts, target: TensorMeta) -> tuple[Delta, int | None]:
        """LoHa or LoKr; the alpha of a LoKr of whole matrices has no effect, as in LyCORIS."""
        own = {part: name for part, name in parts.items() if part not in _AROUND}

        def scale(rank: int | None) -> float:
            return 1.0 if rank is None else self._scale(module, parts, rank)

        try:
            return relative_delta(self.stored, own, target, scale, self.cache, spread=False)
        except ShapesError as error:
            message = f"the factors of `{printable(module)}` do not fit {list(target.shape)}: {error}"
            raise misfit(self.stored, module, message) from None

    def _whole(self, module: str, name: str, target: TensorMeta) -> Scaled:
        """A difference of the tensor itself, which no alpha scales."""
        if self.stored.tensors[name].numel != target.numel:
            message = f"`{printable(name)}` has {self.stored.tensors[name].numel} numbers, its tensor {target.numel}"
            raise misfit(self.stored, module, message)
        return Scaled(partial(self.stored.read, name), 1.0)

    def _decomposed(
        self, module: str, parts: Parts, target: TensorMeta, made: Delta, values: Callable[[int, int], Tensor]
    ) -> Delta:
        """DoRA on top: `dora_scale` has the shape of the outputs or of the inputs, a `magnitude` is of the outputs."""
        name = parts.get("dora") or parts.get("magnitude")
        if name is None:
            return made
        shape, rows = self._shape(name), target.shape[0]
        inputs = target.shape[1] if len(target.shape) > 1 else 1
        number = self.stored.tensors[name].numel
        by_output = number == rows and ("magnitude" in parts or shape[:1] == (rows,))
        by_input = number == inputs and "dora" in parts and shape[:2] in ((1, inputs), (inputs,))
        if not by_output and not by_input:
            message = f"the magnitudes {list(shape)} of `{printable(module)}` do not fit {list(target.shape)}"
            raise misfit(self.stored, module, message)
        columns = math.prod(target.shape[1:])
        magnitudes = partial(self.stored.read, name)
        kernel = 1 if by_output else columns // inputs
        return Rescaled(made, values, magnitudes, (rows, columns), not by_output, self.cache, kernel)

    def _shape(self, name: str) -> tuple[int, ...]:
        return self.stored.tensors[name].shape

    def _matrix(self, name: str, shape: tuple[int, int]) -> Tensor:
        return self.stored.read(name).reshape(shape)

    def _scale(self, module: str, parts: Parts, rank: int) -> float:
        """alpha / rank: the module's own alpha, else that of the file's metadata, else 1."""
        if "alpha" in parts:
            value = float(self.stored.read(parts["alpha"]).double().sum())
            if self.stored.tensors[parts["alpha"]].numel != 1 or not math.isfinite(value):
                message = f"the alpha of `{printable(module)}` is not one finite number"
                raise misfit(self.stored, module, message)
            return value / rank
        component, _, path = module.partition(".")
        config = self.configs.get(component)
        return 1.0 if config is None else config.scale_of(path, rank)


def misfit(stored: StoredTensors, module: str, message: str) -> CorruptFile:
    """CV-S155: what is wrong with a module of a file."""
    return CorruptFile(
        "CV-S155",
        message,
        where=Where(source=stored.label, tensor=printable(module)),
        hint="is the LoRA from this architecture, and has the base the component it is for?",
    )
