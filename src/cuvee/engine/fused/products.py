"""All products of a stage's inputs with each other, in one operation of the compiled machine.

Owns the question whether the inputs are as that operation wants them: few, read as bfloat16 or float32, all alone or
all less the same base. Whatever else is left to single products, which give the same bytes. Must not import torch.
"""

from __future__ import annotations

import ctypes
from typing import Any

from cuvee.core.dtypes import FLOAT32
from cuvee.engine.fused.builder import Builder
from cuvee.engine.fused.crowd import changed, memory, plain
from cuvee.engine.kernels.operations import FACTORS, Code, Factor, Gram
from cuvee.plan.nodes import Apply


def products(builder: Builder, node: Apply, lines: int) -> list[Any] | None:
    """Where the sums of `lines` tiles will be, for each product of two inputs; None where it takes more."""
    members = [plain(child) or changed(builder, child) for child in node.inputs]
    found = [member for member in members if member is not None]
    if not 0 < len(found) == len(members) <= FACTORS or any(m.base is not found[0].base for m in found):
        return None
    head, factors = memory(builder, Gram, Factor, len(found))
    pairs = len(found) * (len(found) + 1) // 2
    sums = (ctypes.c_double * lines * pairs)()
    head.sums, head.lines = ctypes.addressof(sums) - ctypes.addressof(head), lines
    bases = [builder.use(member.base) for member in found if member.base is not None]
    head.base = bases[0].register if bases else -1
    spare = [builder.new() for _ in found]
    for factor, member, own in zip(factors, found, spare, strict=True):
        factor.input, factor.own = builder.place(member.read), own.register
        factor.wide = int(member.read.meta.dtype == FLOAT32)
    builder.emit(Code.GRAM, None, data=ctypes.addressof(head))
    for value in (*bases, *spare):
        builder.release(value)
    return [sums[pair] for pair in range(pairs)]
