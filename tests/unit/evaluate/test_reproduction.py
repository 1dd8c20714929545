"""A leaderboard made again: from nothing, in any order, after an interruption, by two machines, with other seeds."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from linear_track import WEIGHT, Track

from cuvee.evaluate.addition import add, newcomer_of
from cuvee.evaluate.bench import run
from cuvee.evaluate.cells import Grid, Store
from cuvee.evaluate.contender import Contender
from cuvee.evaluate.report import report

METHODS = (Contender("task_arithmetic"), Contender("dare_ties"), Contender("average"), Contender("ties"))


class Seeded(Track):
    """The linear track with experts that differ by seed."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.digest = f"seed {seed}"
        draw = torch.Generator().manual_seed(seed)
        self.noise = {name: torch.randn(8, generator=draw) / 3 for name in "ab"}

    def expert(self, task: str) -> dict[str, torch.Tensor]:
        return {WEIGHT: self.truth[task] + self.noise[task]}


def opened(name: str, seed: int) -> Any:
    return Seeded(seed)


def grid(methods: tuple[Contender, ...] = METHODS, seeds: tuple[int, ...] = (0, 1)) -> Grid:
    return Grid("linear", methods, counts=(2, 1), seeds=seeds, budget=3, subsets=1, untuned=True)


def table(store: Store) -> str:
    """The report without the cost of a machine: seconds and memory."""
    text = report(store.folder).markdown()
    assert "dare_ties (budget 3)" in text and "Growth" in text and "What tuning buys" in text
    return re.sub(r" [\d.,−e]+ \| [\d.]+ [kMGT]?B \|$", "", text, flags=re.M)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("first"))
    assert run(grid(), opened, store) == 0
    return store


def test_the_same_seeds_give_the_same_table_from_nothing(first: Store, tmp_path: Path) -> None:
    run(grid(), opened, Store(tmp_path))
    assert table(Store(tmp_path)) == table(first)
    assert len(table(first)) < len(report(first.folder).markdown())


def test_other_seeds_give_another_table_of_the_same_methods(first: Store, tmp_path: Path) -> None:
    run(grid(seeds=(2, 3)), opened, Store(tmp_path))
    other = table(Store(tmp_path))
    assert other != table(first) and "(seeds 2, 3)" in other
    methods = [{cell.label for cell, _ in store.results()} for store in (first, Store(tmp_path))]
    assert methods[0] == methods[1]


def test_the_order_of_cells_and_the_machine_that_made_them_do_not_matter(
    first: Store, tmp_path: Path
) -> None:
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    run(grid(METHODS[::-1][:2], seeds=(1, 0)), opened, one)
    run(grid(METHODS[:2]), opened, two)
    for path in sorted((two.folder / "cells").iterdir(), reverse=True):
        shutil.copy(path, one.folder / "cells" / path.name)
    assert table(one) == table(first)


def test_an_interrupted_grid_ends_in_the_same_table(first: Store, tmp_path: Path) -> None:
    class Stop(BaseException):
        pass

    def stop(done: Any) -> None:
        if done.number == 9:
            raise Stop

    with pytest.raises(Stop):
        run(grid(), opened, Store(tmp_path), stop)
    kept = {path.name: path.read_bytes() for path in (tmp_path / "cells").iterdir()}
    assert 0 < len(kept) < len(list((first.folder / "cells").iterdir()))
    told: list[Any] = []
    run(grid(), opened, Store(tmp_path), told.append)
    assert sum(done.state == "kept" for done in told) == len(kept)
    assert all((tmp_path / "cells" / name).read_bytes() == data for name, data in kept.items())
    assert table(Store(tmp_path)) == table(first)


def test_an_added_method_ends_in_the_table_of_a_full_run(first: Store, tmp_path: Path) -> None:
    run(grid(METHODS[:1] + METHODS[2:]), opened, Store(tmp_path))
    assert add(newcomer_of("dare_ties"), opened, Store(tmp_path)) == 0
    assert table(Store(tmp_path)) == table(first)
