"""Names from files reach no terminal, page or card unescaped, whichever command shows them."""

from __future__ import annotations

import json
import re
import unicodedata
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import cuvee

NASTY = "x\x1b[31m\x07\u202e\u2066\u200b\x9b2J<script>alert(1)</script>&\"'`|[red]"
HIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def assert_visible(text: str) -> None:
    found = {c for c in text if unicodedata.category(c) in HIDDEN} - {"\n", "\t"}
    assert not found, f"{found} in {text!r}"


class Tags(HTMLParser):
    """The elements of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.add(tag)


def assert_harmless(page: str) -> None:
    parser = Tags()
    parser.feed(page)
    assert "script" not in parser.seen
    assert "<script" not in page
    assert_visible(page)


@pytest.fixture
def nasty(here: Path, make_llama: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two models with a tensor, a config and a folder of hostile names, and recipes that name them."""
    from safetensors.torch import save_file

    folder = here / "models"
    for seed, name in enumerate(("a" + NASTY.replace("/", ""), "b")):
        tensors = make_llama(folder / name, seed)
        tensors[NASTY] = tensors["model.norm.weight"].clone()
        tensors["model.layers.0." + NASTY] = tensors["model.norm.weight"].clone()
        save_file(tensors, folder / name / "model.safetensors")
        config = json.loads((folder / name / "config.json").read_text())
        config |= {"model_type": NASTY, "architectures": [NASTY]}
        (folder / name / "config.json").write_text(json.dumps(config))
    (folder / "b" / "README.md").write_text(f"---\nlicense: {json.dumps(NASTY)}\n---\n")
    first = json.dumps("./models/a" + NASTY.replace("/", ""))
    own = f"version: 1\nexperts:\n  {json.dumps(NASTY)}: {first}\n  b: ./models/b\n"
    own += "merge: {method: linear, weight: 1}\n"
    (here / "own.yaml").write_text(own)
    mk = f"merge_method: linear\nmodels:\n  - {{model: {first}, parameters: {{weight: 1}}}}\n"
    (here / "mk.yaml").write_text(mk + "  - {model: ./models/b, parameters: {weight: 1}}\n")
    key = json.dumps(NASTY)
    (here / "key.yaml").write_text(f"{own}{key}: 1\noutput: {{{key}: {key}, dtype: {key}}}\n")
    (here / "mkkey.yaml").write_text(f"{mk}    {key}: 1\nbase_model: {key}\n{key}: {key}\n")
    (here / "method.yaml").write_text(own.replace("linear", key))
    (here / "role.yaml").write_text(
        own.replace("weight: 1", f"weight: [{{role: {key}, value: {key}}}, {{name: {key}, value: 1}}]")
    )
    (here / "expr.yaml").write_text(f"{own}sources: {{s: {{arithmetic: {key}}}}}\n")
    (here / "token.yaml").write_text(
        f"{own}tokenizer: {{source: {key}, tokens: {{{key}: {{source: {key}}}}}}}\n"
    )
    (here / "template.yaml").write_text(f"{own}chat_template: {key}\n")
    (here / "broken.yaml").write_text(f"a: [{key}\n")
    return here


LINES = [
    ["check", "own.yaml"],
    ["check", "mk.yaml"],
    ["check", "--format", "github", "own.yaml"],
    *(["check", f"{name}.yaml"] for name in ("key", "mkkey", "method", "role", "expr", "token", "template", "broken")),
    *(["check", "--format", "github", f"{name}.yaml"] for name in ("key", "mkkey", "role")),
    ["plan", "own.yaml"],
    ["plan", "own.yaml", "--tensor", "*x*"],
    ["plan", "own.yaml", "--tensor", NASTY],
    ["plan", "own.yaml", "--graph", "--tensor", "*x*"],
    ["plan", "own.yaml", "--graph", "--dot", "--tensor", "*x*"],
    ["plan", NASTY],
    ["inspect", "./models/a" + NASTY.replace("/", "")],
    ["inspect", "./models/b", "--all"],
    ["inspect", NASTY],
    ["diff", "./models/b", "./base"],
    ["diff", "./models/b", "./models/a" + NASTY.replace("/", ""), "--structure", "--all"],
    ["card", "own.yaml"],
    ["lock", "own.yaml", "-o", "lock"],
    ["import", "mergekit", "mk.yaml"],
    ["methods", NASTY],
    ["explain", NASTY],
    ["quick", "linear", "./models/a" + NASTY.replace("/", ""), "-p", "weight=1", "-o", "out", "--dry-run"],
    ["quick", NASTY, "./models/b", "-p", f"{NASTY}=1", "-o", "out"],
    ["merge", "own.yaml", "-o", "out", "--set", f"{NASTY}=1"],
    ["merge", "own.yaml", "-o", "out", "--no-rule", NASTY],
    ["merge", "own.yaml", "-o", "out", "--dtype", NASTY],
    ["merge", "own.yaml", "-o", "out", "--shard-size", NASTY],
    ["verify", NASTY],
    ["init", "x/" + NASTY],
    [NASTY],
    ["plan", f"--{NASTY}"],
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(LINES)))
def test_every_renderer(number: int, nasty: Path, cli: Any) -> None:
    outcome = cli(*LINES[number])
    assert outcome.code in (0, 1, 2, 3), outcome.err
    assert_visible(outcome.out)
    assert_visible(outcome.err)
    as_json = cli(*LINES[number], "--json")
    assert (as_json.out + as_json.err).isascii()
    assert_visible(as_json.out + as_json.err)


def test_a_whole_run(nasty: Path, cli: Any) -> None:
    outcome = cli("merge", "own.yaml", "-o", "out")
    assert outcome.code == 0, outcome.err
    assert_visible(outcome.out + outcome.err)
    card = (nasty / "out" / "README.md").read_text()
    outside = re.sub(r"```.*?```", "", card, flags=re.S)
    outside = re.sub(r"(`+)[^\n]*?(?<!`)\1(?!`)", "", outside)  # code spans are shown as they are
    assert_visible(outside)
    assert "<script" not in outside
    for line in (["verify", "out"], ["reproduce", "out"], ["inspect", "out"], ["diff", "out", "./models/b"]):
        shown = cli(*line)
        assert_visible(shown.out + shown.err)


def test_a_recipe_cannot_leave_its_fence_in_the_card(here: Path, cli: Any) -> None:
    (here / "r.yaml").write_text(
        "version: 1\nexperts: {a: ./base}\nmerge: {method: linear}\n# ```\n# ~~~\n#<script>\n# ````\n#<b>\n"
    )
    lines = cli("card", "r.yaml").out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.endswith("yaml"))
    fence = lines[start].removesuffix("yaml")
    end = lines.index(fence, start + 1)
    assert "#<b>" in lines[start:end]
    assert not any(line.lstrip().startswith(fence) for line in lines[start + 1 : end])


def test_quick_and_import_write_recipes_that_mean_the_same(nasty: Path, cli: Any) -> None:
    from cuvee.recipe.load import load_recipe, parse_recipe

    text = cli("import", "mergekit", "mk.yaml").out
    kept = [s.text for s in parse_recipe(text).sources.values()]
    assert kept == [s.text for s in load_recipe(nasty / "mk.yaml").sources.values()]
    models = ["./models/a" + NASTY.replace("/", ""), "./models/b"]
    shown = cli("quick", "linear", *models, "-p", "weight=1", "-o", "out", "--dry-run")
    assert [s.text for s in parse_recipe(shown.err).sources.values()] == models


def test_notebooks(nasty: Path) -> None:
    blend = cuvee.load("own.yaml")
    assert_harmless(blend._repr_html_())
    assert_harmless(blend.plan()._repr_html_())
    assert_visible(str(blend.plan()))
    assert_harmless(cuvee.diff("./models/b", "./base")._repr_html_())


def test_errors_in_python(nasty: Path) -> None:
    for arguments in ({"method": NASTY}, {"method": "linear", NASTY: 1}, {"dtype": NASTY}):
        with pytest.raises(cuvee.CuveeError) as caught:
            cuvee.merge(["./base", "./math"], **arguments).plan()
        assert_visible(str(caught.value))
