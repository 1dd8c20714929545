"""An interpreter for the pickles of checkpoints that executes nothing: opcodes in, values and views out.

It knows the opcodes that `torch.save` writes and refuses the rest, counts operations, and charges every value
to a budget of memory that grows with the pickle, so that no pickle costs more than its size warrants.
Must never import, look up or call what a file names.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cuvee.core.limits import MIB, Limits
from cuvee.formats.pickle_rebuild import Rebuilder
from cuvee.formats.pickle_values import GLOBALS
from cuvee.formats.refusals import over_limit, quoted, unsafe

_HINT = "cuvee never runs code from a checkpoint; save it as safetensors where you trust it"


class PickleMachine:
    """Reads one pickle after another from `data`; `storages` collects what they name."""

    def __init__(self, data: bytes, path: Path, limits: Limits) -> None:
        self.data = data
        self.path = path
        self.limits = limits
        self.rebuilder = Rebuilder(path, limits)
        self.position = 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._spent = 0
        self._operations = 0

    def load(self) -> Any:
        """The value of the pickle at `position`, which moves behind it."""
        self._stack, self._marks, self._memo = [], [], {}
        data, budget = self.data, 12 * len(self.data) + 16 * MIB
        while True:
            if self.position >= len(data):
                raise self.rebuilder.malformed("it ends without STOP")
            code = data[self.position]
            self.position += 1
            if code == 0x2E:  # STOP
                return self._pop()
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise self._unknown(code)
            operation(self)
            self._operations += 1
            if self._spent > budget:
                raise over_limit(self.path, "memory the pickle asks for in bytes", self._spent, budget)
            if self._operations > self.limits.pickle_ops:
                limit = self.limits.pickle_ops
                raise over_limit(self.path, "number of pickle operations", self._operations, limit)

    def _unknown(self, code: int) -> Exception:
        name = _REFUSED.get(code)
        if name is None:
            return self.rebuilder.malformed(f"byte {code:#04x} at {self.position - 1:,} is no operation")
        return unsafe(
            "CV-S060", self.path, f"the pickle uses `{name}`, which no checkpoint needs", hint=_HINT
        )

    # Reading arguments

    def _bytes(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.data):
            raise self.rebuilder.malformed("it ends in the middle of an operation")
        out = self.data[self.position : end]
        self.position = end
        return out

    def _number(self, count: int) -> int:
        return int.from_bytes(self._bytes(count), "little")

    def _text(self, raw: bytes) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.rebuilder.malformed("a string is not valid UTF-8") from None

    def _line(self) -> str:
        end = self.data.find(b"\n", self.position, self.position + 1024)
        if end < 0:
            raise self.rebuilder.malformed("a name has no end")
        raw = self._bytes(end + 1 - self.position)
        return self._text(raw[:-1])

    # The stack

    def _push(self, value: Any, cost: int = 0) -> None:
        self._stack.append(value)
        self._spent += 8 + cost

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise self.rebuilder.malformed("it takes from an empty stack")
        return self._stack.pop()

    def _top(self) -> Any:
        value = self._pop()
        self._stack.append(value)
        return value

    def _since_mark(self) -> list[Any]:
        if not self._marks:
            raise self.rebuilder.malformed("it looks for a mark that is not there")
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    # Operations

    def _mark(self) -> None:
        self._marks.append(len(self._stack))
        self._spent += 40

    def _protocol(self) -> None:
        version = self._number(1)
        if version > 5:
            raise self.rebuilder.malformed(f"protocol {version} is unknown")

    def _frame(self) -> None:
        self._bytes(8)  # only a hint for buffered readers

    def _integer(self, count: int) -> None:
        self._push(self._number(count), 28)

    def _signed(self) -> None:
        self._push(int.from_bytes(self._bytes(4), "little", signed=True), 28)

    def _long(self) -> None:
        raw = self._bytes(self._number(1))
        self._push(int.from_bytes(raw, "little", signed=True), 28 + len(raw))

    def _float(self) -> None:
        self._push(struct.unpack(">d", self._bytes(8))[0], 24)

    def _unicode(self, width: int) -> None:
        raw = self._bytes(self._number(width))
        self._push(self._text(raw), 76 + 4 * len(raw) if not raw.isascii() else 49 + len(raw))

    def _binary(self, width: int) -> None:
        raw = self._bytes(self._number(width))
        self._push(raw, 33 + len(raw))

    def _tuple(self, count: int | None) -> None:
        items = self._since_mark() if count is None else [self._pop() for _ in range(count)][::-1]
        self._push(tuple(items), 56 + 8 * len(items))

    def _append(self, items: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, list):
            raise self.rebuilder.malformed("it appends to something that is not a list")
        target.extend(items)
        self._spent += 8 * len(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, dict) or len(items) % 2:
            raise self.rebuilder.malformed("it sets items of something that is not a dict")
        target.update(zip(self.rebuilder.keys(items[::2]), items[1::2], strict=True))
        self._spent += 50 * len(items)

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._set_items([key, value])

    def _add_items(self) -> None:
        items = self._since_mark()
        target = self._top()
        if not isinstance(target, set):
            raise self.rebuilder.malformed("it adds to something that is not a set")
        target.update(self.rebuilder.keys(items))
        self._spent += 64 * len(items)

    def _put(self, index: int) -> None:
        self._memo[index] = self._top()
        self._spent += 100

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise self.rebuilder.malformed(f"memo {index} was never filled")
        self._push(self._memo[index])

    def _global(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise self.rebuilder.malformed("a global is not named by two strings")
        found = GLOBALS.get((module, name))
        if found is None:
            full = quoted(f"{module}.{name}", 120)
            raise unsafe("CV-S060", self.path, f"the pickle names {full}, which no weight needs", hint=_HINT)
        self._push(found)

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        self._global(module, name)

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        for argument in arguments if isinstance(arguments, tuple) else ():  # copies, at worst
            self._spent += 64 * len(argument) if isinstance(argument, (list, tuple, dict, str)) else 0
        self._push(self.rebuilder.call(function, arguments), 300)

    def _build(self) -> None:
        """Attributes of an OrderedDict (`_metadata` of a state dict) are let go; nothing else has any."""
        state = self._pop()
        if not isinstance(self._top(), dict) or not isinstance(state, dict):
            raise unsafe("CV-S060", self.path, "the pickle sets the state of an object", hint=_HINT)

    def _persistent(self) -> None:
        self._push(self.rebuilder.storage(self._pop()), 96)


_Operation = Callable[[PickleMachine], None]

_OPERATIONS: dict[int, _Operation] = {
    0x80: PickleMachine._protocol,
    0x95: PickleMachine._frame,
    0x28: PickleMachine._mark,
    0x4E: lambda m: m._push(None),
    0x88: lambda m: m._push(True),
    0x89: lambda m: m._push(False),
    0x4A: PickleMachine._signed,
    0x4B: lambda m: m._integer(1),
    0x4D: lambda m: m._integer(2),
    0x8A: PickleMachine._long,
    0x47: PickleMachine._float,
    0x58: lambda m: m._unicode(4),
    0x8C: lambda m: m._unicode(1),
    0x8D: lambda m: m._unicode(8),
    0x54: lambda m: m._unicode(4),  # BINSTRING of Python 2
    0x55: lambda m: m._unicode(1),
    0x42: lambda m: m._binary(4),
    0x43: lambda m: m._binary(1),
    0x8E: lambda m: m._binary(8),
    0x7D: lambda m: m._push({}, 64),
    0x5D: lambda m: m._push([], 72),
    0x8F: lambda m: m._push(set(), 216),
    0x29: lambda m: m._push(()),
    0x85: lambda m: m._tuple(1),
    0x86: lambda m: m._tuple(2),
    0x87: lambda m: m._tuple(3),
    0x74: lambda m: m._tuple(None),
    0x61: lambda m: m._append([m._pop()]),
    0x65: lambda m: m._append(m._since_mark()),
    0x73: PickleMachine._set_item,
    0x75: lambda m: m._set_items(m._since_mark()),
    0x90: PickleMachine._add_items,
    0x71: lambda m: m._put(m._number(1)),
    0x72: lambda m: m._put(m._number(4)),
    0x94: lambda m: m._put(len(m._memo)),
    0x68: lambda m: m._get(m._number(1)),
    0x6A: lambda m: m._get(m._number(4)),
    0x63: lambda m: m._global(m._line(), m._line()),
    0x93: PickleMachine._stack_global,
    0x52: PickleMachine._reduce,
    0x62: PickleMachine._build,
    0x51: PickleMachine._persistent,
}

# Operations of the pickle language that are named when they are refused.
_REFUSED = {
    0x69: "INST", 0x6F: "OBJ", 0x81: "NEWOBJ", 0x92: "NEWOBJ_EX", 0x82: "EXT1", 0x83: "EXT2", 0x84: "EXT4",
    0x50: "PERSID", 0x32: "DUP", 0x30: "POP", 0x31: "POP_MARK", 0x8B: "LONG4", 0x91: "FROZENSET",
    0x96: "BYTEARRAY8", 0x97: "NEXT_BUFFER", 0x98: "READONLY_BUFFER", 0x49: "INT", 0x4C: "LONG",
    0x46: "FLOAT", 0x53: "STRING", 0x56: "UNICODE", 0x70: "PUT", 0x67: "GET", 0x6C: "LIST", 0x64: "DICT",
}  # fmt: skip
