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
    """Load the tensors into the module and return it; UsageError where names or shapes differ."""
    own = module.state_dict()
    once = dict(module.named_parameters()).keys()
    tied = {n for n, _ in module.named_parameters(remove_duplicate=False)} - once
    wrong = [n for n in own if n not in tensors and n not in tied]
    wrong += [n for n, t in tensors.items() if n not in own or own[n].shape != t.shape]
    if wrong:  # said before the module is touched
        shown = ", ".join(f"`{printable(n)}`" for n in wrong[:4])
        raise UsageError("CV-U012", f"the module and the merge do not have the same tensors: {shown}")
    module.load_state_dict(dict(tensors), strict=False)
    return module
