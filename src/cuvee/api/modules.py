"""Merged tensors into a live module: every key, or an error before anything is touched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cuvee.core.names import printable
from cuvee.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module


def put(tensors: Mapping[str, Tensor], module: Module) -> Module:
    """Load the tensors into the module and return it; UsageError where names or shapes differ, where parameters of one
    memory (tied ones) would get two values, and where the module has no memory yet.
    """
    own = module.state_dict() if hasattr(module, "state_dict") else None
    if own is None:
        raise UsageError(
            "CV-U012", f"a module is needed to put the merge into, not a {type(module).__name__}"
        )
    tied = _tied(module)
    wrong = [n for n in own if n not in tensors and n not in tied]
    wrong += [n for n, t in tensors.items() if n not in own or own[n].shape != t.shape]
    if wrong:  # said before the module is touched
        shown = ", ".join(f"`{printable(n)}`" for n in wrong[:4])
        raise UsageError("CV-U012", f"the module and the merge do not have the same tensors: {shown}")
    empty = [n for n in tensors if own[n].is_meta]
    if empty:
        text = f"the module has no memory for `{printable(empty[0])}` (device `meta`)"
        raise UsageError("CV-U012", text, hint="`module.to_empty(device=...)` gives it some")
    for name, first in tied.items():
        if name in tensors and first in tensors and not tensors[name].equal(tensors[first]):
            text = f"the module ties `{printable(name)}` to `{printable(first)}`, and the merge has two values for them"
            raise UsageError(
                "CV-U012", text, hint="untie them in the module's config, or leave one out of the merge"
            )
    module.load_state_dict(dict(tensors), strict=False)
    return module


def _tied(module: Module) -> dict[str, str]:
    """Parameters that are the same as an earlier one: name → the earlier name."""
    firsts: dict[int, str] = {}
    found = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        first = firsts.setdefault(id(parameter), name)
        if first != name:
            found[name] = first
    return found
