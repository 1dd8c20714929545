"""A stage's own function run on traced values: what it would compute becomes operations of the machine.

For stages that are linear combinations with coefficients from a Gram matrix. They import torch for a few numbers.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from cuvee.core.lazy import torch
from cuvee.engine.kernels.operations import Code
from cuvee.methods.contract import Block
from cuvee.methods.registry import stage

if TYPE_CHECKING:
    from cuvee.engine.fused.builder import Builder, Figures, Value
    from cuvee.plan.nodes import Apply


class Traced:
    """A tensor of which only the register is known; it can be multiplied, divided and added, which emits operations.

    A product with a number waits, so that adding it becomes one operation (of two roundings).
    """

    def __init__(self, builder: Builder, value: Value, factor: float | None = None) -> None:
        self.builder = builder
        self.value = value
        self.factor = factor

    @property
    def dtype(self) -> Any:
        return torch.float32

    @property
    def shape(self) -> tuple[int, ...]:
        return ()

    def reshape(self, *shape: Any) -> Traced:
        return self

    def __mul__(self, factor: Any) -> Traced:
        ready = self.settled()
        return Traced(self.builder, ready.value, float(factor))

    def __truediv__(self, divisor: Any) -> Traced:
        return self._applied(Code.SHRINK, float(divisor))

    def __add__(self, other: Traced) -> Traced:
        left = self.settled()
        to = self.builder.new()
        if other.factor is None:
            self.builder.emit(Code.ADD, to, left.value, other.value)
        else:
            self.builder.emit(Code.MULTIPLY_ADD, to, left.value, other.value, x=other.factor)
        return Traced(self.builder, to)

    def settled(self) -> Traced:
        """With the waiting product done."""
        if self.factor is None:
            return self
        factor, self.factor = self.factor, None
        return self._applied(Code.SCALE, factor)

    def _applied(self, code: Code, x: float) -> Traced:
        ready = self.settled()
        to = self.builder.new()
        self.builder.emit(code, to, ready.value, x=x)
        return Traced(self.builder, to)


def trace(node: Apply, tensors: list[Traced], figures: Figures) -> Value:
    """Run the stage on traced values; its result is a register of its own."""
    step = stage(node.stage)
    wanted = inspect.signature(step.function).parameters
    extra: dict[str, Any] = {}
    if "summary" in wanted:
        extra["summary"] = figures
    if "block" in wanted:
        extra["block"] = Block([], 0, node.shape, place=node.place)
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in node.values}
    with torch.no_grad():
        result: Any = step.function(tensors, **values, **extra)
    builder = result.builder
    if any(result is tensor for tensor in tensors):
        builder.hold(result.value)  # the input itself: one more use
    value: Value = result.settled().value
    return value
