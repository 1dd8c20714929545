"""Our row tables against the rows MergeKit 0.1.5 computed for the same models and recipes.

`reference.json` is MergeKit's answer, made by `make_reference.py`; rows are compared by token, since the
order in which MergeKit appends the tokens of one model changes from run to run (a hash map's order) and ours
does not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizer_zoo import MODELS, RECIPES, tokenizer_config, value

from cuvee.bundle.vocabulary.plan import VocabularyPlan, plan_vocabulary
from cuvee.bundle.vocabulary.read import read_vocabulary
from cuvee.bundle.vocabulary.rows import RowTable
from cuvee.recipe.model import TokenRule, Vocabulary

REFERENCE = json.loads((Path(__file__).parent / "reference.json").read_text())


class Files:
    """Side files in memory."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files

    def read(self, name: str) -> bytes | None:
        return self._files.get(name)

    def names(self) -> list[str]:
        return list(self._files)


def spec_of(tokenizer: dict[str, Any]) -> Vocabulary:
    rules = {}
    for token, content in tokenizer.get("tokens", {}).items():
        source = content.get("source")
        force = content.get("force", False)
        if not isinstance(source, dict):
            rules[token] = TokenRule(source=source, force=force)
        elif source["kind"] == "zero":
            rules[token] = TokenRule(zero=True, force=force)
        else:
            rules[token] = TokenRule(
                source["model"], source.get("token"), source.get("token_id"), force=force
            )
    return Vocabulary(tokenizer["source"], rules, tokenizer.get("pad_to_multiple_of"))


def plan_of(recipe: dict[str, Any]) -> VocabularyPlan:
    names = list(
        dict.fromkeys([*([recipe["base_model"]] if "base_model" in recipe else []), *recipe["models"]])
    )
    vocabularies = {}
    for name in names:
        files = {"tokenizer.json": MODELS[name][0], "tokenizer_config.json": tokenizer_config(name)}
        vocabularies[name] = read_vocabulary(Files({n: json.dumps(c).encode() for n, c in files.items()}))
    rows = {name: MODELS[name][2] for name in names}
    return plan_vocabulary(vocabularies, rows, recipe.get("base_model"), spec_of(recipe["tokenizer"]))


def gathered(table: RowTable, tables: dict[str, np.ndarray]) -> np.ndarray:
    """The realigned embedding by the table's definition, in float32 as MergeKit computes it."""
    out = np.zeros((table.rows, 2), dtype=np.float32)
    meant = np.zeros(table.rows, dtype=bool)
    for segment in table.segments(0, table.rows):
        place = slice(segment.start, segment.stop)
        if segment.rule == "own":
            out[place] = tables[table.model][segment.row : segment.row + segment.stop - segment.start]
        elif segment.rule == "blend":
            total = sum(tables[m][row] for m, row in segment.donors)
            out[place] = total / np.float32(len(segment.donors))
        meant[place] = segment.rule == "mean"
    if meant.any():
        out[meant] = out[~meant].mean(axis=0, dtype=np.float64)
    return out


@pytest.mark.parametrize("name", list(RECIPES))
def test_rows_are_those_of_mergekit(name: str) -> None:
    expected = REFERENCE[name]
    plan = plan_of(RECIPES[name])
    assert plan.output.ids.keys() == expected["vocab"].keys()
    assert plan.rows == expected["vocab_size"]
    embeddings = {
        m: np.array([value(m, row) for row in range(MODELS[m][2])], dtype=np.float32)
        for m in plan.vocabularies
    }
    tables = plan.tables()
    assert tables.keys() == expected["rows"].keys()
    for model, table in tables.items():
        ours, theirs = gathered(table, embeddings), np.array(expected["rows"][model], dtype=np.float32)
        for token, row in expected["vocab"].items():
            # exact for copies; a mean of three differs in the last place at most
            np.testing.assert_allclose(ours[plan.output.ids[token]], theirs[row], rtol=2e-7, err_msg=token)
        np.testing.assert_allclose(
            ours[len(expected["vocab"]) :], theirs[len(expected["vocab"]) :], rtol=1e-6
        )


def added_by_a_model(plan: VocabularyPlan) -> set[str]:
    return {token for vocabulary in plan.vocabularies.values() for token in vocabulary.added}


@pytest.mark.parametrize("name", list(RECIPES))
def test_ids_of_the_start_tokenizer_and_of_added_tokens_agree(name: str) -> None:
    """Only the order of plain tokens that a union takes from one model is free in MergeKit."""
    expected = REFERENCE[name]["vocab"]
    plan = plan_of(RECIPES[name])
    fixed = [t for t in plan.output.ids if t in plan.original.ids or t in added_by_a_model(plan)]
    assert {t: expected[t] for t in fixed} == {t: plan.output.ids[t] for t in fixed}


def test_the_reference_knows_every_recipe() -> None:
    assert REFERENCE.keys() == RECIPES.keys()
