"""NaN and infinity, found and named (PROMISES 15): in what is read, and where a cast to a narrow type overflows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from cuvee.core.lazy import torch
from cuvee.core.names import printable
from cuvee.engine.events import Finding
from cuvee.engine.options import RunOptions
from cuvee.errors import NonFinite, Where
from cuvee.plan.nodes import Read

if TYPE_CHECKING:
    from torch import Tensor


class Guard:
    """Checks blocks for values that are not finite and acts by the options' policy."""

    def __init__(
        self, options: RunOptions, labels: dict[str, str], report: Callable[[Finding], None]
    ) -> None:
        self.policy = options.non_finite
        self.labels = labels
        self.report = report
        self._told: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def check_input(self, tensor: Tensor, node: Read, start: int) -> None:
        """Stop (or tell once) when a block of a source holds NaN or infinity."""
        if self.policy == "allow" or not tensor.is_floating_point() or _finite(tensor):
            return
        bad = _bad(tensor)
        index = start + int(bad.nonzero()[0])
        label = self.labels.get(node.source, node.source)
        message = (
            f"`{printable(node.meta.name)}` of `{printable(label)}` holds {int(bad.sum())} values that are NaN or "
            f"infinite in the block read, the first at index {index}"
        )
        self._act(message, node.meta.name, label)

    def check_output(self, before: Tensor, after: Tensor, name: str, start: int) -> None:
        """Stop (or tell once) when the cast to the output's type made finite values infinite, or a merge broke."""
        if self.policy == "allow" or not after.is_floating_point() or _finite(after):
            return
        bad = _bad(after)
        index = start + int(bad.nonzero()[0])
        overflow = int((bad & torch.isfinite(before)).sum())
        reason = (
            f"{overflow} of them overflow `{str(after.dtype).removeprefix('torch.')}`"
            if overflow
            else "merged so"
        )
        message = (
            f"{int(bad.sum())} values of the result `{printable(name)}` are NaN or infinite ({reason}), the first at "
            f"index {index}"
        )
        self._act(message, name, None)

    def _act(self, message: str, tensor: str, source: str | None) -> None:
        if self.policy == "stop":
            hint = "`--non-finite warn` goes on and reports, `--non-finite allow` goes on silently"
            raise NonFinite("CV-E021", message, where=Where(tensor=tensor, source=source), hint=hint)
        with self._lock:
            if (tensor, source or "") in self._told:
                return
            self._told.add((tensor, source or ""))
        self.report(Finding(message, tensor, source))


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(_reducible(tensor)).all())


def _bad(tensor: Tensor) -> Tensor:
    return ~torch.isfinite(_reducible(tensor))


def _reducible(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype.itemsize == 1 else tensor  # float8 has no reductions of its own
