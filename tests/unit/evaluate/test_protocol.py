"""The referee on a track of linear models: what a method may see, what is counted, what is scored."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from linear_track import HERE, WEIGHT, Linear, Track

from cuvee.errors import EvaluationError, LeakError
from cuvee.evaluate import phases
from cuvee.evaluate.ledger import Ledger
from cuvee.evaluate.referee import Referee
from cuvee.evaluate.scorecard import Scorecard
from cuvee.evaluate.selection import Selection
from cuvee.evaluate.task import ACCURACY, BITS_PER_BYTE, Item, Task


def mean(room: Selection) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    merged = {WEIGHT: sum(e[WEIGHT] for e in room.experts) / len(room.experts)}
    room.evaluate(merged, {"scale": 1})
    return merged, {"scale": 1}


def test_an_expert_is_perfect_on_its_own_task_and_not_on_others() -> None:
    cards = Referee(Track()).experts()
    assert cards["a"].tasks["a"].mean == 1.0
    assert 0.2 < cards["a"].tasks["b"].mean < 0.9


def test_a_merge_is_scored_on_all_tasks_with_what_it_spent() -> None:
    card = Referee(Track()).judge(mean, "average")
    assert set(card.tasks) == {"a", "b", "c"}
    assert card.held_in() == ["a", "b"]
    assert card.spent.evaluations == 1
    assert card.spent.bytes_read == 2 * 8 * 4  # the two experts it asked for
    assert card.spent.examples == 80  # selection items alone; scoring is not the method's cost
    own = {"a": 1.0, "b": 1.0}
    assert card.normalised(own) == pytest.approx(card.mean())
    assert card.worst()[1] == min(card.tasks[n].mean for n in "ab")


@pytest.mark.parametrize(
    "peek",
    [
        lambda room: list(room.tasks[0].test),
        lambda room: room.tasks[0].test[0],
        lambda room: room.track.tasks["c"].test[3:],
        lambda room: Referee(room.track).score(room.base, "peek"),
        lambda room: room.tasks[0].test._opened(),
    ],
)
def test_a_method_that_looks_at_test_items_is_stopped(peek: Any) -> None:
    def cheat(room: Selection) -> tuple[Any, dict[str, Any]]:
        peek(room)
        return room.base, {}

    with pytest.raises(LeakError):
        Referee(Track()).choose(cheat)
    assert phases.current() == "closed"


def test_a_thread_of_a_method_is_stopped_too() -> None:
    caught: list[BaseException] = []

    def cheat(room: Selection) -> tuple[Any, dict[str, Any]]:
        def look() -> None:
            try:
                with phases.scoring():
                    list(room.tasks[0].test)
            except LeakError as error:
                caught.append(error)

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        return room.base, {}

    # the whole choice fails, though the thread kept the error to itself
    with pytest.raises(LeakError, match="CV-B002"):
        Referee(Track(), isolated=False).choose(cheat)
    assert len(caught) == 1


def test_a_method_that_lifts_its_own_budget_is_refused() -> None:
    def greedy(room: Selection) -> tuple[Any, dict[str, Any]]:
        room.budget = 100
        for _ in range(3):
            room.evaluate(room.base)
        room.ledger.evaluations = 0
        return room.base, {}

    with pytest.raises(EvaluationError, match="took 3 evaluations, its budget is 2"):
        Referee(Track(), budget=2).choose(greedy)


def test_the_live_model_is_not_handed_out() -> None:
    found: list[str] = []

    def curious(room: Selection) -> tuple[Any, dict[str, Any]]:
        found.extend(n for n in dir(room) if not n.startswith("_") and isinstance(getattr(room, n), Linear))
        return room.base, {}

    Referee(Track(), isolated=False).choose(curious)
    assert phases.current() == "closed"
    assert found == []


def test_sealed_items_are_no_attribute() -> None:
    sealed = Track().tasks["a"].test
    held = [getattr(sealed, name) for name in type(sealed).__slots__]
    assert not any(isinstance(value, (list, tuple)) for value in held) and not hasattr(sealed, "__dict__")


def test_a_thread_that_outlives_its_method_reads_nothing_while_the_referee_scores() -> None:
    task, caught = Track().tasks["a"], []

    def look() -> None:
        try:
            list(task.test)
        except LeakError as error:
            caught.append(str(error))

    with phases.scoring():
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert len(list(task.test)) == 200
    assert len(caught) == 1 and "another thread" in caught[0]


def test_weights_that_look_when_they_are_scored_are_read_before() -> None:
    seen: list[str] = []

    class Lazy(dict[str, torch.Tensor]):
        def items(self) -> Any:
            seen.append(phases.current())
            return super().items()

        def __getitem__(self, name: str) -> torch.Tensor:
            seen.append(phases.current())
            return super().__getitem__(name)

    kept = torch.ones(8)

    def lazy(room: Selection) -> tuple[Any, dict[str, Any]]:
        return Lazy({WEIGHT: kept}), {}

    referee = Referee(Track(), isolated=False)
    choice = referee.choose(lazy)
    kept.zero_()
    card = referee.score(choice, "lazy")
    assert "selecting" in seen and "scoring" not in seen
    assert card.mean() == referee.score({WEIGHT: torch.ones(8)}, "ones").mean()


def test_tensors_that_are_left_out_are_the_bases_not_the_last_models() -> None:
    class Patient(Linear):
        def load(self, weights: Any) -> None:
            self.weight = weights.get(WEIGHT, self.weight)

    track = Track()
    referee = Referee(track, examinee=Patient(), isolated=False)
    base = referee.score(track.base, "base").mean()
    assert referee.score(track.expert("a"), "expert").mean() > base
    assert referee.judge(lambda room: ({}, {}), "nothing").mean() == base
    found: list[float] = []

    def empty(room: Selection) -> tuple[Any, dict[str, Any]]:
        found.extend([room.evaluate(room.experts[0]), room.evaluate({}), room.evaluate(room.base)])
        return {}, {}

    referee.choose(empty)
    assert found[0] > found[1] == found[2]


def test_what_is_no_tensor_is_refused() -> None:
    with pytest.raises(EvaluationError, match="`weight` as ndarray"):
        Referee(Track()).choose(lambda room: ({WEIGHT: np.ones(8)}, {}))


@pytest.mark.parametrize("budget", [0, 1, 4])
def test_a_method_that_lets_the_budget_end_it_keeps_its_best(budget: int) -> None:
    scales = [0.5, -1.0, 1.0, 2.0, -3.0]

    def careless(room: Selection) -> tuple[Any, dict[str, Any]]:
        for scale in scales:
            room.evaluate({WEIGHT: room.experts[0][WEIGHT] * scale + 0.1}, {"scale": scale})
        raise AssertionError("the budget did not end it")

    choice = Referee(Track(), budget=budget).choose(careless)
    assert (choice.spent.evaluations, len(choice.log)) == (budget, budget)
    best = max(choice.log, key=lambda entry: entry[1])[0] if budget else {"scale": scales[0]}
    assert choice.settings == best


def test_test_items_are_sealed_outside_of_everything() -> None:
    task = Track().tasks["a"]
    assert len(task.test) == 200
    with pytest.raises(LeakError, match="outside of scoring"):
        next(iter(task.test))


def test_the_budget_ends_the_evaluations_and_keeps_the_choice() -> None:
    def greedy(room: Selection) -> tuple[Any, dict[str, Any]]:
        from cuvee.evaluate.selection import BudgetSpent

        best, value = room.base, -1.0
        for scale in np.linspace(0, 1, 50):
            candidate = {WEIGHT: sum(e[WEIGHT] for e in room.experts) * float(scale)}
            try:
                score = room.evaluate(candidate, {"scale": scale})
            except BudgetSpent:
                break
            if score > value:
                best, value = candidate, score
        return best, {}

    choice = Referee(Track(), budget=7).choose(greedy)
    assert choice.spent.evaluations == 7
    assert len(choice.log) == 7


def test_lower_is_better_turns_round_everywhere() -> None:
    track = Track(BITS_PER_BYTE)
    card = Referee(track).judge(mean, "average")
    own = {"a": 0.5, "b": 0.5}
    assert card.ratios(own)["a"] == pytest.approx(0.5 / card.tasks["a"].mean)
    assert card.worst()[1] == max(card.tasks[n].mean for n in "ab")


def test_scorecards_survive_json() -> None:
    card = Referee(Track()).judge(mean, "average")
    again = Scorecard.from_json(card.as_json())
    assert again.mean() == card.mean()
    assert (again.tasks["a"].scores == card.tasks["a"].scores).all()
    assert again.spent == card.spent


def test_parts_that_share_an_input_are_refused() -> None:
    shared = Item("the same text", 1)
    parts = {"train": [Item("x", 0)], "selection": [shared], "test": [Item("the  same text", 0)]}
    with pytest.raises(EvaluationError, match="same input in `selection` and `test`"):
        Task.of("t", **parts, metric=ACCURACY, head="none", provenance=HERE)


def test_groups_on_both_sides_are_refused() -> None:
    parts = {"train": [Item("x", 0, "page 1")], "selection": [], "test": [Item("y", 0, "page 1")]}
    with pytest.raises(EvaluationError, match="1 groups both"):
        Task.of("t", **parts, metric=ACCURACY, head="none", provenance=HERE)


def test_a_model_that_answers_nan_is_an_error() -> None:
    class Broken(Linear):
        def answer(self, task: Task, asked: Sequence[Item], ledger: Ledger) -> Any:
            return np.full(len(asked), np.nan)

    track = Track()
    track.examinee = Broken  # type: ignore[method-assign]
    with pytest.raises(EvaluationError, match="NaN or infinity"):
        Referee(track).score(track.base, "base")


def test_unknown_tasks_are_named() -> None:
    with pytest.raises(EvaluationError, match="no expert for `c`, `z`"):
        Referee(Track(), ["a", "z", "c"])


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="peaks cannot be forgotten here")
def test_the_peak_of_memory_is_that_of_the_block() -> None:
    large = np.ones(40_000_000)  # 320 MB that somebody else took
    del large
    first, second = Ledger(), Ledger()
    with first.spending():
        pass
    with second.spending():
        np.ones(25_000_000)
    assert second.peak_bytes - first.peak_bytes > 150_000_000
