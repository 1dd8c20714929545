"""Every method on a device that is not the CPU, pretended: whatever is read lies elsewhere and stays there.

Operations on tensors of two places fail as they do on a real device (numbers in 0-d tensors may mix), and a tensor made
without saying where is made on the CPU. Results must be the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_evaluate import BASE, EXPERTS
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

import cuvee
from cuvee.engine.evaluate import Evaluator
from cuvee.engine.options import RunOptions
from cuvee.methods.registry import get, names
from cuvee.testing.sample_values import sample_values

MAY_MIX = {"to", "cpu", "copy_", "__get__", "type", "__getitem__"}
NO_NUMBERS = {"cat", "stack"}  # where even 0-d tensors must be in the same place


NAME, HERE = torch.device("meta"), torch.device("cpu")


class Elsewhere(torch.Tensor):
    """A tensor on the pretended device."""


class Device(TorchFunctionMode):
    """The pretended device; its name is that of one which torch knows and nothing here uses."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        name = getattr(func, "__name__", "")
        if func == torch.Tensor.device.__get__:  # type: ignore[attr-defined]
            return NAME if isinstance(args[0], Elsewhere) else func(*args)
        leaves = tree_leaves((args, given))
        asked = NAME in [leaf for leaf in leaves if isinstance(leaf, torch.device)]
        args, given = tree_map(lambda x: HERE if isinstance(x, torch.device) else x, (args, given))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        away = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
        here = [tensor for tensor in tensors if not isinstance(tensor, Elsewhere)]
        strict = [tensor for tensor in here if tensor.dim() or name in NO_NUMBERS]
        if away and name not in MAY_MIX and strict:
            raise RuntimeError(f"expected all tensors of `{name}` to be on the same device")
        if name == "__getitem__" and away and args[0] is not away[0]:
            raise RuntimeError("an index lies on the device, the tensor does not")
        if name == "numpy" and away:
            raise TypeError("can't convert a tensor of the device to numpy")
        out = func(*args, **given)
        if name == "cpu":
            return out.as_subclass(torch.Tensor)
        if away or asked:
            return tree_map(lambda x: x.as_subclass(Elsewhere) if isinstance(x, Tensor) else x, out)
        return out


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads arrive on the device; blocks are computed where its rules hold."""
    read, blocks = Evaluator._read, Evaluator.blocks

    def fetched(self: Evaluator, *given: Any) -> Tensor:
        return read(self, *given).as_subclass(Elsewhere)

    def computed(self: Evaluator, *given: Any) -> Iterator[tuple[int, int, Tensor]]:
        with Device():
            for start, stop, value in blocks(self, *given):
                assert isinstance(value, Elsewhere)
                yield start, stop, value.as_subclass(torch.Tensor)

    monkeypatch.setattr(Evaluator, "_read", fetched)
    monkeypatch.setattr(Evaluator, "blocks", computed)


@pytest.mark.parametrize("method", names())
def test_a_method_stays_on_the_device_of_its_inputs(method: str, request: pytest.FixtureRequest) -> None:
    found = get(method)
    chosen = dict(zip("abc", EXPERTS[: found.inputs[1] or 3], strict=False))
    values = sample_values(found, len(chosen))
    kept = ("cube", "long", "matrix", "one")
    chosen = {name: {k: expert[k] for k in kept} for name, expert in chosen.items()}
    base = None if found.base == "ordinary" else {k: BASE[k] for k in kept}
    blend = cuvee.merge(chosen, base=base, method=method, seed=4, **values)
    expected = blend.load(RunOptions(kernels=False))
    request.getfixturevalue("elsewhere")
    merged = blend.load(RunOptions(kernels=False))
    assert all(torch.equal(merged[name], expected[name]) for name in expected)
