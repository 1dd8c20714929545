"""The cost model against measured points: its rates from one method, its times compared with those of others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cuvee.engine.cluster.cost import ClusterRates, estimate

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "engine-0.5b.json"
METHODS = ("linear", "task_arithmetic", "slerp", "dare_linear", "karcher", "ties", "sce", "della", "pcb")


@pytest.mark.parametrize("method", METHODS)
def test_measured_times_of_a_quiet_machine_are_met_within_three_tenths(method: str) -> None:
    point = json.loads(RESULTS.read_text())["results"][method]["warm"]
    nbytes = 1_000_000_000  # cancels out: both rates are of the same bytes
    floor = min(one["wall"] for each in point["rounds"] for one in each["floors"])  # the one least disturbed
    rates = ClusterRates(nbytes / floor, 1e12, nbytes / point["cpu"])
    assert estimate(nbytes, 1, 2, rates).total == pytest.approx(point["wall"], rel=0.3)


def test_the_slowest_resource_decides_and_workers_stop_helping() -> None:
    rates = ClusterRates(storage=10e9, node=2e9, worker=1e9, start=20)
    small, more, most = (estimate(3_200_000_000_000, n, 8 * n, rates) for n in (1, 4, 50))
    assert (small.limit, most.limit) == ("network", "storage")
    assert small.total == 20 + 1600 and more.total == 20 + 400 and most.total == 20 + 320
