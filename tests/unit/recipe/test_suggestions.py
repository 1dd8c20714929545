"""What a hint says about a key that is right in another place, and about missing words."""

from __future__ import annotations

import pytest

from cuvee.errors import Diagnostic, RecipeError
from cuvee.recipe.load import parse_recipe


def findings(text: str) -> tuple[Diagnostic, ...]:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "r.yaml")
    return caught.value.diagnostics


def test_a_key_of_an_inner_mapping_is_sent_there() -> None:
    (first,) = findings("version: 1\nexperts: {a: ./a}\nmerge: {method: linear}\nshard_size: 5GB\n")
    assert (first.code, first.hint) == ("CV-R004", "`shard_size` belongs under `output`")
    assert first.where is not None
    assert (first.where.line, first.where.column, first.where.width) == (4, 1, len("shard_size"))


def test_a_key_below_names_of_the_user_is_matched_with_its_own_model() -> None:
    text = "merge_method: linear\nmodules:\n  text:\n    modles: []\n"
    assert "did you mean `models`?" in [d.hint for d in findings(text)]


def test_a_missing_method_is_guessed_from_the_keys_there_are() -> None:
    (first,) = findings("version: 1\nexperts: {a: ./a}\nmerge: {mehtod: linear}\n")
    assert (first.code, first.hint) == ("CV-R005", "did you mean `method`?")


def test_text_of_a_recipe_is_escaped_in_messages() -> None:
    for line in ('dtype: "\\e[31m"', 'output: {shard_size: "\\u202e"}'):
        (first,) = findings(f"version: 1\nexperts: {{a: ./a}}\nmerge: {{method: linear}}\n{line}\n")
        assert "\x1b" not in first.message
        assert "\u202e" not in first.message


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("name: [a]\nmerge_method: linear\n---\nmerge_method: linear\n", "CV-R010", "`name` must be a text"),
        (
            "version: 1\nexperts: {a: ./a}\nmerge: [{trim: 0.5}, elect]\n",
            "CV-R010",
            "the parameters of `trim` must be a mapping",
        ),
        (
            "version: 1\nexperts: {a: ./a}\nmerge: {method: ties, density: [{role: {x: 1}, value: 0.5}]}\n",
            "CV-R010",
            "`role` must be a role or a list of roles",
        ),
        (
            "version: 1\nexperts: {a: ./a}\nmerge: {method: ties, density: [{name: 3, value: 0.5}]}\n",
            "CV-R010",
            "`name` must be a text",
        ),
        (
            "version: 1\nexperts: {a: ./a}\nmerge: {method: ties, density: [{module: [1], value: 0.5}]}\n",
            "CV-R010",
            "`module` must be a text",
        ),
    ],
)
def test_values_of_the_wrong_type_where_names_stand(text: str, code: str, message: str) -> None:
    assert (code, message) in [(d.code, d.message) for d in findings(text)]


def test_mistakes_of_structure_do_not_hide_mistakes_of_values() -> None:
    text = "version: 1\nexperts: {a: {source: ./a, wieght: 1}}\ndtype: int4\nx: 1\n"
    text += "merge: {method: linear, weight: lots}\n"
    codes = sorted(d.code for d in findings(text))
    assert codes == ["CV-R004", "CV-R004", "CV-R006", "CV-R010"]


def test_places_stay_right_when_an_entry_of_a_list_is_wrong() -> None:
    text = "merge_method: linear\nmodels:\n  - 3\n  - {model: a, parameters: {weight: lots}}\n"
    for finding in findings(text):
        assert finding.where is not None
        assert finding.where.line is not None
        assert finding.where.text == text.splitlines()[finding.where.line - 1]
        if "weight" in finding.message:
            assert finding.where.line == 4


def test_a_misspelt_required_key_is_told_once() -> None:
    text = "merge_method: linear\nmodels: [{modle: a}]\n"
    assert [d.code for d in findings(text)] == ["CV-R004"]


def test_one_finding_where_a_text_or_a_mapping_may_stand() -> None:
    text = "merge_method: linear\nmodels: [{model: {model: {paht: a}}}]\n"
    assert [(d.code, d.hint) for d in findings(text)] == [("CV-R004", "did you mean `path`?")]


@pytest.mark.parametrize(
    ("written", "shown", "hint"),
    [
        (
            "[trim, elect]",
            "a list",
            "a chain of stages takes the place of `method`: write `merge: [trim, elect]`",
        ),
        ("", "nothing", None),
        ("7", "`7`", None),
    ],
)
def test_a_method_that_is_no_name_is_told_what_is_expected(written, shown, hint) -> None:
    text = f"version: 1\nbase: ./b\nexperts: {{e: ./e}}\nmerge:\n  method: {written}\n"
    with pytest.raises(RecipeError) as told:
        parse_recipe(text)
    (first,) = told.value.diagnostics
    assert (first.code, first.message) == (
        "CV-R010",
        f"`method` must be the name of a method, got {shown}",
    )
    assert first.hint == hint
