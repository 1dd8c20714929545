"""Merged tensors in a live module: what would lose a value, or has no place for one, is refused untouched."""

from __future__ import annotations

import pytest
import torch

import cuvee
from cuvee.errors import UsageError


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = torch.nn.Embedding(6, 4), torch.nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight


def merged(head: float | None) -> cuvee.Blend:
    one = {"embed.weight": torch.ones(6, 4)}
    if head is not None:
        one["head.weight"] = torch.full((6, 4), head)
    return cuvee.merge([one, one], method="linear")


def refused(blend: cuvee.Blend, module: object) -> str:
    with pytest.raises(UsageError) as caught:
        blend.into(module)  # type: ignore[arg-type]
    assert caught.value.diagnostics[0].code == "CV-U012"
    return str(caught.value)


def test_tied_parameters_take_one_value_and_no_two() -> None:
    module = Tied()
    before = module.embed.weight.detach().clone()
    said = refused(merged(2.0), module)
    assert "`head.weight`" in said and "`embed.weight`" in said
    assert torch.equal(module.embed.weight, before)
    for head in (None, 1.0):
        assert torch.equal(merged(head).into(Tied()).head.weight, torch.ones(6, 4))


def test_a_module_without_memory_and_what_is_no_module() -> None:
    with torch.device("meta"):
        empty = torch.nn.Embedding(6, 4)
    blend = cuvee.merge([{"weight": torch.ones(6, 4)}] * 2, method="linear")
    assert "meta" in refused(blend, empty)
    assert torch.equal(blend.into(empty.to_empty(device="cpu")).weight, torch.ones(6, 4))
    assert "str" in refused(blend, "model")
