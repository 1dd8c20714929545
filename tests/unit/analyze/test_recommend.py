"""Recommendations: rules and standings joined, stops without methods, and the command that prints them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file

from cuvee.analyze.advice import Advice
from cuvee.analyze.recommend import FITTING, Standing, recommend

KNOWN = ("average", "ties", "tsv_m", "wudi", "slerp")
FIRST = Standing("table one", ("wudi", "tsv_m", "ties", "average"))
SECOND = Standing("table two", ("tsv_m", "average", "unknown"))


def test_standings_are_means_of_places_and_every_line_has_its_reason() -> None:
    found = recommend([], [FIRST, SECOND], KNOWN)
    assert found.merge and [one.method for one in found.recommended] == ["wudi", "tsv_m", "ties", "average"]
    assert [one.standing for one in found.recommended] == pytest.approx([1, (2 / 3 + 1) / 2, 1 / 3, 0.25])
    assert found.recommended[1].reasons == ("place 2 of 4 in table one", "place 1 of 3 in table two")


def test_rules_lift_what_they_suggest_and_remove_what_they_warn_of() -> None:
    rules = [
        Advice("low", "suggest", "t", "because", ("slerp", "average")),
        Advice("unequal", "warn", "weigh", "norms", avoid=("wudi",)),
    ]
    found = recommend(rules, [FIRST, SECOND], KNOWN)
    standing = {one.method: one.standing for one in found.recommended}
    assert standing["average"] == pytest.approx(0.25 + FITTING) and standing["slerp"] == pytest.approx(
        0.5 + FITTING
    )
    assert "wudi" not in standing and found.avoided == {"wudi": "norms"}
    assert found.reasons == ("weigh: norms",)


def test_the_forecast_is_a_reason_but_lifts_nothing() -> None:
    rule = Advice("low_opposition", "suggest", "t", "because", ("slerp", "average"))
    found = {one.method: one for one in recommend([rule], [FIRST, SECOND], KNOWN).recommended}
    assert found["average"].standing == pytest.approx(0.25)
    assert found["average"].reasons[0] == "low_opposition: because" and "slerp" not in found


def test_where_a_rule_says_stop_nothing_is_recommended() -> None:
    found = recommend([Advice("no_common_base", "stop", "do not merge `x`", "cosine 0.1")], [FIRST], KNOWN)
    assert (found.merge, found.recommended, found.reasons) == (False, (), ("do not merge `x`: cosine 0.1",))


def folder(place: Path, weights: torch.Tensor) -> str:
    place.mkdir()
    save_file({"layers.0.w": weights}, place / "model.safetensors")
    (place / "config.json").write_text("{}")
    return str(place)


def test_the_command_recommends_or_refuses(tmp_path: Path, cli: Any) -> None:
    draw = torch.Generator().manual_seed(0)
    start = torch.randn(80, 80, generator=draw)
    base = folder(tmp_path / "base", start)
    tunes = [
        folder(tmp_path / name, start + 0.05 * torch.randn(80, 80, generator=draw)) for name in ("one", "two")
    ]
    done = cli("advise", base, *tunes)
    assert done.code == 0 and done.out.startswith("1. ")
    assert "arXiv:2406.03280" in done.out and "moderate_opposition" in done.out
    as_json = cli("advise", base, *tunes, "--json").json
    assert as_json["merge"] is True and as_json["forecast"] == "moderate" and len(as_json["recommended"]) == 5
    stranger = folder(tmp_path / "stranger", torch.randn(80, 80, generator=draw))
    refused = cli("advise", base, tunes[0], stranger)
    assert refused.code == 3 and refused.out.startswith("Do not merge") and "stranger" in refused.out


def test_what_no_figure_is_of_is_named(tmp_path: Path, cli: Any) -> None:
    """A tensor with NaN is left out of the figures, and would stop a merge."""
    draw = torch.Generator().manual_seed(0)
    start = torch.randn(80, 80, generator=draw)
    places = []
    for name, bad in (("base", start), ("one", start + 0.1), ("two", start * math.nan)):
        weights = start if name == "base" else start + 0.05 * torch.randn(80, 80, generator=draw)
        places.append(folder(tmp_path / name, weights))
        save_file({"layers.0.w": weights, "bad": bad.clone()}, tmp_path / name / "model.safetensors")
    done = cli("advise", *places, "--json").json
    assert "`bad` is left out: has NaN or infinity" in done["notes"]
    assert "`bad` is left out" in cli("advise", *places).out


def test_ones_own_benchmark_counts(tmp_path: Path, cli: Any) -> None:
    import numpy as np

    from cuvee.evaluate.cells import Cell, Store
    from cuvee.evaluate.scorecard import Scorecard, TaskScore
    from cuvee.evaluate.task import ACCURACY

    ones = np.ones(4)
    store = Store(tmp_path / "bench")
    for method, score in (("experts", 1.0), ("base", 0.1), ("slerp", 0.9), ("average", 0.5)):
        card = Scorecard(method, {"a": TaskScore(ACCURACY, score * ones, ones)})
        store.put(Cell("mine", "d", 0, ("a",), method, method), card)
    start = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    base, tune = folder(tmp_path / "base", start), folder(tmp_path / "tune", 1.01 * start)
    other = folder(tmp_path / "other", 1.01 * start + 0.01)
    alone = cli("advise", base, tune, "--bench", str(tmp_path / "bench"))
    assert alone.code == 3 and "slerp" not in alone.out and "1 of 1 differs from the base" in alone.out
    done = cli("advise", base, tune, other, "--bench", str(tmp_path / "bench"), "--json").json
    slerp = next(one for one in done["recommended"] if one["method"] == "slerp")
    assert slerp["reasons"] == ["place 1 of 2 in your table of mine, 1 experts"]


def test_a_tracks_experts_are_advised_on_by_their_scores_too(
    cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    from cuvee.evaluate.task import ACCURACY, Item, Provenance, Task

    class Steps:
        """Right where the task's own weight is at least 0.6: nothing at half the change."""

        def load(self, weights: Any) -> None:
            self.weight = weights["layers.0.w"]

        def answer(self, task: Task, items: Any, ledger: Any) -> Any:
            right = bool(self.weight[0 if task.name == "one" else 1, 0] >= 0.6)
            return np.full(len(items), float(right))

    class Track:
        name, digest, base = "steps", "0", {"layers.0.w": torch.zeros(80, 80) + 0.1}
        tasks: ClassVar[Any] = {
            name: Task.of(
                name,
                train=(),
                selection=[Item(f"{name} {i}", 0) for i in range(4)],
                test=[Item(f"{name} test", 0)],
                metric=ACCURACY,
                head="none",
                provenance=Provenance("made here"),
            )
            for name in ("one", "two")
        }

        def expert(self, task: str) -> Any:
            moved = torch.full((80, 80), 0.1)
            moved[0 if task == "one" else 1, 0] = 1.0
            return {"layers.0.w": moved}

        def examinee(self) -> Steps:
            return Steps()

    monkeypatch.setattr("cuvee.evaluate.tracks.registry.open_track", lambda name, seed: Track())
    done = cli("advise", "--track", "steps")
    assert done.code == 0 and "leave average" not in done.out
    assert "mean of theirs): one 100.0% ± 0.0, two 100.0% ± 0.0" in done.out
    told = cli("advise", "--track", "steps", "--json").json
    assert told["scores"]["halving"] == told["scores"]["gain"] == [1.0, 1.0]
    assert told["scores"]["disturbance"] is None
    alone = cli("advise", "--track", "steps", "--task", "one")
    assert alone.code == 3 and "1 of 1 scores better than the base" in alone.out
    for wrong in ([], ["base"], ["base", "a", "--track", "steps"], ["base", "a", "--task", "one"]):
        assert "CV-U396" in cli("advise", *wrong).err
