"""Row tables against an oracle written from the rules, and what a plan refuses or reports."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuvee.bundle.vocabulary.plan import VocabularyPlan, plan_vocabulary, truncated_tables
from cuvee.bundle.vocabulary.rows import RowTable, Segment, table
from cuvee.bundle.vocabulary.tokens import AddedToken, Vocabulary, with_added
from cuvee.errors import PlanError, SourceError
from cuvee.recipe.model import TokenRule
from cuvee.recipe.model import Vocabulary as Spec

Row = tuple[tuple[str, int], ...]  # what a row is the mean of; () is zero


def vocab(*tokens: str, added: tuple[str, ...] = (), kind: Any = "bpe", roles: Any = None) -> Vocabulary:
    own = {token: row for row, token in enumerate(tokens)}
    plain = Vocabulary(kind, own, own, roles=roles or {})
    return with_added(plain, [AddedToken(text, -1, special=True, normalized=False) for text in added])


def planned(
    models: dict[str, Vocabulary],
    base: str | None,
    spec: Spec,
    rows: dict[str, int] | None = None,
    **more: Any,
) -> VocabularyPlan:
    sizes = {name: vocabulary.size for name, vocabulary in models.items()}
    return plan_vocabulary(models, {**sizes, **(rows or {})}, base, spec, **more)


def rows_of(found: RowTable) -> list[Row | str]:
    """Each output row as the donors it is the mean of, or the word `mean`."""
    out: list[Row | str] = []
    for row in range(found.rows):
        segment = found.lookup(row)
        if segment.rule == "own":
            out.append(((found.model, segment.row),))
        else:
            out.append("mean" if segment.rule == "mean" else segment.donors)
    return out


def oracle(
    models: dict[str, Vocabulary],
    rows: dict[str, int],
    base: str | None,
    order: list[str],
    rules: dict[str, TokenRule],
) -> dict[str, list[Row]]:
    """The rules of the specification, token by token, for tokens without gaps; no run is ever formed."""
    out: dict[str, list[Row]] = {model: [] for model in models}
    for token in order:
        owners = {m: v.ids[token] for m, v in models.items() if token in v.ids and v.ids[token] < rows[m]}
        rule = rules.get(token)
        for model in models:
            if model in owners and not (rule and rule.force):
                out[model].append(((model, owners[model]),))
            elif rule is not None and rule.zero:
                out[model].append(())
            elif rule is not None and rule.token_id is not None:
                out[model].append(((str(rule.source), rule.token_id),))
            elif rule is not None and rule.token is not None:
                out[model].append(((str(rule.source), models[str(rule.source)].ids[rule.token]),))
            elif rule is not None:
                out[model].append(((str(rule.source), owners[str(rule.source)]),))
            elif base in owners:
                out[model].append(((str(base), owners[str(base)]),))
            else:
                out[model].append(tuple(owners.items()))
    return out


TOKENS = [f"t{n}" for n in range(9)]
vocabularies = st.permutations(TOKENS).flatmap(
    lambda order: st.tuples(st.integers(1, 9), st.integers(0, 3)).map(
        lambda cut: vocab(*order[: cut[0]], added=tuple(order[cut[0] : cut[0] + cut[1]]))
    )
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_tables_follow_the_rules(data: st.DataObject) -> None:
    names = ["base", "a", "b"][: data.draw(st.integers(1, 3))]
    models = {name: data.draw(vocabularies) for name in names}
    rows = {name: data.draw(st.integers(max(1, v.size - 2), v.size + 2)) for name, v in models.items()}
    base = data.draw(st.sampled_from([None, "base"]))
    source = data.draw(st.sampled_from(["union", "base", *names]))
    token = data.draw(st.sampled_from([*TOKENS, "fresh"]))
    donor = data.draw(st.sampled_from(names))
    rule = data.draw(
        st.sampled_from(
            [None, TokenRule(zero=True), TokenRule(zero=True, force=True), TokenRule(donor, token_id=0)]
        )
    )
    rules = {token: rule} if rule else {}
    multiple = data.draw(st.sampled_from([None, 4, 7]))
    plan = planned(models, base, Spec(source, rules, multiple), rows)

    order = sorted(plan.output.ids, key=plan.output.ids.__getitem__)
    assert [plan.output.ids[t] for t in order] == list(range(len(order)))
    start = models[source] if source in models else models["base"]
    kept = [t for t in start.ids if start.ids[t] < rows[source if source in models else "base"]]
    assert {t: plan.output.ids[t] for t in kept} == {t: start.ids[t] for t in kept}
    if source == "union":
        assert set(order) == {t for m, v in models.items() for t in v.ids if v.ids[t] < rows[m]} | set(rules)
    assert plan.rows == (len(order) if multiple is None else -(-len(order) // multiple) * multiple)

    expected = oracle(models, rows, base, order, rules)
    for model, found in plan.tables().items():
        assert found.problem() is None
        assert rows_of(found) == expected[model] + ["mean"] * (plan.rows - len(order))
        assert RowTable.from_dict(json.loads(json.dumps(found.as_dict()))) == found
        low, high = sorted(data.draw(st.tuples(*[st.integers(0, found.rows)] * 2)))
        pieces = list(found.segments(low, high))
        assert [r for s in pieces for r in range(s.start, s.stop)] == list(range(low, high))
        cut = table(model, found.own_rows, [Segment(0, low, "mean")] * (low > 0) + pieces)
        assert rows_of(cut)[low:] == rows_of(found)[low:high]
        same = [((model, row),) for row in range(rows[model])]
        assert found.is_identity == (rows_of(found) == same)


def test_the_worked_example() -> None:
    """base: a b c; x: b a d with <e>; y: d e c.  `d` is in x and y only: their mean fills base."""
    models = {
        "base": vocab("a", "b", "c"),
        "x": vocab("b", "a", "d", added=("<e>",)),
        "y": vocab("d", "e", "c"),
    }
    plan = planned(models, "base", Spec("union", pad_to_multiple_of=4))
    assert plan.output.ids == {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4, "<e>": 5}
    tables = plan.tables()
    assert tables["base"].as_dict() == {
        "model": "base",
        "own_rows": 3,
        "rows": 8,
        "runs": [[0, 0, 3]],
        "exceptions": [
            {"row": 3, "mean_of": [["x", 2], ["y", 0]]},
            {"row": 4, "mean_of": [["y", 1]]},
            {"row": 5, "mean_of": [["x", 3]]},
            {"row": 6, "length": 2, "fill": "mean"},
        ],
    }
    assert rows_of(tables["x"])[:5] == [(("x", 1),), (("x", 0),), (("base", 2),), (("x", 2),), (("y", 1),)]
    assert tables["base"].donors == ("x", "y")
    assert tables["base"].needs_mean


def test_a_tensor_that_some_models_lack_is_aligned_among_the_others() -> None:
    models = {"base": vocab("a"), "x": vocab("a", "b"), "y": vocab("a", "b", "c")}
    plan = planned(models, "base", Spec("union"))
    tables = plan.tables(["base", "x"])
    assert rows_of(tables["base"]) == [(("base", 0),), (("x", 1),), ()]
    assert rows_of(tables["x"])[2] == ()
    assert rows_of(plan.tables(["y", "x"], base="y")["x"])[2] == (("y", 2),)


def test_identical_tokenizers_are_identities_and_padding_is_trimmed() -> None:
    models = {"base": vocab("a", "b", "c"), "x": vocab("a", "b", "c")}
    plan = planned(models, "base", Spec("union"))
    assert all(found.is_identity for found in plan.tables().values())
    assert not plan.edited
    assert plan.diagnostics == ()
    trimmed = planned(models, "base", Spec("union"), {"base": 8, "x": 8})
    assert trimmed.rows == 3
    assert trimmed.tables()["x"].parts == (Segment(0, 3, "own"),)
    assert not trimmed.tables()["x"].is_identity
    assert [(d.code, d.hint) for d in trimmed.diagnostics] == [
        ("CV-T010", "`pad_to_multiple_of: 8` under `tokenizer` pads again")
    ]


def test_kept_padding_keeps_every_models_own_rows() -> None:
    models = {"base": vocab("a", "b"), "x": vocab("a", "b"), "y": vocab("b", "a", "c")}
    plan = planned(models, "base", Spec("base"), {"base": 6, "x": 6, "y": 4}, keep_padding=True)
    assert plan.rows == 6
    assert plan.tables()["base"].is_identity
    assert plan.tables()["x"].is_identity
    # Row 2 is a token of y, rows 4 and 5 do not exist there: neither is padding it could keep.
    assert rows_of(plan.tables()["y"]) == [(("y", 1),), (("y", 0),), "mean", (("y", 3),), "mean", "mean"]


def test_ids_with_gaps() -> None:
    """Rows without a token stay each model's own where it has no token there either."""
    own = {"a": 0, "b": 3}
    gaps = Vocabulary("bpe", own, own)
    plan = planned({"base": gaps, "x": vocab("a", "b"), "y": gaps}, "base", Spec("base"))
    tables = plan.tables()
    assert plan.rows == 4
    assert tables["base"].is_identity
    assert tables["y"].is_identity
    assert rows_of(tables["x"]) == [(("x", 0),), "mean", "mean", (("x", 1),)]


def test_a_model_without_a_tokenizer_takes_the_bases() -> None:
    plan = plan_vocabulary({"base": vocab("a", "b"), "x": None}, {"base": 2, "x": 2}, "base", Spec("union"))
    assert plan.tables()["x"].is_identity
    assert [d.code for d in plan.diagnostics] == ["CV-T014"]
    with pytest.raises(SourceError) as caught:
        plan_vocabulary({"base": None, "x": vocab("a")}, {"base": 1, "x": 1}, "base", Spec("union"))
    assert caught.value.diagnostics[0].code == "CV-T001"


def test_added_flags_come_from_the_first_model_that_has_the_token() -> None:
    plain = vocab("a")
    first = with_added(plain, [AddedToken("<t>", -1, lstrip=True)])
    second = with_added(plain, [AddedToken("<t>", -1, rstrip=True)])
    plan = planned({"base": plain, "x": first, "y": second}, "base", Spec("union"))
    assert plan.output.added["<t>"] == AddedToken("<t>", 1, lstrip=True)
    assert [d.code for d in plan.diagnostics] == ["CV-T013"]
    assert plan.edited


@pytest.mark.parametrize("kind", ["unigram", "wordpiece", "wordlevel"])
def test_only_byte_pair_tokenizers_lose_tokens(kind: str) -> None:
    with pytest.raises(PlanError) as caught:
        planned({"base": vocab("a", "b", "c", kind=kind)}, "base", Spec("base"), {"base": 2})
    (found,) = caught.value.diagnostics
    assert found.code == "CV-T005"
    assert "ids up to 2 (`c`)" in found.message


@pytest.mark.parametrize(
    ("rules", "codes"),
    [
        ({"new": TokenRule()}, ["CV-T007"]),
        ({"new": TokenRule("bse")}, ["CV-T006"]),
        ({"new": TokenRule("base", token="z")}, ["CV-T006"]),
        ({"b": TokenRule("base")}, ["CV-T006"]),  # base has no `b` to give
        ({"new": TokenRule("base", token_id=1)}, ["CV-T008"]),
        ({"new": TokenRule("base", token_id=-1)}, ["CV-T008"]),
        ({"new": TokenRule(), "newer": TokenRule("x", token_id=9)}, ["CV-T007", "CV-T008"]),
        ({"a": TokenRule(force=True)}, ["CV-T007"]),
        ({"a": TokenRule()}, []),  # every model has it, so that no source is needed
    ],
)
def test_rules_that_cannot_be_followed(rules: dict[str, TokenRule], codes: list[str]) -> None:
    models = {"base": vocab("a"), "x": vocab("a", "b")}
    try:
        planned(models, "base", Spec("union", rules))
        found = []
    except PlanError as error:
        found = [d.code for d in error.diagnostics]
        assert all(d.where is not None and d.where.path for d in error.diagnostics)
    assert found == codes


def test_the_tokenizer_of_a_base_asked_for_by_name_keeps_tokens_without_a_row() -> None:
    own = vocab("a", "b", "c", "d")
    models = {"m": own, "n": vocab("a", "b", "d", "c")}
    plan = planned(models, "m", Spec("m"), {"m": 2, "n": 3})
    assert (plan.rows, plan.output.ids, plan.edited) == (4, own.ids, False)
    assert {d.code for d in plan.diagnostics} == {"CV-T110", "CV-T011"}
    assert list(plan.own["m"]) == [0, 1, -1, -1]
    assert list(plan.own["n"]) == [0, 1, -1, 2]  # it lends the row of `d` to both; `c` is zero
    assert planned(models, "m", Spec("base"), {"m": 2, "n": 3}).rows == 2


def test_a_source_that_is_not_a_model() -> None:
    with pytest.raises(PlanError) as caught:
        planned({"base": vocab("a"), "chat": vocab("a")}, "base", Spec("chta"))
    assert caught.value.diagnostics[0].hint == "did you mean `chat`?"


def test_truncation_keeps_the_common_rows() -> None:
    tables, notes = truncated_tables({"a": 5, "b": 3})
    assert tables["a"].parts == (Segment(0, 3, "own"),)
    assert tables["b"].is_identity
    assert [d.code for d in notes] == ["CV-T015"]
    tables, notes = truncated_tables({"a": 5, "b": 5})
    assert all(found.is_identity for found in tables.values())
    assert notes == []


@pytest.mark.parametrize(
    "change",
    [
        {"runs": [[0, 0, 2]]},
        {"runs": [[0, 1, 3]]},
        {"runs": [[0, 0, 3], [2, 0, 1]]},
        {"rows": 9},
        {"exceptions": [{"row": 3, "fill": "pickle"}]},
        {"exceptions": [{"row": 3, "mean_of": []}]},
    ],
)
def test_a_damaged_table_is_refused(change: dict[str, Any]) -> None:
    good = {
        "model": "m",
        "own_rows": 3,
        "rows": 4,
        "runs": [[0, 0, 3]],
        "exceptions": [{"row": 3, "fill": "zero"}],
    }
    assert RowTable.from_dict(good).as_dict() == good
    with pytest.raises(ValueError, match="not a row table"):
        RowTable.from_dict({**good, **change})


def test_looking_outside_a_table() -> None:
    found = RowTable("m", 3, (Segment(0, 3, "own"),))
    with pytest.raises(IndexError):
        found.lookup(3)
    with pytest.raises(IndexError):
        list(found.segments(2, 4))
    assert list(found.segments(2, 2)) == []


def test_large_vocabularies_plan_quickly() -> None:
    """A permuted vocabulary of 60 000 tokens must not cost Python objects per token and model."""
    import time

    tokens = [f"t{n}" for n in range(60_000)]
    models = {"base": vocab(*tokens), "x": vocab(*tokens), "y": vocab(*tokens[30_000:], *tokens[:30_000])}
    start = time.perf_counter()
    tables = planned(models, "base", Spec("union")).tables()
    assert time.perf_counter() - start < 3  # measured 0.2 s
    assert len(tables["y"].parts) == 2
    assert Fraction(len(json.dumps(tables["y"].as_dict())), 60_000) < Fraction(1, 100)


def test_a_vocabulary_with_gaps_cannot_grow_into_taken_ids() -> None:
    own = {"a": 0, "b": 2}
    with pytest.raises(PlanError) as caught:
        planned({"base": Vocabulary("bpe", own, own), "x": vocab("a", "c")}, "base", Spec("union"))
    (found,) = caught.value.diagnostics
    assert found.code == "CV-T009"
    assert "id 2, which `b` has" in found.message


def test_a_union_takes_new_tokens_in_the_order_of_their_ids() -> None:
    own = {"d": 3, "b": 1, "a": 0, "c": 2}
    plan = planned({"base": vocab("a"), "x": Vocabulary("bpe", own, own)}, "base", Spec("union"))
    assert plan.output.ids == {"a": 0, "b": 1, "c": 2, "d": 3}
