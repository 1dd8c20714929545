"""Random command lines and mutated recipes end in a documented exit code, never in a bug report (70).

Everything is seeded; a failing case prints its number and its input. Mutations know the structure of a recipe: they
delete, duplicate, retype and garble single keys and values of the templates and of MergeKit recipes.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from cuvee.cli.app import COMMANDS

DOCUMENTED = {0, 1, 2, 3, 4, 130, 143}
TEMPLATES = ("ties", "linear", "slerp", "dare", "lora", "layers", "stages", "mergekit")
WHOLE = [
    "merge_method: slerp\nbase_model: ./base\nmodels: [{model: ./base}, {model: ./math}]\nparameters:\n  t:\n"
    "    - {filter: self_attn, value: [0, 0.5, 1]}\n    - {value: 0.5}\ndtype: bfloat16\n",
    "merge_method: passthrough\nslices:\n  - sources: [{model: ./math, layer_range: [0, 2]}]\n"
    "  - sources: [{model: ./code, layer_range: [1, 2], parameters: {scale: 0.5}}]\ndtype: float16\n",
    "merge_method: dare_ties\nbase_model: ./base\nmodels:\n"
    "  - {model: ./math, parameters: {weight: 0.4, density: 0.5}}\n"
    "  - {model: ./code, parameters: {weight: [0.1, 0.9], density: 0.6}}\nparameters: {int8_mask: true, lambda: 0.9}\n",
    "merge_method: linear\nmodules:\n  default:\n    slices:\n      - sources:\n"
    "          - {model: ./math, layer_range: [0, 2], parameters: {weight: 1}}\n"
    "          - {model: {model: {path: ./code}}, layer_range: [0, 2], parameters: {weight: 2}}\n",
    "merge_method: task_arithmetic\nbase_model: ./base\nmodels: [{model: ./math, parameters: {weight: 0.3}}]\n"
    "tokenizer: {source: union, tokens: {a: {source: ./math, force: true}}, pad_to_multiple_of: 8}\n"
    "chat_template: auto\n",
    "name: one\nmerge_method: linear\nmodels: [{model: ./math, parameters: {weight: 1}}]\n---\n"
    "merge_method: nuslerp\nmodels: [{model: one, parameters: {weight: 1}}, "
    "{model: ./code, parameters: {weight: 2}}]\n",
]
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    3,
    10**30,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "0.5",
    "../..",
    "hf://a/b",
    "base",
    "./math",
    "./nowhere",
    "a" * 600,
    "\x1b[31m",
    "\u202eabc",
    "a+b",
    "a@b@c",
    "*",
    "[",
    "1e-3",
    [],
    [[]],
    [None],
    [0, 1],
    [1, 0],
    [0.1, 0.2, 0.3],
    ["a"],
    {},
    {"": 0},
    {"value": 1},
    {"a": {"b": [1]}},
    {"curve": "step", "points": []},
    {"recipe": "recipe.yaml"},
    {"source": "./math"},
    {"arithmetic": "a + (b - c)"},
    [{"value": 0.5}],
    [{"role": [1], "value": 0.5}],
    [{"role": {}, "name": 3, "value": 1}],
    "\u0085\u00ad",
]
KEYS = [
    "weight",
    "density",
    "lambda",
    "t",
    "base",
    "merge",
    "version",
    "models",
    "name",
    "x",
    "",
    "\x07",
    "value",
]


def template(name: str) -> str:
    return (resources.files("cuvee.cli") / "templates" / f"{name}.yaml").read_text("utf-8")


def documents() -> list[list[Any]]:
    return [list(YAML(typ="safe").load_all(text)) for text in [*map(template, TEMPLATES), *WHOLE]]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from places(inner, (*path, i))


def mutated(data: Any, chance: random.Random) -> Any:
    out = copy.deepcopy(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        every = list(places(out))
        if not every:
            return out
        *above, last = chance.choice(every)
        holder = out
        for part in above:
            holder = holder[part]
        chance.choice((_delete, _retype, _rename, _add, _duplicate, _wrap, _transplant))(
            holder, last, out, every, chance
        )
    return out


def _delete(holder: Any, last: Any, *rest: Any) -> None:
    del holder[last]


def _retype(holder: Any, last: Any, out: Any, every: Any, chance: random.Random) -> None:
    holder[last] = copy.deepcopy(chance.choice(VALUES))


def _rename(holder: Any, last: Any, out: Any, every: Any, chance: random.Random) -> None:
    if isinstance(holder, dict):
        holder[chance.choice(KEYS)] = holder.pop(last)


def _add(holder: Any, last: Any, out: Any, every: Any, chance: random.Random) -> None:
    if isinstance(holder, dict):
        holder[chance.choice(KEYS)] = copy.deepcopy(chance.choice(VALUES))


def _duplicate(holder: Any, last: Any, *rest: Any) -> None:
    if isinstance(holder, list):
        holder.insert(0, copy.deepcopy(holder[last]))


def _wrap(holder: Any, last: Any, out: Any, every: Any, chance: random.Random) -> None:
    holder[last] = [holder[last]] if chance.random() < 0.5 else {"value": holder[last]}


def _transplant(holder: Any, last: Any, out: Any, every: Any, chance: random.Random) -> None:
    donor: Any = out
    for part in chance.choice(every):
        donor = donor[part] if _has(donor, part) else donor
    holder[last] = copy.deepcopy(donor) if len(str(donor)) < 2000 else None


def _has(holder: Any, part: Any) -> bool:
    if isinstance(holder, dict):
        return part in holder
    return isinstance(holder, list) and isinstance(part, int) and part < len(holder)


def garbled(text: str, chance: random.Random) -> str:
    for _ in range(chance.choice((1, 1, 2, 5))):
        i = chance.randrange(len(text) + 1)
        what = chance.randrange(4)
        if what == 0:
            text = text[:i] + chance.choice("{}[]:,-&*!|>'\"%@`#?\t\n\x00\x1b é\u202e0") + text[i:]
        elif what == 1:
            text = text[:i] + text[i + chance.randrange(1, 6) :]
        elif what == 2:
            j = chance.randrange(len(text) + 1)
            text = text[: max(i, j)] + text[min(i, j) : max(i, j)][:80] + text[max(i, j) :]
        else:
            text = (
                text[:i]
                + chance.choice(("<<: *a", "&a ", "*a", "!!python/object:os.system ", "? ", "--- "))
                + text[i:]
            )
    return text


@pytest.mark.parametrize("part", range(10))
def test_mutated_recipes(part: int, here: Path, cli: Any) -> None:
    """1,500 recipes in ten parts; each is checked, and now and then planned, imported or tried."""
    known = documents()
    path = here / "recipe.yaml"
    wrong = []
    for number in range(150 * part, 150 * part + 150):
        chance = random.Random(number)
        chosen = known[number % len(known)]
        text = "\n---\n".join(json.dumps(mutated(d, chance)) for d in chosen)
        if number % 5 == 0:
            text = garbled(text if number % 2 else YAML_TEXTS[number % len(YAML_TEXTS)], chance)
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        command: list[Any] = [
            ["check", path],
            ["check", path, "--json"],
            ["plan", path],
            ["import", "mergekit", path],
            ["check", "--format", "github", path],
            ["plan", path, "--tensor", "*"],
        ][chance.choice((0, 0, 0, 1, 2, 3, 4, 5))]
        outcome = cli(*command)
        if outcome.code not in DOCUMENTED or "Traceback" in outcome.err:
            wrong.append(f"case {number} {command[0]}: {outcome.code}\n{text[:600]}\n{outcome.err[-700:]}")
        elif "\x1b" in outcome.out + outcome.err or "\u202e" in outcome.out + outcome.err:
            wrong.append(
                f"case {number} {command[0]}: prints control characters\n{text[:600]}\n{outcome.err[-500:]}"
            )
    assert not wrong, f"{len(wrong)} cases\n" + "\n\n".join(wrong[:5])


YAML_TEXTS = [
    *WHOLE,
    *((resources.files("cuvee.cli") / "templates" / f"{t}.yaml").read_text("utf-8") for t in TEMPLATES),
]
WORDS = [
    "--json",
    "-q",
    "-v",
    "--help",
    "-o",
    "out",
    "recipe.yaml",
    "plan.json",
    "./base",
    "./math",
    "./code",
    "base+math",
    "ties",
    "linear",
    "-p",
    "density=0.5",
    "weight=[1,2]",
    "p=",
    "=",
    "--set",
    "density=2",
    "x.y=z",
    "--seed",
    "-1",
    "7",
    "--dtype",
    "int8",
    "bfloat16",
    "--shard-size",
    "0",
    "5GB",
    "-5",
    "1e400GB",
    "--tensor",
    "*",
    "[",
    "--graph",
    "--dot",
    "--base",
    "--sample",
    "200%",
    "5%",
    "nan",
    "--from",
    "slerp",
    "--structure",
    "--all",
    "",
    "\x1b[2J",
    "\u202e",
    "hf://a/b",
    "hf://",
    "..",
    "/",
    "/dev/null",
    "CV-R004",
    "mergekit",
    "recipe",
    "--force",
    "--memory",
    "1B",
    "0B",
    "--threads",
    "0",
    "--no-rule",
    "x",
    "--device",
    "tpu",
    "--dry-run",
    "--overwrite",
    "--locked",
    "--check",
    "--offline",
    "--strict",
    "--allow-crimes",
    "--tensor-union",
    "--older-than",
    "-3",
]
HARMFUL = {"push", "cache"}  # would reach beyond the working folder


@pytest.mark.parametrize("part", range(5))
def test_random_command_lines(part: int, here: Path, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """500 command lines in five parts."""
    monkeypatch.setenv("CUVEE_CACHE", str(here / "cache"))
    (here / "recipe.yaml").write_text(WHOLE[2])
    (here / "plan.json").write_text('{"schema": "cuvee.plan/1"}')
    names = [name for name in COMMANDS if name not in HARMFUL]
    wrong = []
    for number in range(100 * part, 100 * part + 100):
        chance = random.Random(10_000 + number)
        line = [chance.choice(names), *(chance.choice(WORDS) for _ in range(chance.randrange(6)))]
        outcome = cli(*line)
        if outcome.code not in DOCUMENTED or "Traceback" in outcome.err:
            wrong.append(f"case {number} {line}: {outcome.code}\n{outcome.err[-900:]}")
        elif "\x1b" in outcome.out + outcome.err or "\u202e" in outcome.out + outcome.err:
            wrong.append(f"case {number} {line}: prints control characters\n{outcome.err[-500:]}")
    assert not wrong, f"{len(wrong)} cases\n" + "\n\n".join(wrong[:5])


def test_a_weight_that_one_model_lacks(here: Path, cli: Any) -> None:
    text = "merge_method: linear\nmodels: [{model: ./math, parameters: {weight: 1}}, {model: ./code}]\n"
    (here / "r.yaml").write_text(text)
    outcome = cli("check", "r.yaml")
    assert outcome.code == 2
    assert "CV-P030" in outcome.err
