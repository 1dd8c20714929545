"""Licences as cards state them, and the output's own card: deterministic, complete, closed to injection."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from bundle_fixtures import Files
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from cuvee.bundle.card import CardFacts, CardMethod, CardSource, model_card
from cuvee.bundle.licence import Licence, agreed, licence_of
from cuvee.bundle.markdown import block, code, paper_link, plain

MIT, APACHE = Licence("mit"), Licence("apache-2.0")


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: mit\n---\n# x", MIT),
        ("---\r\nlicense: 'mit'  # free\r\ntags: [a]\r\n---\r\n", MIT),
        ("---\nlicense:\n- mit\ntags:\n- a\n---\n", MIT),
        ("---\nlicense: [mit]\n---\n", MIT),
        (
            "---\nlicense: other\nlicense_name: llama3\nlicense_link: LICENSE\n---\n",
            Licence("other", "llama3", "LICENSE"),
        ),
        ("---\nlicense:\n- mit\n- apache-2.0\n---\n", None),
        ("---\nlicense: [mit, apache-2.0]\n---\n", None),
        ("---\nmodel:\n  license: mit\n---\n", None),
        ("---\nlicense: ~\n---\n", None),
        ("---\nlicense: mit\n", None),  # the front matter never ends
        ("# license: mit\nlicense: mit\n", None),
        ("", None),
        ("---\n" + "x: 1\n" * 100_000 + "license: mit\n---\n", None),
    ],
)
def test_a_cards_licence(card: str, expected: Licence | None) -> None:
    assert licence_of(Files({"README.md": card.encode()})) == expected


def test_the_configuration_is_asked_second() -> None:
    config = b'{"license": "apache-2.0"}'
    assert licence_of(Files({"config.json": config})) == APACHE
    assert licence_of(Files({"config.json": config, "README.md": b"---\nlicense: mit\n---\n"})) == MIT
    assert licence_of(Files({"config.json": b'{"license": 3}'})) is None
    assert licence_of(Files({"config.json": b"{"})) is None


def test_only_agreement_is_copied() -> None:
    assert agreed({"a": MIT, "b": MIT}) == (MIT, [])
    assert agreed({}) == (None, [])
    for licences in ({"a": MIT, "b": APACHE}, {"a": MIT, "b": None}, {"a": None, "b": None}):
        found, (warning,) = agreed(licences)
        assert found is None
        assert (warning.code, warning.severity) == ("CV-T040", "warning")
        assert all(f"`{model}`" in warning.message for model in licences)
    named = Licence("other", "llama3"), Licence("other", "gemma")
    assert agreed({"a": named[0], "b": named[1]})[0] is None


FACTS = CardFacts(
    name="orca-ties",
    methods=(
        CardMethod(
            "ties",
            "Trim small changes, elect one sign per weight, average those that agree.",
            formula="θ = θ₀ + λ · mean(τᵢ where sign(τᵢ) = sign(Σ wᵢτᵢ))",
            paper="arXiv:2306.01708",
            bibtex="@inproceedings{yadav2023ties,\n  title={TIES-Merging}\n}",
        ),
    ),
    sources=(
        CardSource("base", "hf://org/base", "org/base", "8c1f00", "base", "16.1 GB bfloat16"),
        CardSource("math", "./math-7b", digest="blake3:77aa"),
    ),
    recipe="merge: ties\nbase: hf://org/base\n",
    recipe_digest="sha256:4f1c",
    version="0.1.0",
    licence=APACHE,
    results=(("gsm8k", "accuracy", "0.71 ± 0.02"),),
)


def front(card: str) -> Any:
    head = re.match(r"---\n(.*?)\n---\n", card, re.S)
    assert head
    return YAML(typ="safe").load(head[1])


def test_the_whole_card() -> None:
    card = model_card(FACTS)
    assert card == model_card(replace(FACTS))
    assert front(card) == {
        "base_model": ["org/base"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "license": "apache-2.0",
        "tags": ["merge", "cuvee"],
    }
    for part in (
        "# orca\\-ties\n",
        "**ties**: Trim small changes",
        "([arXiv:2306.01708](https://arxiv.org/abs/2306.01708))",
        "```\nθ = θ₀ + λ",
        "| base | base | `hf://org/base` | `8c1f00` | 16.1 GB bfloat16 |",
        "| math | expert | `./math-7b` | `blake3:77aa` |  |",
        "| gsm8k | accuracy | 0.71 ± 0.02 |",
        "```yaml\nmerge: ties\nbase: hf://org/base\n```",
        "cuvee reproduce .\ncuvee verify .\n",
        "```bibtex\n@inproceedings{yadav2023ties,",
    ):
        assert part in card
    assert card.endswith("```\n")
    assert "\n\n\n\n" not in card


def test_a_card_says_how_its_model_is_made_again() -> None:
    changed = model_card(replace(FACTS, changes=("--set density=0.6", "--dtype float16"), is_local=True))
    assert "Changed on the command line: `--set density=0.6 --dtype float16`\n" in changed
    assert "cuvee reproduce . --from FOLDER\ncuvee verify .\n" in changed
    within = model_card(replace(FACTS, is_exact=False))
    assert "cuvee reproduce" not in within and "with the same `--read-budget`" in within


def test_a_small_card_has_no_empty_parts() -> None:
    facts = CardFacts(
        "x", (CardMethod("linear", "Weighted mean."),), (CardSource("a", "a"),), "merge: linear"
    )
    card = model_card(facts)
    assert front(card) == {"library_name": "transformers", "tags": ["merge", "cuvee"]}
    assert "| name | part | checkpoint | detail |\n|---|---|---|---|\n| a | expert | `a` |  |\n" in card
    assert "Citation" not in card
    assert "Results" not in card
    assert "1 checkpoint," in card


EVIL = (
    "x\n---\nlicense: mit\n---\n<script>alert(1)</script> [a](javascript:b) `c` | d \u202e \x1b[31m {{ 7*7 }}"
)


def test_nothing_a_stranger_named_becomes_markup() -> None:
    source = CardSource(EVIL, EVIL, EVIL, EVIL, EVIL, EVIL, EVIL)
    method = CardMethod(EVIL, EVIL, EVIL, EVIL, EVIL)
    facts = CardFacts(
        EVIL,
        (method,),
        (source, replace(source, hub_id="org/ok")),
        EVIL + "\n```\n# not a heading\n~~~",
        recipe_name=EVIL,
        recipe_digest=EVIL,
        version=EVIL,
        licence=Licence(EVIL, EVIL, EVIL),
        results=((EVIL, EVIL, EVIL),),
        notes=(EVIL,),
        pipeline=EVIL,
    )
    card = model_card(facts)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202a-\u202e\u2066-\u2069]", card)
    head = front(card)
    assert head["base_model"] == ["org/ok"]
    assert head["license"].startswith("x\\n---\\nlicense")
    assert "49" not in card
    prose = without_code(card.split("\n---\n", 1)[1])
    assert "<" not in prose
    assert not re.search(r"(?<!\\)\]\(", prose)
    assert (
        len(re.findall(r"^## ", prose, re.M)) == 5 + 1
    )  # method, sources, results, recipe, reproduce, citation
    rows = [line for line in card.splitlines() if line.startswith("|")]
    cells = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
    assert cells == {6, 4}  # sources and results: no cell was split


def without_code(text: str) -> str:
    """The page less fenced blocks and inline code, by CommonMark's rules for closing them."""
    text = re.sub(r"^(`{3,})[^`\n]*\n.*?^\1`*$", "", text, flags=re.S | re.M)
    return re.sub(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)", "", text)


@given(st.text(max_size=60))
def test_filters_hold_any_text(text: str) -> None:
    assert "\n" not in plain(text)
    assert not re.search(r"(?<!\\)[|<>\[\]`*_]", plain(text).replace("\\\\", ""))
    inline = code(text)
    ticks = re.match(r"`+", inline)
    assert ticks
    assert without_code(inline) == "" or not text.strip()
    fenced = block(text + "\n```\n````")
    fence = re.match(r"`+", fenced)
    assert fence
    assert re.findall(f"^{fence[0]}`*$", fenced, re.M) == [fence[0]] * 2
    assert fenced.endswith(f"\n{fence[0]}")


@pytest.mark.parametrize(
    ("paper", "shown"),
    [
        ("arXiv:2306.01708v2", "[arXiv:2306.01708](https://arxiv.org/abs/2306.01708)"),
        ("https://example.org/a?b=c", "<https://example.org/a?b=c>"),
        ("javascript:alert(1)", "javascript:alert\\(1\\)"),
        ("https://x.org/> <script>", "https://x.org/&gt; &lt;script&gt;"),
    ],
)
def test_paper_links(paper: str, shown: str) -> None:
    assert paper_link(paper).replace("\\:", ":") == shown
