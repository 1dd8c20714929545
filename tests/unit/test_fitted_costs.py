"""The fit behind predicted times recovers costs from measurements that were made of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[2] / "benchmarks"), *sys.path])
    import fit_costs

    return fit_costs


def test_costs_of_made_up_measurements_are_found_again(program: Any) -> None:
    from cuvee.plan.cost import Prediction

    true = {"output": 1.0, "elect": 0.5, "trim": 2.0, "drop": 0.8}
    stages = [["elect"], ["elect", "trim"], ["elect", "drop"], ["drop"], []]
    plans, rows = {}, {}
    for number, own in enumerate(stages):
        inputs, count = number % 3 + 1, 10**8 * (number + 1)
        work = {"output": count} | dict.fromkeys(own, inputs * count)
        said = Prediction(2 * inputs * count, 2 * count, 0, 0.0, moved=2 * (inputs + 1) * count)
        copied = (0.2 * said.bytes_read + 0.3 * said.bytes_written) * 1e-9
        cpu = copied + sum(true[stage] * entries for stage, entries in work.items()) * 1e-9
        plans[str(number)] = program.Asked(work, said)
        rows[str(number)] = {"cpu": cpu, "rounds": [{"floors": [{"wall": 1.0, "cpu": copied}]}]}
    known = {"bytes": {"read": 0.1, "written": 0.5}, "stages": dict.fromkeys([*true, "other"], 1.0)}
    found = program.fit(rows, plans, known)
    assert found["bytes"] == pytest.approx({"read": 0.2, "written": 0.3}, rel=0.02)
    assert found["stages"] == pytest.approx(true | {"other": 1.0}, rel=0.02)


def test_costs_are_never_negative(program: Any) -> None:
    matrix = np.array([[1.0, 0.0], [1.0, 1.0]])
    found = program.least(matrix, np.array([2.0, 1.0]), np.array([1.0, 1.0]))
    assert found.min() == 0 and found[0] > 1


def test_rounds_of_older_files_have_one_floor_and_one_run(program: Any) -> None:
    old = {"floor": {"wall": 3.0}, "run": {"wall": 4.0}}
    assert program.floors(old)["wall"] == 3.0 and program.run(old)["wall"] == 4.0
    new = {"floors": [{"wall": 2.0}, {"wall": 1.5}], "runs": [{"wall": 2.5}, {"wall": 3.5}]}
    assert program.floors(new)["wall"] == 1.5 and program.run(new)["wall"] == 2.5


def test_what_is_written_is_read_again(program: Any) -> None:
    import tomllib

    costs = {"bytes": {"read": 0.125, "written": 0.25}, "stages": {"output": 1.5, "trim@model": 0.0}}
    text = program.written(costs)
    assert tomllib.loads(text) == costs
    assert text.startswith("# Nanoseconds") and "# For each element and input" in text
