"""How much arithmetic a plan asks for: entries by stage, counted by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import cuvee
from cuvee.engine import work

SHAPE = (8, 16)
COUNT = 8 * 16


def work_of(method: str, **values: Any) -> dict[str, int]:
    draw = torch.Generator().manual_seed(0)
    base, *experts = ({"a.weight": torch.randn(SHAPE, generator=draw)} for _ in range(4))
    plan = cuvee.merge(experts, base=base, method=method, **values).build()
    return dict(work.work_of(plan.tensors[0]))


def test_inputs_are_planned_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "costs", lambda: {"planning": {"input": 1e6}})
    plan = cuvee.merge([{"a": torch.zeros(4), "b": torch.zeros(8)}] * 3, method="linear").build()
    assert work.planning(plan.tensors) == pytest.approx(6e-3)


def test_each_stage_takes_in_every_entry_of_its_inputs() -> None:
    found = work_of("ties", density=0.5, scope="tensor")
    assert (found["trim"], found["elect"], found[work.OUTPUT]) == (3 * COUNT, 3 * COUNT, COUNT)


def test_thresholds_over_the_model_are_counted_apart() -> None:
    found = work_of("ties", density=0.5, scope="model")
    assert found["trim@model"] == 3 * COUNT and "trim" not in found


def test_a_trim_that_drops_nothing_is_no_work() -> None:
    assert not {"trim", "trim@model"} & set(work_of("ties", density=1.0))


def test_norms_that_are_restored_are_more_work() -> None:
    assert work.NORM not in work_of("dare_linear", density=0.5)
    assert work_of("dare_linear", density=0.5, rescale="l1")[work.NORM] == 3 * COUNT


def test_costs_are_whole_and_stages_without_one_have_a_default(monkeypatch: pytest.MonkeyPatch) -> None:
    found = work.costs()
    assert set(found) == {"bytes", "planning", "stages"} and min(found["stages"].values()) >= 0
    assert work.moving().read == pytest.approx(found["bytes"]["read"] * 1e-9)
    plan = cuvee.merge([{"a": torch.zeros(1000)}] * 2, method="linear").build()
    known = work.seconds_of(plan.tensors[0], compiled=True)
    monkeypatch.setattr(work, "costs", lambda: {"bytes": {}, "stages": {work.OUTPUT: 0.0}})
    assert work.seconds_of(plan.tensors[0], compiled=True) == pytest.approx(1.2e-9 * 2 * 1000)
    assert known > 0 and work.seconds_of(plan.tensors[0], compiled=False) > 20 * known / 10
