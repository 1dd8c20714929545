"""Scalars outside `parameters` are read as MergeKit reads them: texts of numbers, YAML 1.1's words for true."""

from __future__ import annotations

import pytest

from cuvee.errors import RecipeError
from cuvee.recipe.load import parse_recipe

SLICES = "merge_method: passthrough\nslices: [{{sources: [{{model: ./a, layer_range: {range}}}]}}]\n"
TOKENS = (
    "merge_method: linear\nmodels: [{{model: ./a, parameters: {{weight: 1}}}}]\ntokenizer: {{{section}}}\n"
)


@pytest.mark.parametrize("written", ["[0, 2]", '["0", "2"]', "[0.0, 2]"])
def test_layer_range(written: str) -> None:
    (part,) = parse_recipe(SLICES.format(range=written)).modules["*"].slices
    assert part.inputs[0].layers == (0, 2)


@pytest.mark.parametrize("written", ["[0, 2.5]", "[0, two]", "[true, 2]", "[0, null]"])
def test_layer_range_of_other_things(written: str) -> None:
    with pytest.raises(RecipeError, match="layer_range"):
        parse_recipe(SLICES.format(range=written))


@pytest.mark.parametrize(
    ("written", "meant"), [("64", 64), ('"64"', 64), ("64.0", 64), ("0", None), ("null", None)]
)
def test_padding(written: str, meant: int | None) -> None:
    vocabulary = parse_recipe(TOKENS.format(section=f"pad_to_multiple_of: {written}")).vocabulary
    assert vocabulary is not None
    assert vocabulary.pad_to_multiple_of == meant


@pytest.mark.parametrize(
    ("written", "meant"), [("true", True), ("yes", True), ("on", True), ("1", True), ("no", False)]
)
def test_force(written: str, meant: bool) -> None:
    section = f"tokens: {{x: {{source: {{kind: zero}}, force: {written}}}}}"
    vocabulary = parse_recipe(TOKENS.format(section=section)).vocabulary
    assert vocabulary is not None
    assert vocabulary.tokens["x"].force is meant


def test_token_id() -> None:
    section = 'tokens: {x: {source: {kind: model_token, model: ./a, token_id: "5"}}}'
    vocabulary = parse_recipe(TOKENS.format(section=section)).vocabulary
    assert vocabulary is not None
    assert vocabulary.tokens["x"].token_id == 5
