"""The published checks of tracks, on tracks that keep them and on some that break one each."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cuvee.evaluate.tracks.stressed import Stressed
from cuvee.testing import track_contract as contract
from cuvee.testing.track_contract import TRACK_CHECKS

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "unit" / "evaluate"), str(ROOT / "tests" / "docs")]

from doc_snippets import blocks  # noqa: E402
from linear_track import WEIGHT, Linear, Track  # noqa: E402


@pytest.fixture(scope="module")
def guides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The track of the guide, made once: its experts are trained."""
    page = ROOT / "docs" / "guides" / "add-a-track.md"
    code = next(b.code for b in blocks(page) if b.file == "my_bench/track.py")
    place = tmp_path_factory.mktemp("guide") / "guides_track.py"
    place.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("guides_track", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # steps this small are slower with two
    yield module.NamesTrack()
    torch.set_num_threads(threads)


@pytest.mark.parametrize("check", TRACK_CHECKS, ids=lambda check: check.__name__)
def test_the_smallest_track_keeps_them(check: Callable[..., None]) -> None:
    check(Track)
    check(lambda: Stressed(Track(), "junk"))


@pytest.mark.parametrize("check", TRACK_CHECKS, ids=lambda check: check.__name__)
def test_the_guides_track_keeps_them(check: Callable[..., None], guides: Any) -> None:
    check(lambda: guides)


class NoSelection(Track):
    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self.tasks["a"], "selection", ())


class Restless(Track):
    count = 0

    def __init__(self) -> None:
        super().__init__()
        Restless.count += 1
        self.digest = str(Restless.count)


class Larger(Track):
    def expert(self, task: str) -> Any:
        return {**super().expert(task), "more": torch.ones(1)}


class Lazy(Track):
    def expert(self, task: str) -> Any:
        return self.base


class Answering(Track):
    def __init__(self, answer: Callable[..., Any]) -> None:
        super().__init__()
        self._answer = answer

    def examinee(self) -> Any:
        made = Linear()
        given = made.answer
        made.answer = lambda task, asked, ledger: self._answer(made, given, task, asked, ledger)  # type: ignore
        return made


class Deaf(Track):
    def examinee(self) -> Any:
        made = Linear()
        made.load = lambda weights: None  # type: ignore[method-assign]
        return made


def in_order(made: Any, given: Any, task: Any, asked: Any, ledger: Any) -> Any:
    given(task, asked, ledger)
    return np.arange(len(asked)) % 2 * 1.0


def uncounted(made: Any, given: Any, task: Any, asked: Any, ledger: Any) -> Any:
    before = ledger.examples
    found = given(task, asked, ledger)
    ledger.examples = before
    return found


def short(made: Any, given: Any, task: Any, asked: Any, ledger: Any) -> Any:
    return given(task, asked, ledger)[1:]


@pytest.mark.parametrize(
    ("check", "broken", "said"),
    [
        (contract.tasks_are_told_apart, NoSelection, "no selection items"),
        (contract.it_is_the_same_every_time, Restless, "digest is"),
        (contract.models_have_the_tensors_of_the_base, Larger, "other tensors"),
        (contract.models_have_the_tensors_of_the_base, Lazy, "is the base"),
        (contract.answers_are_numbers_for_items, lambda: Answering(in_order), "depend on their order"),
        (contract.answers_are_numbers_for_items, lambda: Answering(uncounted), "not counted"),
        (contract.answers_are_numbers_for_items, lambda: Answering(short), "39,"),
        (contract.loaded_weights_are_the_ones_that_answer, Deaf, "as the base does"),
        (contract.experts_are_better_on_their_own_task, Deaf, "scores"),
    ],
)
def test_a_broken_promise_is_found(check: Callable[..., None], broken: Callable[[], Any], said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        check(broken)


def test_confidence_that_contradicts_the_answers_is_found() -> None:
    from cuvee.evaluate.track import Answers

    class Boastful(Track):
        def examinee(self) -> Any:
            made = Linear()
            made.classify = lambda task, asked, ledger: Answers(np.ones(len(asked)), np.ones(len(asked)))  # type: ignore
            return made

        def expert(self, task: str) -> Any:
            return {WEIGHT: -self.truth[task]}

    with pytest.raises(AssertionError, match="disagree"):
        contract.confidence_belongs_to_the_answers(Boastful)
