"""Expression → operations of the compiled machine, one for each torch operation of the generic path.

Owns registers and the rules of types (float32, bfloat16 and float16 are held in float32 registers and rounded where
torch would round). Stages are emitted by `stages.py`. Knows no files; imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cuvee.core.dtypes import BFLOAT16, BY_NAME, FLOAT32, DType
from cuvee.engine.kernels.operations import Code, Op
from cuvee.plan.nodes import Apply, Convert, Difference, Node, Read, Sum, walk

FLOAT16 = BY_NAME["float16"]
LOADS = {
    BFLOAT16: Code.LOAD_BF16,
    FLOAT16: Code.LOAD_F16,
    FLOAT32: Code.LOAD_F32,
    BY_NAME["float8_e4m3fn"]: Code.LOAD_E4M3,
    BY_NAME["float8_e5m2"]: Code.LOAD_E5M2,
}
STORES = {BFLOAT16: Code.STORE_BF16, FLOAT16: Code.STORE_F16, FLOAT32: Code.STORE_F32}
ROUNDS = {BFLOAT16: Code.ROUND_BF16, FLOAT16: Code.ROUND_F16}

Figures = Mapping[str, Any]


class Unfusable(Exception):
    """The expression has a part that the machine does not do; the generic path does."""


@dataclass(frozen=True, slots=True)
class Value:
    """A register and the type torch would hold its values in."""

    register: int
    dtype: DType


@dataclass(frozen=True, slots=True)
class Program:
    """Operations, the tensors they load in the order of their inputs, and how many registers they need."""

    ops: Any  # ctypes array of Op
    count: int
    reads: tuple[Read, ...]
    registers: int
    kept: tuple[Any, ...] = ()  # memory that operations point to


@dataclass(slots=True)
class Builder:
    """Emits operations for some roots; `known` holds the figures of stages by the identity of their node.

    Each use of a value counts: a register is free again after the last one.
    """

    known: Mapping[int, Figures]
    same: Mapping[tuple[str, str], tuple[str, str]] = field(
        default_factory=dict
    )  # of the same bytes → the first
    ops: list[Op] = field(default_factory=list)
    reads: dict[tuple[str, str], Read] = field(default_factory=dict)
    kept: list[Any] = field(default_factory=list)  # memory that operations point to
    scores: dict[int, tuple[list[Value], Any]] = field(default_factory=dict)  # of a node, for all who ask
    _places: dict[tuple[str, str], int] = field(default_factory=dict)
    _values: dict[int, Value] = field(default_factory=dict)
    _uses: dict[int, int] = field(default_factory=dict)
    _references: dict[int, int] = field(default_factory=dict)
    _free: list[int] = field(default_factory=list)
    _count: int = 0

    def expect(self, roots: Iterable[Node]) -> None:
        """Announce every root once for each time it will be used."""
        seen: set[int] = set()
        for root in roots:
            self._uses[id(root)] = self._uses.get(id(root), 0) + 1
            for node in walk(root):
                if id(node) in seen:
                    continue
                seen.add(id(node))
                for child in node.children:
                    self._uses[id(child)] = self._uses.get(id(child), 0) + 1

    def use(self, node: Node) -> Value:
        """The node's value; to be released once."""
        found = self._values.get(id(node))
        if found is None:
            found = self._values[id(node)] = self._compute(node)
            self._references[found.register] += self._uses[id(node)] - 1
        return found

    def release(self, value: Value) -> None:
        """One use is over."""
        self._references[value.register] -= 1
        if self._references[value.register] == 0:
            self._free.append(value.register)

    def hold(self, value: Value) -> None:
        """One more use is to come."""
        self._references[value.register] += 1

    def new(self, dtype: DType = FLOAT32) -> Value:
        """A register of one's own."""
        if not self._free:
            self._free.append(self._count)
            self._count += 1
        register = self._free.pop()
        self._references[register] = 1
        return Value(register, dtype)

    def emit(self, code: Code, to: Value | None, *operands: Value, **scalars: Any) -> Op:
        """One operation; operands fill a, b, c in order."""
        names = dict(zip("abc", (o.register for o in operands), strict=False))
        op = Op(code=code, to=0 if to is None else to.register, **names, **scalars)
        self.ops.append(op)
        return op

    def filled(self, x: float) -> Value:
        """A register of equal values."""
        value = self.new()
        self.emit(Code.FILL, value, x=x)
        return value

    def scaled(self, value: Value, x: float, code: Code = Code.SCALE) -> Value:
        """A value after one operation with a number; it is released."""
        to = self.new()
        self.emit(code, to, value, x=x)
        self.release(value)
        return to

    def store(self, value: Value, dtype: DType) -> None:
        """Write to the output, rounded to its type."""
        if dtype not in STORES:
            raise Unfusable(dtype.name)
        self.emit(STORES[dtype], None, value)

    def rounded(self, value: Value, dtype: DType) -> Value:
        """The same register once more, holding the values as torch would in `dtype`."""
        if dtype not in STORES:
            raise Unfusable(f"arithmetic in {dtype.name}")
        if dtype != FLOAT32 and value.dtype != dtype:
            self.emit(ROUNDS[dtype], value, value)
        return Value(value.register, dtype)

    def program(self) -> Program:
        """All that was emitted."""
        ops = (Op * len(self.ops))(*self.ops)
        return Program(ops, len(self.ops), tuple(self.reads.values()), max(self._count, 1), tuple(self.kept))

    def _compute(self, node: Node) -> Value:
        if isinstance(node, Read):
            return self._load(node)
        if isinstance(node, Convert):
            return self._convert(node)
        if isinstance(node, Difference):
            return self._difference(node)
        if isinstance(node, Sum):
            return self._sum(node)
        if isinstance(node, Apply):
            from cuvee.engine.fused.stages import emitted

            return emitted(self, node, self.known.get(id(node), {}))
        raise Unfusable(type(node).__name__)

    def uses(self, node: Node) -> int:
        """How often a node is announced to be used."""
        return self._uses.get(id(node), 0)

    def place(self, node: Read) -> int:
        """The number of a tensor among the inputs of the program."""
        key = (node.source, node.meta.name)
        key = self.same.get(key, key)
        self.reads.setdefault(key, node)
        return self._places.setdefault(key, len(self._places))

    def _load(self, node: Read) -> Value:
        value = self.new(node.meta.dtype)
        self.ops.append(Op(code=LOADS[node.meta.dtype], to=value.register, a=self.place(node)))
        return value

    def _convert(self, node: Convert) -> Value:
        child = self.use(node.child)
        if node.dtype in (FLOAT32, child.dtype):
            return Value(child.register, node.dtype)
        to = self.new(node.dtype)
        self.emit(ROUNDS[node.dtype], to, child)
        self.release(child)
        return to

    def _difference(self, node: Difference) -> Value:
        expert, base = self.use(node.expert), self.use(node.base)
        to = self.new()
        self.emit(Code.SUB, to, expert, base)
        self.release(expert)
        self.release(base)
        return self.rounded(to, promoted(expert.dtype, base.dtype))

    def _sum(self, node: Sum) -> Value:
        total: Value | None = None
        for coefficient, child in node.terms:
            term = self.use(child)
            if coefficient != 1:
                scaled = self.new()
                self.emit(Code.SCALE, scaled, term, x=coefficient)
                self.release(term)
                term = self.rounded(scaled, term.dtype)
            if total is None:
                total = term
                continue
            to = self.new()
            self.emit(Code.ADD, to, total, term)
            self.release(total)
            self.release(term)
            total = self.rounded(to, promoted(total.dtype, term.dtype))
        if total is None:
            raise Unfusable("an empty sum")
        return total


def promoted(a: DType, b: DType) -> DType:
    """The type of a sum of two."""
    return a if a == b else FLOAT32


def program_of(
    node: Node,
    dtype: DType,
    known: Mapping[int, Figures],
    same: Mapping[tuple[str, str], tuple[str, str]] | None = None,
) -> Program:
    """The program of an output tensor, its figures known; Unfusable where the machine cannot."""
    builder = Builder(known, same or {})
    builder.expect([node])
    value = builder.use(node)
    builder.store(value, dtype)
    return builder.program()
