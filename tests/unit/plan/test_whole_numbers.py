"""Tensors that are not merged: kinds of numbers that differ, and what is told of those that are copied."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import cuvee
from cuvee.errors import PlanError

HALVES = torch.tensor([0.5, 1.5])
WHOLE = torch.tensor([3, 4])


def _merged(name: str, *values: torch.Tensor, **given: Any) -> torch.Tensor:
    models = [{"other": HALVES, name: value} for value in values]
    return cuvee.merge(models, method="linear", **given).load()[name]


@pytest.mark.parametrize(
    "values", [(HALVES, WHOLE), (WHOLE, HALVES), (HALVES, WHOLE > 3), (HALVES, HALVES + 0j)]
)
def test_fractions_are_not_replaced_by_other_numbers(values: tuple[torch.Tensor, ...]) -> None:
    with pytest.raises(PlanError) as caught:
        _merged("norm.weight", *values)
    (found,) = caught.value.diagnostics
    assert found.code == "CV-P039"
    assert all(str(v.dtype).removeprefix("torch.") in found.message for v in values)


@pytest.mark.parametrize("name", ["text.embeddings.position_ids", "bn.num_batches_tracked"])
def test_buffers_that_a_program_stored_as_floats_stay_whole(name: str) -> None:
    for values in ((WHOLE.float(), WHOLE), (WHOLE, WHOLE.float())):
        found = _merged(name, *values)
        assert found.dtype == torch.int64 and found.tolist() == [3, 4]


def test_what_is_copied_is_called_what_it_is() -> None:
    models = [{"w": HALVES, "turn": HALVES + 0j, "count": WHOLE} for _ in range(2)]
    notes = [
        n.message for n in cuvee.merge(models, method="linear").plan().value.notes if n.code == "CV-P101"
    ]
    assert notes == [
        "1 tensor of whole numbers is copied, not merged: `count`",
        "1 tensor of complex numbers is copied, not merged: `turn`",
    ]


def test_a_model_in_memory_is_named_in_errors() -> None:
    broken = {"w": torch.tensor([float("nan"), 1.0])}
    with pytest.raises(cuvee.CuveeError, match=r"code .in memory."):
        cuvee.merge({"math": {"w": HALVES}, "code": broken}, method="linear").load()
