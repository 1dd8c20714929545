"""Tracks under stress: what is handed out, that scores stay those of the clean track, and that losses are reported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from linear_track import WEIGHT, Track

from cuvee.errors import UsageError
from cuvee.evaluate.addition import add, newcomer_of
from cuvee.evaluate.bench import run
from cuvee.evaluate.cells import Cell, Grid, Store
from cuvee.evaluate.contender import Contender
from cuvee.evaluate.pages import html, markdown
from cuvee.evaluate.paired import pairs, told_apart
from cuvee.evaluate.referee import Referee
from cuvee.evaluate.report import sections
from cuvee.evaluate.scorecard import Scorecard, TaskScore
from cuvee.evaluate.selection import Selection
from cuvee.evaluate.studies.catalogue import study
from cuvee.evaluate.studies.study import on, perform, report
from cuvee.evaluate.task import ACCURACY
from cuvee.evaluate.tracks.registry import open_track
from cuvee.evaluate.tracks.stressed import KINDS, Stressed

NAMES = ["a", "b"]


class Wide(Track):
    """The linear track with a base that is not zero."""

    def __init__(self) -> None:
        super().__init__()
        self.base = {WEIGHT: torch.randn(8, generator=torch.Generator().manual_seed(9))}


def handed(kind: str, seed: int = 0) -> list[torch.Tensor]:
    return [weights[WEIGHT] for weights in Stressed(Wide(), kind, seed).handed(NAMES)]


def opened(name: str, seed: int) -> Any:
    _, plus, kind = name.partition("+")
    track = Wide()
    return Stressed(track, kind, seed) if plus else track


@pytest.mark.parametrize("kind", KINDS)
def test_a_stress_repeats_itself_and_spares_the_tracks_own_experts(kind: str) -> None:
    clean, track = Wide(), Stressed(Wide(), kind)
    first, again = handed(kind), handed(kind)
    assert all(map(torch.equal, first, again))
    assert len(first) == 2 + track.extra
    assert torch.equal(track.expert("a")[WEIGHT], clean.truth["a"])
    assert Referee(track).experts()["a"].tasks["a"].mean == 1.0
    assert (track.name, track.references()) == (f"linear+{kind}", {})
    assert track.digest != Stressed(Wide(), kind, 1).digest != clean.digest


def test_what_each_stress_hands_out() -> None:
    track = Wide()
    base, a, b = track.base[WEIGHT], track.truth["a"], track.truth["b"]
    noise = handed("junk")[2] - base
    assert noise.norm() == pytest.approx(float(((a - base).norm() + (b - base).norm()) / 2), rel=1e-5)
    assert not torch.equal(handed("junk")[2], handed("junk", seed=1)[2])
    assert torch.equal(handed("duplicate")[2], a)
    foreign = handed("stranger")[2] - (a - base)
    assert torch.allclose(foreign.sort().values, base.sort().values, atol=1e-6) and not torch.allclose(
        foreign, base
    )
    broken = handed("damaged")[2]
    assert bool(((broken == a) | torch.isclose(broken, 10 * a.std())).all())
    far = handed("unequal")
    assert torch.allclose(far[0] - base, 3 * (a - base), atol=1e-5) and torch.equal(far[1], b)


def test_a_thousandth_of_the_weights_is_damaged() -> None:
    class Large(Wide):
        def expert(self, task: str) -> dict[str, torch.Tensor]:
            return {WEIGHT: torch.randn(200_000, generator=torch.Generator().manual_seed(3))}

    broken = Stressed(Large(), "damaged").handed(NAMES)[2][WEIGHT]
    assert 0.0008 < float((broken > 9).float().mean()) < 0.0012


def test_methods_get_the_extra_expert_and_scores_stay_those_of_the_tasks() -> None:
    seen: list[int] = []

    def count(room: Selection) -> Any:
        seen.append(len(room.experts))
        return room.base, {}

    card = Referee(Stressed(Wide(), "junk"), isolated=False).judge(count, "count")
    assert seen == [3] and card.held_in() == NAMES
    assert card.spent.bytes_read == 4 * 8 * 4  # base and three experts of eight float32


def test_the_report_says_what_was_lost_on_the_same_items(tmp_path: Path) -> None:
    store = Store(tmp_path)
    methods = (Contender("average"), Contender("task_arithmetic", {"lambda": 1.0}), Contender("slerp"))
    told: list[Any] = []
    for name in ("linear", "linear+junk", "linear+duplicate"):
        assert run(Grid(name, methods, budget=0), opened, store, told.append) == 0
    scored = {d.cell.method for d in told if d.cell.track == "linear+junk" and d.state == "scored"}
    assert "slerp" not in scored  # it takes two alone
    text = markdown("x", sections(store.results()))
    part = text[text.index("## Stress") :]
    cards = {(c.track, c.method): card for c, card in store.results()}
    lost = cards["linear+junk", "average"].mean() - cards["linear", "average"].mean()
    assert cards["linear", "experts"].mean() == 1.0  # so that shares are scores
    junk = part[part.index("| linear+junk, 2 tasks") :]
    row = next(line for line in junk.splitlines() if line.startswith("| average |"))
    assert lost < 0 and f"| {100 * lost:+.2f} (" in row, "a loss is a negative difference, and is called one"
    assert "| difference (95 %), points |" in junk.splitlines()[0]
    assert "| method | clean | junk | duplicate |" in part or "| method | clean | duplicate | junk |" in part
    assert "Published orderings beside ours: linear+junk" not in text
    assert "Under stress: linear" in html("x", sections(store.results()))


def planted(track: str, seed: int, label: str, right: int) -> tuple[Cell, Scorecard]:
    """A cell in which the first `right` of ten items of each task are right."""
    score = TaskScore(ACCURACY, (np.arange(10) < right).astype(float), np.ones(10))
    return Cell(track, f"d{track}", seed, ("a", "b"), label, label), Scorecard(
        label, {"a": score, "b": score}
    )


def test_means_with_and_without_stress_are_over_the_same_places() -> None:
    """Clean scores of a seed that was never stressed stay out of the comparison."""
    results = [planted("t", seed, "experts", 10) for seed in (0, 1)]
    results += [planted("t", 0, "x", 8), planted("t", 1, "x", 2)]
    results += [planted("t+junk", 0, "experts", 10), planted("t+junk", 0, "x", 7)]
    text = markdown("x", sections(results))
    part = text[text.index("## Stress") :]
    assert "| x | 80.0 | 70.0 | -10.00 (" in part
    overview = part.split("| method | clean | junk |")[1].splitlines()
    assert next(line for line in overview if line.startswith("| x |")).split("|")[2:4] == [" 80 ", " 70 "]


def test_a_stress_stands_beside_the_clean_track_of_its_own_protocol() -> None:
    """The clean track alone was run anew: its older cells, not the newer ones, are what the stress is compared with."""
    new = [planted("t", 0, "experts", 10), planted("t", 0, "x", 9)]
    old = [planted("t", 0, "experts", 10), planted("t", 0, "x", 8)]
    old += [planted("t+junk", 0, "experts", 10), planted("t+junk", 0, "x", 7)]
    mixed = [*new, *((replace(cell, protocol=1), card) for cell, card in old)]
    text = markdown("x", sections(mixed))
    part = text[text.index("## Stress") :]
    assert "| t+junk (protocol 1), 2 tasks |" in part and "| x | 80.0 | 70.0 | -10.00 (" in part
    again = told_apart(told_apart(mixed))
    assert {cell.track for cell, _ in again} == {"t", "t (protocol 1)", "t+junk (protocol 1)"}


def test_two_versions_of_a_stress_stand_beside_one_clean_track() -> None:
    results = [planted("t", 0, "experts", 10), planted("t", 0, "x", 8)]
    stressed = [planted("t+junk", 0, "experts", 10), planted("t+junk", 0, "x", 7)]
    results += [*stressed, *((replace(cell, digest="other"), card) for cell, card in stressed)]
    text = markdown("x", sections(results))
    assert text[text.index("## Stress") :].count("| x | 80.0 | 70.0 | -10.00 (") == 2


def test_methods_are_compared_without_the_stress_that_stands_beside(tmp_path: Path) -> None:
    methods = (Contender("average"), Contender("ties", {"density": 0.2}))
    for name in ("linear+junk", "linear"):
        run(Grid(name, methods, budget=0), opened, Store(tmp_path))
    results = Store(tmp_path).results()
    alone = {plus: [r for r in results if ("+" in r[0].track) == plus] for plus in (False, True)}
    found, without, under = (
        pairs(given, "average", "ties(density=0.2)") for given in (results, alone[False], alone[True])
    )
    assert found == without != under


def test_who_joins_a_table_under_stress_is_left_out_where_it_cannot_take_so_many(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for name in ("linear", "linear+junk"):
        run(Grid(name, (Contender("average"),), budget=0), opened, store)
    told: list[Any] = []
    assert add(newcomer_of("slerp"), opened, store, told.append) == 0
    assert [(done.cell.track, done.state) for done in told] == [("linear", "scored")]


def test_without_the_clean_track_nothing_is_compared(tmp_path: Path) -> None:
    run(Grid("linear+junk", (Contender("average"),), budget=0), opened, Store(tmp_path))
    assert "## Stress" not in markdown("x", sections(Store(tmp_path).results()))


def test_the_study_runs_every_stress(tmp_path: Path) -> None:
    asked = on(study("stress"), "linear", 2, 1)
    assert perform(asked, opened, Store(tmp_path)) == 0
    results = Store(tmp_path).results()
    assert {cell.track for cell, _ in results} == {"linear", *(f"linear+{kind}" for kind in KINDS)}
    assert "## Stress" in markdown(asked.title, report(asked, results))


def test_unknown_stresses_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        __import__("cuvee.evaluate.tracks.registry", fromlist=["x"])._OWN,
        "linear",
        ("linear_track", "Plain", {}),
    )
    monkeypatch.setattr("linear_track.Plain", lambda seed: Wide(), raising=False)
    assert open_track("linear+junk", 3).name == "linear+junk"
    with pytest.raises(UsageError, match="no stress `jnuk`") as caught:
        open_track("linear+jnuk")
    assert caught.value.diagnostics[0].code == "CV-U370"
    with pytest.raises(UsageError, match="no track `nosuch`"):
        open_track("nosuch+junk")
