"""The few calls a state dict's pickle makes: storages from persistent ids, views from rebuild calls, sets.

Everything is checked here that can be checked without the archive; whether a storage is really there is the
business of the container. Must not call anything that a file names.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cuvee.core.dtypes import DType
from cuvee.core.limits import Limits
from cuvee.errors import SourceError
from cuvee.formats.pickle_values import Known, Opaque, Storage, View
from cuvee.formats.refusals import corrupt, over_limit, quoted, unsafe, unusable

_LARGEST = (1 << 63) - 1
_REPEATS = 1 << 20  # elements a view may have whatever its storage holds (strides of 0 repeat elements)
_SCALARS = (str, int, float, bool, bytes, type(None))


class Rebuilder:
    """Turns checked arguments into values; remembers every storage that was named."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self.path = path
        self.limits = limits
        self.storages: dict[str, Storage] = {}

    def malformed(self, message: str) -> SourceError:
        return corrupt("CV-S061", self.path, f"the pickle is malformed: {message}")

    def call(self, function: Any, arguments: Any) -> Any:
        """The result of a REDUCE."""
        if not isinstance(function, Known):
            raise unsafe("CV-S060", self.path, "the pickle calls something that is not a function")
        if not isinstance(arguments, tuple):
            raise self.malformed(f"`{function.name}` is called without a tuple of arguments")
        if function.role == "rebuild":
            return self._tensor(function, arguments)
        if function.role == "ordered_dict":
            return self._dict(function, arguments)
        if function.role == "set" and len(arguments) == 1 and isinstance(arguments[0], (list, tuple)):
            return set(self.keys(arguments[0]))
        if function.role == "size" and len(arguments) == 1:
            return self._integers(arguments[0], "size")
        if function.role == "encode" and len(arguments) == 2 and arguments[1] == "latin1":
            return self._latin(arguments[0])
        if function.role == "opaque":
            return Opaque(function.name)
        raise unsafe("CV-S060", self.path, f"the pickle calls `{function.name}` in a way no checkpoint does")

    def keys(self, items: Iterable[Any]) -> list[Any]:
        """Keys of a mapping or members of a set: scalars, or flat tuples of them (hashing stays shallow)."""
        out = list(items)
        for item in out:
            flat = isinstance(item, tuple) and all(isinstance(part, _SCALARS) for part in item)
            if not flat and not isinstance(item, _SCALARS):
                raise self.malformed(f"a key is a {type(item).__name__}")
        return out

    def storage(self, identity: Any) -> Storage:
        """The storage that a persistent id names."""
        match identity:
            case ("storage", Known(role="storage", dtype=DType() as dtype), str(key), _, int(numel)):
                return self._remember(Storage(key, dtype, numel, 0, numel))
            case ("storage", Known(role="storage", dtype=DType() as dtype), str(key), _, int(numel), window):
                return self._remember(self._window(key, dtype, numel, window))
        raise self.malformed("a persistent id does not describe a storage")

    def _window(self, key: str, dtype: DType, numel: int, window: Any) -> Storage:
        match window:
            case None:
                return Storage(key, dtype, numel, 0, numel)
            case (str(), int(offset), int(length)) if 0 <= offset <= offset + length <= numel:
                return Storage(key, dtype, numel, offset, length)
        raise self.malformed(f"storage {quoted(key)} is a window outside its parent")

    def _remember(self, storage: Storage) -> Storage:
        if type(storage.numel) is not int or not 0 <= storage.numel * storage.dtype.size <= _LARGEST:
            raise self.malformed(f"storage {quoted(storage.key)} claims {storage.numel} elements")
        known = self.storages.setdefault(storage.key, storage)
        if (known.dtype, known.numel) != (storage.dtype, storage.numel):
            raise self.malformed(f"storage {quoted(storage.key)} is described in two ways")
        if len(self.storages) > self.limits.tensors:
            raise over_limit(self.path, "number of storages", len(self.storages), self.limits.tensors)
        return storage

    def _tensor(self, function: Known, arguments: tuple[Any, ...]) -> View:
        """One of the rebuild calls."""
        match function.name, arguments:
            case "_rebuild_parameter", (View() as view, _, _):
                return view
            case "_rebuild_parameter_with_state", (View() as view, _, _, _):
                return view
            case "_rebuild_from_type_v2", (
                Known(role="rebuild") as inner,
                Known(role="parameter"),
                tuple(args),
                _,
            ):
                if inner != function:
                    return self._tensor(inner, args)
            case "_rebuild_tensor", (Storage() as storage, offset, shape, stride):
                return self._view(storage, storage.dtype, offset, shape, stride)
            case "_rebuild_tensor_v2", (Storage() as storage, offset, shape, stride, _, _, *rest):
                self._no_lazy_flags(rest)
                return self._view(storage, storage.dtype, offset, shape, stride)
            case "_rebuild_tensor_v3", (
                Storage() as storage,
                offset,
                shape,
                stride,
                _,
                _,
                Known(role="dtype", dtype=DType() as dtype),
                *rest,
            ):
                self._no_lazy_flags(rest)
                return self._view(storage, dtype, offset, shape, stride)
        raise self.malformed(f"`{function.name}` is called with arguments no checkpoint has")

    def _no_lazy_flags(self, rest: list[Any]) -> None:
        if len(rest) > 1 or (rest and rest[0] is not None and not isinstance(rest[0], dict)):
            raise self.malformed("a tensor has extra arguments")
        if rest and rest[0]:
            raise unusable(
                "CV-S063", self.path, "a tensor is stored conjugated or negated, which is not read"
            )

    def _view(self, storage: Storage, dtype: DType, offset: Any, shape: Any, stride: Any) -> View:
        """A view, every element of which lies inside its storage's window."""
        sizes, steps = self._integers(shape, "shape"), self._integers(stride, "stride")
        if type(offset) is not int or offset < 0 or len(sizes) != len(steps):
            raise self.malformed("the offset, shape and stride of a tensor do not belong together")
        if len(sizes) > self.limits.rank:
            raise over_limit(self.path, "rank", len(sizes), self.limits.rank)
        numel, last = 1, offset
        for length, step in zip(sizes, steps, strict=True):
            numel *= length
            last += (length - 1) * step
            if numel > _LARGEST or last > _LARGEST:
                raise self.malformed(f"the shape {list(sizes)} overflows")
        held = storage.length * storage.dtype.size // dtype.size
        if numel and last >= held:
            raise corrupt(
                "CV-S063",
                self.path,
                f"a tensor of shape {list(sizes)} reaches element {last:,} of storage {quoted(storage.key)},"
                f" which holds {held:,}",
            )
        if numel > max(_REPEATS, 1024 * held):
            raise over_limit(self.path, "number of elements repeated by strides of 0", numel, 1024 * held)
        return View(storage, dtype, offset if numel else 0, sizes, steps)

    def _integers(self, value: Any, what: str) -> tuple[int, ...]:
        if not isinstance(value, (tuple, list)) or len(value) > 64:
            raise self.malformed(f"a {what} is not a short tuple of whole numbers")
        if not all(type(number) is int and 0 <= number <= _LARGEST for number in value):
            raise self.malformed(f"a {what} holds something else than whole numbers from 0")
        return tuple(value)

    def _dict(self, function: Known, arguments: tuple[Any, ...]) -> dict[Any, Any]:
        match arguments:
            case ():
                return {}
            case (dict(items),):
                return dict(items)
            case (list(pairs),) if all(isinstance(p, (list, tuple)) and len(p) == 2 for p in pairs):
                keys = self.keys(pair[0] for pair in pairs)
                return dict(zip(keys, (pair[1] for pair in pairs), strict=True))
        raise self.malformed(f"`{function.name}` is called with arguments no checkpoint has")

    def _latin(self, text: Any) -> bytes:
        try:
            if isinstance(text, str):
                return text.encode("latin1")
        except UnicodeEncodeError:
            pass
        raise self.malformed("bytes are spelt in a way no checkpoint has")
