"""NaN and infinity, found and named (PROMISES 15): in what is read, and where a cast to a narrow type overflows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from cuvee.core.lazy import torch
from cuvee.core.names import printable
from cuvee.engine.events import Finding
from cuvee.engine.fused.recognise import MASKS
from cuvee.engine.kernels.library import kernels
from cuvee.engine.options import RunOptions
from cuvee.errors import NonFinite, Where
from cuvee.plan.nodes import Read

if TYPE_CHECKING:
    from torch import Tensor

    from cuvee.sources.source import Source

_AT_ONCE = 1 << 20  # elements counted at once


class Guard:
    """Checks blocks for values that are not finite and acts by the options' policy."""

    def __init__(
        self, options: RunOptions, sources: Mapping[str, Source], report: Callable[[Finding], None]
    ) -> None:
        self.policy = options.non_finite
        self.sources = sources
        self.report = report
        self._machine = kernels() if options.kernels else None
        self._told: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def check_input(self, tensor: Tensor, node: Read, start: int) -> None:
        """Stop (or tell once) when a block of a source holds NaN or infinity; the whole tensor is counted then."""
        if self.policy == "allow" or not tensor.is_floating_point() or self._finite(tensor):
            return
        name, source = node.meta.name, self.sources.get(node.source)
        label = source.label if source else node.source
        if (name, label) in self._told:
            return
        count, first = self._counted(tensor, node, start)
        message = (
            f"`{printable(name)}` of `{printable(label)}` holds {_values(count)} that {_are(count)} NaN or infinite, "
            f"the first at index {first}"
        )
        extent = source.extent(name) if source else None
        self._act(message, Where(tensor=name, source=label, file=str(extent.path) if extent else None))

    def _finite(self, tensor: Tensor) -> bool:
        mask = MASKS.get(str(tensor.dtype).removeprefix("torch."))
        if self._machine is None or mask is None or tensor.device.type != "cpu" or not tensor.is_contiguous():
            return bool(torch.isfinite(_reducible(tensor)).all())
        address, size = tensor.data_ptr(), tensor.element_size()
        return not self._machine.not_finite(address, tensor.numel(), size, mask)

    def _counted(self, tensor: Tensor, node: Read, start: int) -> tuple[int, int]:
        """How many elements of the whole tensor are not finite, and the index of the first."""
        source = self.sources.get(node.source)
        if source is None or tensor.numel() == node.meta.numel:
            bad = _bad(tensor)
            return int(bad.sum()), start + int(bad.nonzero()[0])
        count, first = 0, -1
        for begin in range(0, node.meta.numel, _AT_ONCE):
            block = source.read(node.meta.name, begin, min(begin + _AT_ONCE, node.meta.numel))
            bad = _bad(block)
            here = int(bad.sum())
            if here and first < 0:
                first = begin + int(bad.nonzero()[0])
            count += here
        return count, first

    def check_output(self, before: Tensor, after: Tensor, name: str, start: int, size: int) -> None:
        """Stop (or tell once) when the cast to the output's type made finite values infinite, or a merge broke.

        `size` is the number of elements of the whole result: what comes after the block is not made any more.
        """
        if self.policy == "allow" or not after.is_floating_point() or self._finite(after):
            return
        bad = _bad(after)
        count, index = int(bad.sum()), start + int(bad.nonzero()[0])
        overflow = int((bad & torch.isfinite(before)).sum())
        kind = str(after.dtype).removeprefix("torch.")
        them = "it overflows" if count == 1 else f"{overflow} of them overflow"
        reason = f"{them} `{kind}`" if overflow else "merged so"
        least = "" if after.numel() == size else "at least "
        message = (
            f"{least}{_values(count)} of the result `{printable(name)}` {_are(count)} NaN or infinite ({reason}), "
            f"the first at index {index}"
        )
        self._act(message, Where(tensor=name))

    def _act(self, message: str, where: Where) -> None:
        tensor, source = where.tensor or "", where.source
        if self.policy == "stop":
            hint = "`--non-finite warn` goes on and reports, `--non-finite allow` goes on silently"
            raise NonFinite("CV-E021", message, where=where, hint=hint)
        with self._lock:
            if (tensor, source or "") in self._told:
                return
            self._told.add((tensor, source or ""))
        self.report(Finding(message, tensor, source))


def _values(count: int) -> str:
    return f"{count} value" + ("" if count == 1 else "s")


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _bad(tensor: Tensor) -> Tensor:
    return ~torch.isfinite(_reducible(tensor))


def _reducible(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype.itemsize == 1 else tensor  # float8 has no reductions of its own
