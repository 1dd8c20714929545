"""What the benchmarks make of their rounds: the faster floor, rivals of some, rows of several commits."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numpy")


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The modules of `benchmarks`, which import each other by name."""
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[2] / "benchmarks"), *sys.path])
    for name in ("engine", "figures", "checkpoints", "warm"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import engine
    import figures

    return engine, figures


def seconds(wall: float) -> dict[str, float]:
    return {"wall": wall, "cpu": wall / 2, "rss": 50.0}


def test_a_ratio_is_of_the_faster_run_to_the_faster_floor_of_its_round(programs: Any) -> None:
    engine, _ = programs
    walls = [((1.0, 4.0), (3.5, 9.5)), ((9.0, 2.0), (4.5, 2.5)), ((2.0, 2.0), (4.5, 4.5))]
    rounds = [
        {"floors": list(map(seconds, floors)), "runs": list(map(seconds, runs)), "start": seconds(0.5)}
        for floors, runs in walls
    ]
    rounds[0]["rival"] = seconds(65.0)
    found = engine.summary(rounds)
    assert found["ratio"] == pytest.approx(2.0)  # 3, 1 and 2
    assert found["spread"] == pytest.approx([1.0, 3.0])
    assert found["floor"] == 2.0 and found["floor_cpu"] == 1.0
    assert found["times_faster"] == pytest.approx(10.0)  # beside the mean of 3.5 and 9.5
    assert found["at_most"] == pytest.approx(32.5)  # the floor of all rounds, not the 1.0 of the rival's


def test_without_a_rival_nothing_is_said_of_one(programs: Any) -> None:
    engine, _ = programs
    one = {"floors": [seconds(1.0)] * 2, "runs": [seconds(2.0)] * 2, "start": seconds(1.0)}
    assert engine.summary([one])["times_faster"] is None


def test_cells_of_another_commit_are_named(programs: Any) -> None:
    _, figures = programs
    cells = {
        "a warm": {"commit": "1111"},
        "a cold": {"commit": "1111"},
        "b warm": {"commit": "2222"},
        "c warm": {},
    }
    said = figures.origins(cells)
    assert said.startswith("\nMeasured at commit `1111`, except ")
    assert "of commit `2222`: b warm" in said and "with one floor a round: c warm" in said
    assert figures.origins({"a warm": {"commit": "1111"}}) == "\nMeasured at commit `1111`.\n"


def test_the_number_of_rounds_is_told_with_its_range(programs: Any) -> None:
    _, figures = programs
    assert figures.lengths([[0] * 5, [0] * 5]) == "5 rounds"
    assert figures.lengths([[0], [0] * 5, []]) == "1 to 5 rounds"


@pytest.fixture
def warm(programs: Any) -> Any:
    found = sys.modules["warm"]
    yield found
    found.release()


def locked() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmLck"))) << 10


@pytest.mark.skipif(sys.platform != "linux", reason="tells what is locked from /proc")
def test_warm_files_are_locked_and_no_others(warm: Any, tmp_path: Path) -> None:
    import resource

    if os.geteuid() and resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] < 4 << 20:
        pytest.skip("this user may lock no memory")
    files = [tmp_path / name for name in "abc"]
    for path in files:
        path.write_bytes(bytes(1 << 20))
    (tmp_path / "empty").touch()
    before = locked()
    assert warm.keep([*files[:2], files[0], tmp_path / "empty"])
    assert locked() - before == 2 << 20
    files[1].unlink()
    files[1].write_bytes(bytes(2 << 20))  # another file of this name
    assert warm.keep(files[1:])
    assert locked() - before == 3 << 20
    warm.release()
    assert locked() == before


def test_files_that_cannot_be_locked_are_read_in_all_rounds(
    warm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(1 << 20))
    read: list[Path] = []
    monkeypatch.setattr(warm, "_read", read.append)
    monkeypatch.setattr(warm, "_available", lambda: 1 << 20)
    assert not warm.keep([path])
    monkeypatch.setattr(warm, "_available", lambda: 1 << 40)
    assert not warm.keep([path])
    assert read == [path, path] and capsys.readouterr().err.count("too little memory") == 1
