"""A method's own process: what comes back from it, what ends with it, and where there can be none."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from linear_track import WEIGHT, Track

from cuvee.errors import Diagnostic, EvaluationError, LeakError, RecipeError, Where
from cuvee.evaluate.referee import Referee
from cuvee.evaluate.selection import Selection


def test_a_choice_comes_back_whole_and_is_that_of_this_process() -> None:
    def tuned(room: Selection) -> tuple[Any, dict[str, Any]]:
        for scale in (0.5, -1.0):
            room.evaluate({WEIGHT: room.experts[0][WEIGHT] * scale}, {"scale": scale, "of": ("a", 1)})
        return {WEIGHT: (room.experts[1][WEIGHT] / 3).bfloat16()}, {"scale": 1 / 3}

    here, there = (Referee(Track(), budget=3, isolated=i).choose(tuned) for i in (False, True))
    assert there.weights[WEIGHT].dtype == torch.bfloat16
    assert torch.equal(here.weights[WEIGHT], there.weights[WEIGHT])
    assert (there.settings, [value for _, value in there.log]) == (
        here.settings,
        [value for _, value in here.log],
    )
    assert (there.spent.evaluations, there.spent.examples) == (2, 160) and there.spent.peak_bytes > 0


def test_gradients_can_be_taken_in_a_process_of_its_own() -> None:
    def learned(room: Selection) -> tuple[Any, dict[str, Any]]:
        weight = torch.zeros(8, requires_grad=True)
        (weight - room.experts[0][WEIGHT]).square().sum().backward()
        assert weight.grad is not None
        return {WEIGHT: -weight.grad}, {}

    assert Referee(Track()).choose(learned).weights[WEIGHT].norm() > 0


@pytest.fixture
def limited() -> Iterator[None]:
    """TimeoutError after ten seconds: what is tested here used to wait forever."""

    def late(number: int, frame: Any) -> None:
        raise TimeoutError

    before, threads = signal.signal(signal.SIGALRM, late), torch.get_num_threads()
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    torch.set_num_threads(threads)


def test_what_a_method_leaves_running_is_not_waited_for(limited: None) -> None:
    def lingering(room: Selection) -> tuple[Any, dict[str, Any]]:
        threading.Thread(target=threading.Event().wait).start()
        multiprocessing.get_context("fork").Process(target=time.sleep, args=(15,)).start()
        return room.experts[0], {"left": 2}

    assert Referee(Track()).choose(lingering).settings == {"left": 2}


def test_a_method_that_asks_for_threads_computes_with_one(limited: None) -> None:
    def eager(room: Selection) -> tuple[Any, dict[str, Any]]:
        torch.set_num_threads(2)
        return {WEIGHT: (torch.eye(600) @ torch.ones(600, 600)).sum(0)[:8]}, {"with": torch.get_num_threads()}

    torch.set_num_threads(2)
    _ = torch.ones(600, 600) @ torch.ones(600, 600)  # so that there is a pool for the fork to break
    choice = Referee(Track()).choose(eager)
    assert choice.settings == {"with": 1} and choice.weights[WEIGHT].tolist() == [600.0] * 8


def test_an_interrupted_choice_leaves_no_process_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = multiprocessing.get_context("fork").Process
    joined, calls = kind.join, []

    def interrupted(self: Any, timeout: float | None = None) -> None:
        calls.append(self.pid)
        if len(calls) == 1:
            raise KeyboardInterrupt
        joined(self, timeout)

    monkeypatch.setattr(kind, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Referee(Track()).choose(lambda room: (time.sleep(20), {}))
    left = multiprocessing.active_children()
    for process in left:
        process.kill()
    assert calls and left == []


def test_processes_that_a_method_leaves_are_ended(tmp_path: Path) -> None:
    def leaving(room: Selection) -> Any:
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,))
        child.start()
        return room.base, {"left": child.pid}

    def runs(state: Path) -> bool:
        return state.exists() and state.read_text().split()[2] != "Z"

    left = Path(f"/proc/{Referee(Track()).choose(leaving).settings['left']}/stat")
    end = time.monotonic() + 4
    while runs(left) and time.monotonic() < end:
        time.sleep(0.02)
    assert not runs(left)


def test_a_process_that_hides_in_a_session_of_its_own_is_ended(tmp_path: Path) -> None:
    """It would outlive the method, and find the folders in which the choices of others are handed over."""
    mark = tmp_path / "alive"

    def leaving(room: Selection) -> Any:
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(2)
                mark.write_text("here")
            os._exit(0)
        return room.base, {}

    Referee(Track()).choose(leaving)
    time.sleep(3)
    assert not mark.exists()


def test_processes_of_others_are_left_alone() -> None:
    """What another thread starts meanwhile is no method's, be it in a session of its own or a daemon."""
    started: list[subprocess.Popen[bytes]] = []
    daemon = "import os, time\nif os.fork(): os._exit(0)\nos.setsid()\nprint(os.getpid(), flush=True)\ntime.sleep(30)"

    def start() -> None:
        started.append(subprocess.Popen(["sleep", "30"], start_new_session=True))
        started.append(subprocess.Popen([sys.executable, "-c", daemon], stdout=subprocess.PIPE))
        started[1].wait()

    other = threading.Timer(0.2, start)
    other.start()
    Referee(Track()).choose(lambda room: (time.sleep(1.5), (room.base, {}))[1])
    other.join()
    assert started[1].stdout is not None
    with started[1].stdout as said:
        left = int(said.readline())
    try:
        assert started[0].poll() is None
        os.kill(left, 0)
        assert Path(f"/proc/{left}/stat").read_text().split()[2] != "Z"
    finally:
        started[0].kill()
        started[0].wait()
        with suppress(ProcessLookupError):
            os.kill(left, signal.SIGKILL)


def test_an_interrupted_choice_leaves_nothing_that_hid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark, begun = tmp_path / "alive", tmp_path / "begun"

    def hiding(room: Selection) -> Any:
        if os.fork() == 0:
            os.setsid()
            begun.write_text("here")
            time.sleep(2)
            mark.write_text("here")
            os._exit(0)
        time.sleep(20)

    kind = multiprocessing.get_context("fork").Process
    joined, calls = kind.join, []

    def interrupted(self: Any, timeout: float | None = None) -> None:
        calls.append(self.pid)
        if len(calls) == 1:
            while not begun.exists():
                time.sleep(0.02)
            raise KeyboardInterrupt
        joined(self, timeout)

    monkeypatch.setattr(kind, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Referee(Track()).choose(hiding)
    assert multiprocessing.active_children() == []
    time.sleep(2.5)
    assert not mark.exists()


def test_a_process_that_is_killed_says_by_what() -> None:
    with pytest.raises(EvaluationError, match="ended with -9"):
        Referee(Track()).choose(lambda room: os.kill(os.getpid(), signal.SIGKILL))  # type: ignore[arg-type,return-value]


def test_what_a_method_prints_is_no_part_of_the_commands_output(capfd: pytest.CaptureFixture[str]) -> None:
    def loud(room: Selection) -> Any:
        sys.stdout.write("rubbish")
        os.write(1, b"more rubbish")
        return room.base, {}

    Referee(Track()).choose(loud)
    out, err = capfd.readouterr()
    assert out == "" and "more rubbish" in err


def test_failures_are_told_with_their_words() -> None:
    def broken(room: Selection) -> Any:
        return {}["weight"]

    def gone(room: Selection) -> Any:
        os._exit(7)

    with pytest.raises(EvaluationError, match="the method failed: KeyError: 'weight'"):
        Referee(Track()).choose(broken)
    with pytest.raises(EvaluationError, match="process ended with 7") as caught:
        Referee(Track()).choose(gone)
    assert caught.value.diagnostics[0].code == "CV-B371"


def test_all_that_a_method_was_told_comes_back_with_its_places() -> None:
    def mistaken(room: Selection) -> Any:
        raise RecipeError.collected(
            [
                Diagnostic("CV-R001", "the first mistake", Where(file="a.yaml", line=3), "mend it"),
                Diagnostic("CV-R002", "the second mistake", severity="warning"),
            ]
        )

    with pytest.raises(RecipeError) as caught:
        Referee(Track()).choose(mistaken)
    assert caught.value.diagnostics == (
        Diagnostic("CV-R001", "the first mistake", Where(file="a.yaml", line=3), "mend it"),
        Diagnostic("CV-R002", "the second mistake", severity="warning"),
    )


@pytest.mark.parametrize("reason", ["the system has no fork", "an accelerator is in use"])
def test_where_no_process_can_be_forked_it_is_said(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "fork" in reason.split():
        monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    else:
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)

    def plain(room: Selection) -> Any:
        return room.base, {"process": os.getpid()}

    with pytest.raises(EvaluationError, match=reason) as caught:
        Referee(Track(), isolated=True).choose(plain)
    assert caught.value.diagnostics[0].code == "CV-B395" and caught.value.diagnostics[0].hint
    assert Referee(Track()).choose(plain).settings == {"process": os.getpid()}


def test_an_error_of_the_kind_of_leaks_stays_one() -> None:
    with pytest.raises(LeakError):
        Referee(Track()).choose(lambda room: (list(room.tasks[0].test), {}))
