"""Where values come from, and that none is ignored."""

from __future__ import annotations

from pathlib import Path

import pytest

import cuvee
from cuvee.errors import CuveeError
from cuvee.plan.explain import selected, tensor_rows

HEAD = "version: 1\nbase: ./base\nexperts:\n  math: {source: ./math, weight: 0.7}\n  code: ./code\n"


def loaded(here: Path, text: str) -> cuvee.Blend:
    (here / "r.yaml").write_text(HEAD + text)
    return cuvee.load(here / "r.yaml")


def test_every_value_has_an_origin(here: Path) -> None:
    text = 'merge:\n  method: ties\n  density: {"*.mlp.*": 0.2, default: [0.4, 0.6]}\n'
    plan = loaded(here, text).build()
    (mlp,) = selected(plan, "model.layers.1.mlp.up_proj.weight")
    (norm,) = selected(plan, "model.norm.weight")
    rows = {name: (value, origin) for name, value, origin in tensor_rows(mlp)}
    assert rows["weight [math]"] == ("0.7", f"{here / 'r.yaml'}:4:34 (experts.math.weight)")
    assert rows["weight [code]"] == ("1", "default")
    assert rows["density [math]"][0] == "0.2"
    assert rows["density [math]"][1].startswith(f"{here / 'r.yaml'}:8:")
    assert rows["lambda"] == ("1", "default")
    other = {name: (value, origin) for name, value, origin in tensor_rows(norm)}
    assert other["density [code]"][0] == "0.6"
    assert other["density [code]"][1].startswith("curve, ")


@pytest.mark.parametrize(
    ("rule", "shown"),
    [
        ("{name: '*.mpl.*', value: 0.2}", "*.mpl.*"),
        ("{role: router, value: 0.2}", "router"),
        ("{layers: [7, 9], value: 0.2}", "layers"),
        ("{module: vision, value: 0.2}", "vision"),
    ],
)
def test_a_rule_that_fits_nothing_is_an_error(rule: str, shown: str, here: Path) -> None:
    blend = loaded(here, f"merge:\n  method: ties\n  density: [{rule}, {{value: 0.5}}]\n")
    with pytest.raises(CuveeError) as caught:
        blend.plan()
    (found,) = caught.value.diagnostics
    assert (found.code, shown in found.message) == ("CV-P021", True)
    assert found.where is not None
    assert found.where.line == 8


def test_a_rule_behind_another_counts_as_used(here: Path) -> None:
    rules = "[{role: mlp, value: 0.2}, {name: 'model.layers.0.mlp.*', value: 0.3}, {value: 0.5}]"
    loaded(here, f"merge: {{method: ties, density: {rules}}}\n").plan()


def test_a_value_of_a_model_that_several_stages_could_mean_is_refused(here: Path) -> None:
    """It was ignored: each of the two stages knows the parameter by a longer name."""
    text = (HEAD + "merge: [trim: {density: 0.5}, drop: {density: 0.9}, elect]\n").replace(
        "weight: 0.7", "density: 0.1"
    )
    (here / "r.yaml").write_text(text)
    with pytest.raises(CuveeError) as caught:
        cuvee.load(here / "r.yaml").plan()
    (found,) = caught.value.diagnostics
    assert found.code == "CV-R007"
    assert "`density` belongs to 2 stages" in found.message
    assert found.where is not None
    assert found.where.line == 4


def test_a_source_that_nothing_uses_is_an_error(here: Path) -> None:
    blend = loaded(here, "sources: {chat: ./chat}\nmerge: {method: ties}\n")
    with pytest.raises(CuveeError, match="`chat` is never used"):
        blend.plan()


def test_a_value_out_of_range_between_the_knots_is_told_once(here: Path) -> None:
    with pytest.raises(CuveeError, match="`density` must be at least 0 and at most 1"):
        cuvee.merge(
            [here / "math"], base=here / "base", method="ties", density={"*.mlp.*": 1.5, "default": 0.5}
        )
