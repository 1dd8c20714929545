"""Lines and planes against scores that are known in closed form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from xml.etree import ElementTree

import pytest
import torch

from cuvee import analyze
from cuvee.errors import EvaluationError, UsageError

ORIGIN = {"w": torch.zeros(2), "n": torch.tensor([7])}
FIRST = {"w": torch.tensor([1.0, 0.0]), "n": torch.tensor([8])}
SECOND = {"w": torch.tensor([0.0, 1.0]), "n": torch.tensor([9])}


def loss(weights: Mapping[str, torch.Tensor]) -> float:
    """(x − 0.5)² + 2 (y − 0.25)²."""
    x, y = weights["w"].tolist()
    return (x - 0.5) ** 2 + 2 * (y - 0.25) ** 2


def test_a_path_has_the_scores_of_its_models_and_its_barrier() -> None:
    def ridge(weights: Mapping[str, torch.Tensor]) -> float:
        assert weights["n"].item() == 8  # what is not a float stays the first model's
        x, y = weights["w"].tolist()
        return 4 * x * y + y  # 4 t (1 − t) + t: 1 above the straight line in the middle

    found = analyze.path(FIRST, SECOND, ridge, steps=5, better="lower")
    assert found.positions == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert found.scores == pytest.approx([4 * t * (1 - t) + t for t in found.positions])
    assert found.barrier == pytest.approx(1.0)
    assert analyze.path(FIRST, SECOND, ridge, steps=5, better="higher").barrier == 0
    ElementTree.fromstring(found._repr_html_())


def test_a_plane_has_its_models_at_the_corners_and_its_best_where_it_is() -> None:
    found = analyze.plane(ORIGIN, FIRST, SECOND, loss, steps=5, span=(0.0, 1.0), better="lower")
    for row, y in enumerate(found.ys):
        for column, x in enumerate(found.xs):
            assert found.scores[row][column] == pytest.approx((x - 0.5) ** 2 + 2 * (y - 0.25) ** 2)
    assert found.best == (0.5, 0.25, pytest.approx(0.0))
    chart = ElementTree.fromstring(found.chart().svg)
    assert {"origin", "first", "second"} <= {t.text for t in chart.iter("text")}
    assert any(p.get("class") == "level" for p in chart.iter("path"))


def test_half_precision_is_blended_in_single_and_given_back_in_half() -> None:
    seen = []
    a, b = ({"w": torch.tensor([v], dtype=torch.bfloat16)} for v in (1.0, 1.0078125))
    analyze.path(a, b, lambda w: seen.append(w["w"]) or 0.0, steps=3)
    assert {t.dtype for t in seen} == {torch.bfloat16}
    assert [t.item() for t in seen] == [1.0, 1.0, 1.0078125]  # the middle is a tie, rounded to even


@pytest.mark.parametrize(
    ("code", "call"),
    [
        ("CV-B231", lambda: analyze.path(FIRST, {"w": torch.zeros(3)}, loss)),
        ("CV-B232", lambda: analyze.path(ORIGIN, FIRST, lambda w: math.nan)),
        ("CV-B233", lambda: analyze.path(ORIGIN, FIRST, loss, steps=1)),
        ("CV-B233", lambda: analyze.plane(ORIGIN, FIRST, SECOND, loss, span=(1.0, 1.0))),
    ],
)
def test_errors_have_their_codes(code: str, call) -> None:
    with pytest.raises(EvaluationError, match=code):
        call()


def test_scores_are_better_in_one_of_two_directions() -> None:
    for draw in (
        lambda: analyze.path(FIRST, SECOND, loss, better="least"),  # type: ignore[arg-type]
        lambda: analyze.plane(ORIGIN, FIRST, SECOND, loss, better="least"),  # type: ignore[arg-type]
    ):
        with pytest.raises(UsageError) as caught:
            draw()
        assert caught.value.diagnostics[0].code == "CV-U391"


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0, -3.0])
def test_models_on_one_line_span_no_plane(scale: float) -> None:
    further = {**FIRST, "w": scale * FIRST["w"]}
    with pytest.raises(UsageError) as caught:
        analyze.plane(ORIGIN, FIRST, further, loss)
    assert caught.value.diagnostics[0].code == "CV-U392"
