"""Spaces from signatures, searchers under a budget, registered methods as contenders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from linear_track import WEIGHT, Track

from cuvee.errors import UsageError
from cuvee.evaluate.bench import run
from cuvee.evaluate.cells import Grid, Store
from cuvee.evaluate.contender import Contender
from cuvee.evaluate.referee import Referee
from cuvee.evaluate.search import searcher
from cuvee.evaluate.selection import Selection
from cuvee.evaluate.space import Dimension, dimensions, parsed
from cuvee.evaluate.table import boards
from cuvee.methods import registry

SPACE = [Dimension("a", 0.1, 10, log=True), Dimension("b")]


@pytest.mark.parametrize("method", registry.names())
def test_every_method_has_a_space_of_values_it_accepts(method: str) -> None:
    known = registry.parameters_for(registry.get(method))
    for dimension in dimensions(method):
        for share in (0.0, 0.3, 1.0):
            assert known[dimension.name].problem(dimension.at(share)) is None


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("ties", ["lambda", "density"]),
        ("task_arithmetic", ["lambda"]),
        ("average", []),
        ("linear", []),  # its weights are divided out
        ("slerp", ["t"]),
        ("pcb", ["weight", "ratio"]),
    ],
)
def test_the_coefficient_and_the_first_fraction_are_tuned(method: str, names: list[str]) -> None:
    assert [d.name for d in dimensions(method)] == names


def test_given_ranges_are_taken_and_checked() -> None:
    (density,) = dimensions("ties", {"density": [0.1, 0.5]})
    assert (density.low, density.high, density.log) == (0.1, 0.5, False)
    (merge,) = dimensions("ties", {"merge": ["mean", "sum", "max"]})
    assert merge.choices == ("mean", "sum", "max")
    with pytest.raises(UsageError, match="no parameter `densty`"):
        dimensions("ties", {"densty": [0, 1]})
    with pytest.raises(UsageError, match="at most 1"):
        dimensions("ties", {"density": [0.1, 5]})


def test_log_dimensions_are_even_in_the_logarithm() -> None:
    assert SPACE[0].levels(3) == pytest.approx([0.1, 1.0, 10.0])
    assert SPACE[1].levels(3) == pytest.approx([0.0, 0.5, 1.0])


@pytest.mark.parametrize("kind", ["grid", "random", "sobol", "optuna"])
@pytest.mark.parametrize("budget", [1, 5, 16])
def test_searchers_keep_the_budget_and_the_ranges_and_repeat_themselves(kind: Any, budget: int) -> None:
    def points() -> list[Mapping[str, Any]]:
        asking, out = searcher(kind, SPACE, budget, seed=3), []
        while (point := asking.ask()) is not None:
            out.append(point)
            asking.tell(point, -abs(point["a"] - 1))
        return out

    found = points()
    assert 1 <= len(found) <= budget
    assert all(0.099 <= p["a"] <= 10.01 and 0 <= p["b"] <= 1 for p in found)
    assert found == points()


def test_optuna_learns_where_the_others_only_look() -> None:
    asking, values = searcher("optuna", SPACE, 40, seed=0), []
    while (point := asking.ask()) is not None:
        value = -abs(point["a"] - 1) - abs(point["b"] - 0.2)
        values.append(value)
        asking.tell(point, value)
    assert max(values[20:]) > -0.15


def test_a_contender_finds_the_coefficient_and_never_ends_below_its_defaults() -> None:
    referee = Referee(Track(), ["a", "b"], budget=12)
    choice = referee.choose(Contender("task_arithmetic"))
    assert choice.spent.evaluations == 12
    assert choice.spent.merges == 12
    assert max(v for _, v in choice.log) == choice.log[[p for p, _ in choice.log].index(choice.settings)][1]
    expected = sum(referee.track.expert(n)[WEIGHT] for n in "ab") * choice.settings.get("lambda", 1.0)
    torch.testing.assert_close(choice.weights[WEIGHT], expected)


def test_without_a_budget_a_contender_takes_its_defaults_unseen() -> None:
    choice = Referee(Track(), ["a", "b"]).choose(Contender("task_arithmetic", {"lambda": 0.5}), budget=0)
    assert choice.spent.evaluations == 0
    assert choice.settings == {"lambda": 0.5}


def test_methods_without_parameters_are_merged_once() -> None:
    choice = Referee(Track(), ["a", "b"]).choose(Contender("average"))
    assert (choice.spent.merges, choice.spent.evaluations) == (1, 0)


@pytest.mark.parametrize("method", registry.names())
def test_every_parameter_can_be_tuned_over_the_range_of_its_signature(method: str) -> None:
    known = registry.parameters_for(registry.get(method))
    for name, parameter in known.items():
        if parameter.type == "str":
            with pytest.raises(UsageError, match="values that are named"):
                dimensions(method, {name: None})
            continue
        (dimension,) = dimensions(method, {name: None})
        found = [dimension.at(share) for share in (0.0, 0.2, 0.5, 1.0)]
        assert [parameter.problem(value) for value in found] == [None] * 4, (name, found)
        assert len({repr(value) for value in found}) > 1, (name, found)


@pytest.mark.parametrize("ends", [(2.0, 1.0), (1.0, 1.0)])
def test_an_interval_without_values_is_refused(ends: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match="`lambda` from") as caught:
        dimensions("ties", {"lambda": ends})
    assert caught.value.diagnostics[0].code == "CV-U372"


def test_an_interval_that_no_number_spans_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        dimensions("ties", {"lambda": (-1e308, 1e308)})
    assert caught.value.diagnostics[0].code == "CV-U372"


def test_the_ends_of_a_log_range_are_its_ends() -> None:
    """exp(log x) may be a little above x, and a value above the range of a signature is refused by the method."""
    for high in (0.7000000001, 0.9, 1.1, 3.0, 7.7, 100.3):
        dimension = Dimension("a", high / 10.0, high, log=True)
        assert dimension.low <= min(dimension.levels(9)) and max(dimension.levels(9)) <= high


def test_ranges_that_are_named_alone_hold_the_default() -> None:
    assert dimensions("slerp", {"t": None}) == dimensions("slerp") == [Dimension("t", 0.0, 1.0)]
    (kappa,) = dimensions("mergelock", {"kappa": None})  # from 1 to 10,000, by default 10
    assert kappa.low <= 10 <= kappa.high and kappa.log


def test_a_grid_of_too_many_choices_is_spread_over_all_of_them() -> None:
    lists = [Dimension("a", choices=("x", "y", "z")), Dimension("b", choices=(1, 2, 3, 4))]
    asking = searcher("grid", lists, 4)
    points = [point for _ in range(4) if (point := asking.ask()) is not None]
    assert asking.ask() is None and len(points) == 4
    assert {p["a"] for p in points} == {"x", "y", "z"} and len({p["b"] for p in points}) > 1
    assert searcher("grid", lists, 1).ask() == {"a": "x", "b": 1} and searcher("grid", lists, 0).ask() is None


def test_ranges_are_read_from_the_command_line() -> None:
    assert parsed("density") == ("density", None)
    assert parsed("density=0.1:1") == ("density", [0.1, 1])
    assert parsed("merge=mean,sum") == ("merge", ["mean", "sum"])
    assert parsed("normalize=true,false") == ("normalize", [True, False])
    for wrong in ("density=", "density=1", "density=1:2:3", "density=1,", "density=0.1,0.9"):
        with pytest.raises(UsageError) as caught:
            parsed(wrong)
        assert caught.value.diagnostics[0].code == "CV-U372"


def test_ways_of_tuning_are_told_apart_in_tables(tmp_path: Path) -> None:
    ways: tuple[Mapping[str, Any], ...] = (
        {},
        {"search": "random"},
        {"space": {"density": None}},
        {"space": {"lambda": [0.5, 2.0]}},
    )
    methods = tuple(Contender("ties", **way) for way in ways)
    assert run(Grid("linear", methods, budget=2, untuned=True), lambda n, s: Track(), Store(tmp_path)) == 0
    labels = sorted(row.label for row in boards(Store(tmp_path).results())[0].rows)
    assert labels == sorted(
        [
            "ties (untuned)",
            "ties (budget 2, sobol)",
            "ties (budget 2, random)",
            'ties (budget 2, sobol over {"density":null})',
            'ties (budget 2, sobol over {"lambda":[0.5,2.0]})',
        ]
    )


def test_what_has_nothing_to_tune_is_scored_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[str] = []
    judge = Referee.judge

    def counted(self: Referee, method: Any, name: str, **more: Any) -> Any:
        judged.append(name)
        return judge(self, method, name, **more)

    monkeypatch.setattr(Referee, "judge", counted)
    methods = (Contender("average"), Contender("task_arithmetic", {"lambda": 0.3}), Contender("ties"))
    grid = Grid("linear", methods, counts=(2, 1), budget=2, untuned=True)
    assert run(grid, lambda n, s: Track(), Store(tmp_path)) == 0
    sets = len(list(grid.sets(("a", "b"), 0)))
    assert sorted(judged) == sorted(["average", "task_arithmetic(lambda=0.3)", "ties", "ties"] * sets)
    found = [cell for cell, _ in Store(tmp_path).results() if cell.method == "average"]
    assert sorted(cell.budget for cell in found) == sorted([0, 2] * sets)


def test_the_command_tunes_what_is_named(tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cuvee.evaluate.tracks.registry.open_track", lambda n, s: Track())
    asked = ["bench", "run", "linear", "-m", "ties", "-m", "average", "--budget", "3", "--no-untuned"]
    done = cli(*asked, "--tune", "density=0.2:0.4", "--search", "grid", "-o", str(tmp_path), "-q")
    assert done.code == 0
    card = next(card for cell, card in Store(tmp_path).results() if cell.method == "ties")
    assert {point["density"] for point, _ in card.log[1:]} == {0.2, 0.4}
    wrong = cli(*asked, "--tune", "densty", "-o", str(tmp_path), "-q")
    assert "CV-U030" in wrong.err and "densty" in wrong.err
    assert "at most 1" in cli(*asked, "--tune", "density=0.2:4", "-o", str(tmp_path), "-q").err
    twice = cli(*asked, "--tune", "density=0.2:0.4", "--tune", "density", "-o", str(tmp_path), "-q")
    assert (twice.code, "names `density` twice" in twice.err) == (2, True)


@pytest.mark.parametrize("method", ["dare_linear", "ties"])
def test_the_seed_is_that_of_random_masks_too(method: str) -> None:
    room = Selection(Track(), ["a", "b"], Track().examinee(), 0)
    found = [Contender(method, {"density": 0.5}, seed=seed)(room)[0][WEIGHT] for seed in (0, 0, 1)]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2]) == (method == "ties")


def test_values_that_overflow_lose_and_the_best_so_far_stands() -> None:
    contender = Contender("task_arithmetic", space={"lambda": (1e37, 1e39)}, search="grid")
    choice = Referee(Track(), budget=4).choose(contender)
    assert len(choice.log) == choice.spent.evaluations < 4
    assert all(settings.get("lambda", 0) < 1e39 for settings, _ in choice.log)
    assert torch.isfinite(choice.weights[WEIGHT]).all()
