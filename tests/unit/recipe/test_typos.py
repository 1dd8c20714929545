"""A key of either recipe language, misspelt by one edit anywhere, is refused and the right key is offered.

The recipes below use every key of every schema model once; a test holds them to the models. A typo that is itself a
legal key at that place is the only exception, and each such pair is listed.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any

import pytest

from cuvee.core.dtypes import parse_dtype
from cuvee.core.names import edits
from cuvee.errors import RecipeError
from cuvee.families.roles import ROLES
from cuvee.methods import registry
from cuvee.recipe import mergekit_schema, schema
from cuvee.recipe.document import Document
from cuvee.recipe.layouts import LAYOUTS
from cuvee.recipe.load import is_mergekit, parse_recipe
from cuvee.recipe.mergekit import translate
from cuvee.recipe.model import Recipe
from cuvee.recipe.native import read_native
from cuvee.recipe.native_settings import GROUPS
from cuvee.recipe.shape import parts_of

Path = tuple[str | int, ...]

# A typo that is a legal key at the same place: the pair, and why it may stand.
LEGAL = {
    ("adapter", "adapters"): "one adapter or a list of them",
    ("adapters", "adapter"): "one adapter or a list of them",
}

NATIVE: dict[str, Any] = {
    "version": 1,
    "base": {"path": "./base", "revision": "main", "adapter": "./lora"},
    "experts": {
        "a": {"source": {"path": "./a", "adapters": [{"path": "./l", "revision": "x"}]}, "weight": 0.5},
        "b": {"recipe": {"experts": {"c": "./c", "d": "./d"}, "merge": {"method": "linear"}}},
        "e": {"arithmetic": "a + s"},
    },
    "sources": {"s": "./s"},
    "merge": {
        "method": "ties",
        "density": [
            {"name": "*.mlp.*", "role": "mlp", "layers": [0, 2], "module": "default", "value": 0.3},
            {"value": {"curve": "linear", "points": [0, 1]}},
            {"block": "IN04", "value": {"blocks": [0, 1], "base": 0.5}},
        ],
    },
    "layers": [{"from": ["a", "b"], "range": [0, 2], "base": "a", "parameters": {"weight": 1}}],
    "tokenizer": {
        "source": "union",
        "pad_to_multiple_of": 8,
        "tokens": {
            "<x>": {"source": "a", "token": "y", "force": True},
            "<y>": {"source": "a", "token_id": 1},
            "<z>": {"zero": True},
        },
    },
    "chat_template": "auto",
    "dtype": "float32",
    "seed": 1,
    "edges": "ends",
    "output": {
        "dtype": "bfloat16",
        "shard_size": "1GB",
        "card": True,
        "tokenizer": True,
        "form": "single_file",
        "like": "./pipeline",
    },
}
MODULES: dict[str, Any] = {
    "version": 1,
    "experts": {"a": "./a", "b": "./b"},
    "base": "./base",
    "merge": {"method": "ties"},
    "curves": "slices",
    "modules": {
        "encoder": {"from": {"a": {"weight": 0.5}, "b": {}}, "base": "base", "parameters": {"density": 0.3}},
        "decoder": {
            "layers": [{"from": {"a": {"layers": [0, 2], "weight": 1}}, "parameters": {"weight": 2}}]
        },
    },
}
ADAPTERS: list[dict[str, Any]] = [
    {
        "version": 1,
        "experts": {"a": "./a"},
        "base": "./base",
        "merge": {"method": "ties"},
        "output": {"kind": "adapter", "rest": "drop", **bound},
    }
    for bound in ({"rank": 8}, {"energy": 0.9}, {"error": 0.1})
]
PACKAGES: list[dict[str, Any]] = [
    {
        "version": 1,
        "experts": {"a": "./a", "b": "./b"},
        "base": "./base",
        "merge": {"method": "tall_masks", "strength": 0.3},
        "output": {"kind": "package", "include_base": True},
    },
]
OPEN = {"experts", "sources", "tokens", "modules", "from"}  # their keys are names the user chooses

MERGEKIT: list[dict[str, Any]] = [
    {
        "merge_method": "ties",
        "name": "x",
        "models": [
            {
                "model": {
                    "model": {"path": "a", "revision": "r"},
                    "lora": {"path": "l"},
                    "override_architecture": "Z",
                },
                "parameters": {"weight": [{"filter": "mlp", "value": 0.5}, {"value": 1}]},
            },
            {"model": {"path": "b", "revision": "r"}},
        ],
        "base_model": "b",
        "dtype": "float32",
        "out_dtype": "bfloat16",
        "tokenizer_source": "union",
        "chat_template": "auto",
        "parameters": {"density": 0.5},
    },
    {
        "merge_method": "passthrough",
        "slices": [
            {
                "sources": [{"model": "a", "layer_range": [0, 2], "parameters": {"scale": 1}}],
                "base_model": "a",
                "residual_weight": 0.5,
                "parameters": {"scale": 1},
            }
        ],
        "tokenizer": {
            "source": "union",
            "pad_to_multiple_of": 8,
            "tokens": {
                "<x>": {"source": "a", "force": True},
                "<y>": {"source": {"kind": "model_token", "model": "a", "token": "x"}},
                "<u>": {"source": {"kind": "model_token", "model": "a", "token_id": 3}},
                "<z>": {"source": {"kind": "zero"}},
            },
        },
    },
    {
        "merge_method": "linear",
        "modules": {
            "default": {"models": [{"model": "a", "parameters": {"weight": 1}}], "parameters": {"weight": 1}},
            "other": {"slices": [{"sources": [{"model": "a", "layer_range": [0, 1]}]}]},
        },
        "parameters": {"weight": 1},
    },
]


def typos(word: str) -> list[str]:
    """Words at distance one: at the first, middle and last place a deletion, insertion, substitution and swap."""
    places = sorted({0, len(word) // 2, len(word) - 1})
    found = [word + "s", "x" + word, word.upper() if len(word) == 1 else ""]
    for i in places:
        found.append(word[:i] + word[i + 1 :])
        found.append(word[:i] + "q" + word[i:])
        found.append(word[:i] + ("z" if word[i] != "z" else "y") + word[i + 1 :])
        if i + 1 < len(word) and word[i] != word[i + 1]:
            found.append(word[:i] + word[i + 1] + word[i] + word[i + 2 :])
    return [typo for typo in dict.fromkeys(found) if typo and typo != word]


def keys_of(data: Any, path: Path = (), named: bool = False) -> Iterator[Path]:
    """Paths of every key that the language (not the user) names."""
    if isinstance(data, dict):
        for key, value in data.items():
            if not named:
                yield (*path, key)
            yield from keys_of(value, (*path, key), key in OPEN and not named)
    elif isinstance(data, list):
        for i, value in enumerate(data):
            yield from keys_of(value, (*path, i))


def misspelt(data: Any, path: Path, typo: str) -> Any:
    """A copy with the key at `path` renamed."""
    out = copy.deepcopy(data)
    place = out
    for part in path[:-1]:
        place = place[part]
    renamed = {typo if key == path[-1] else key: value for key, value in place.items()}
    place.clear()
    place.update(renamed)
    return out


def read(data: Any) -> Recipe:
    """The recipe of plain data, by the same doors as YAML (whose parsing is the slow part)."""
    document = Document(data, "", None, {}, {})
    return translate(document) if is_mergekit(document) else read_native(document, lambda path: read({}))


def refused(data: Any, word: str, typo: str) -> str | None:
    """What is wrong with how a recipe with this typo is treated, or None."""
    try:
        recipe = read(data)
    except RecipeError as error:
        assert error.exit_code == 2
        hints = [d.hint or "" for d in error.diagnostics]
        if any(h.startswith("did you mean") and f"`{word}`" in h for h in hints):
            return None
        return f"`{typo}` for `{word}`: {[(d.code, d.message, d.hint) for d in error.diagnostics]}"
    if any(d.code == "CV-R030" and f"no parameter `{typo}`" in d.message for d in recipe.notes):
        return None  # MergeKit's language: a parameter of another method, ignored there too and said so
    return f"`{typo}` for `{word}` is accepted"


def siblings(data: Any, path: Path) -> set[str]:
    for part in path[:-1]:
        data = data[part]
    return set(data)


def failures(data: Any) -> list[str]:
    found = []
    for path in keys_of(data):
        word = str(path[-1])
        for typo in typos(word):
            if typo in siblings(data, path) or (word, typo) in LEGAL:
                continue
            wrong = refused(misspelt(data, path, typo), word, typo)
            if wrong:
                found.append(f"{'.'.join(map(str, path))}: {wrong}")
    return found


def test_the_recipes_themselves_are_right() -> None:
    for data in (NATIVE, MODULES, *ADAPTERS, *PACKAGES, *MERGEKIT):
        parse_recipe(json.dumps(data))


def _fields(module: Any) -> set[str]:
    records = [r for r in vars(module).values() if isinstance(r, type) and r.__module__ == module.__name__]
    return {key for record in records if is_dataclass(record) for key in parts_of(record)}


def test_every_field_of_the_schemas_is_in_the_recipes() -> None:
    written = {str(p[-1]) for data in (NATIVE, MODULES, *ADAPTERS, *PACKAGES) for p in keys_of(data)}
    assert _fields(schema) - written == set()
    assert _fields(mergekit_schema) - {str(p[-1]) for data in MERGEKIT for p in keys_of(data)} == set()


def test_keys_of_own_recipes() -> None:
    assert failures(NATIVE) == []
    assert failures(MODULES) == []
    assert [failures(data) for data in (*ADAPTERS, *PACKAGES)] == [[], [], [], []]


@pytest.mark.parametrize("number", range(len(MERGEKIT)))
def test_keys_of_mergekit_recipes(number: int) -> None:
    assert failures(MERGEKIT[number]) == []


def _own(method: str, more: dict[str, Any], expert: dict[str, Any] | None = None) -> dict[str, Any]:
    a: Any = {"source": "./a", **expert} if expert else "./a"
    merge = {"method": method, **more}
    return {"version": 1, "base": "./base", "experts": {"a": a, "b": "./b"}, "merge": merge}


@pytest.mark.parametrize("name", registry.names())
def test_parameters_of_own_methods(name: str) -> None:
    found = []
    known = registry.parameters_for(registry.get(name))
    for word, parameter in known.items():
        for typo in typos(word):
            if typo in known or typo == "method":
                continue
            found.append(refused(_own(name, {typo: parameter.default}), word, typo))
            if parameter.per_expert and typo not in ("source", "recipe", "arithmetic"):
                found.append(refused(_own(name, {}, {typo: parameter.default}), word, typo))
    assert [wrong for wrong in found if wrong] == []


@pytest.mark.parametrize("name", registry.stages())
def test_parameters_of_stages(name: str) -> None:
    found = []
    known = {p.name for p in registry.stage(name).parameters}
    for word in known:
        for typo in set(typos(word)) - known:
            data = _own("x", {}) | {"merge": [{name: {typo: 1}}]}
            found.append(refused(data, word, typo))
    assert [wrong for wrong in found if wrong] == []


@pytest.mark.parametrize("name", LAYOUTS)
def test_parameters_of_layouts(name: str) -> None:
    found = []
    for word in LAYOUTS[name].parameters:
        for typo in set(typos(word)) - set(LAYOUTS[name].parameters):
            values = {n: 1 for n in LAYOUTS[name].parameters if n != word} | {typo: 1}
            found.append(refused(_own(name, values), word, typo))
    assert [wrong for wrong in found if wrong] == []


@pytest.mark.parametrize("name", [m for m in registry.names() if "mergekit" in registry.get(m).dialects])
def test_parameters_of_mergekit_methods(name: str) -> None:
    found = []
    for spelling in registry.get(name).dialects["mergekit"].parameters:
        for typo in typos(spelling.name):
            if typo in registry.get(name).dialects["mergekit"].names:
                continue
            models: list[dict[str, Any]] = [{"model": "a"}, {"model": "b"}]
            if spelling.scope == "shared":
                shared = {typo: spelling.default}
            else:
                shared, models[0]["parameters"] = {}, {typo: spelling.default}
            data = {"merge_method": name, "models": models, "base_model": "b", "parameters": shared}
            found.append(refused(data, spelling.name, typo))
    assert [wrong for wrong in found if wrong] == []


def test_names_of_methods_stages_and_layouts() -> None:
    found = []
    methods = {*registry.names(), *LAYOUTS}
    for word in sorted(methods):
        found += [refused(_own(typo, {}), word, typo) for typo in set(typos(word)) - methods]
    for word in registry.stages():
        for typo in set(typos(word)) - set(registry.stages()):
            found.append(refused(_own("x", {}) | {"merge": [typo]}, word, typo))
            found.append(refused(_own("x", {}) | {"merge": [{typo: {}}]}, word, typo))
    for word in (m for m in registry.names() if "mergekit" in registry.get(m).dialects):
        for typo in set(typos(word)) - methods:
            found.append(refused({"merge_method": typo, "models": [{"model": "a"}]}, word, typo))
    assert [wrong for wrong in found if wrong] == []


VALUES = {
    ("edges",): ("ends", "first"),
    ("curves",): ("output", "slices"),
    ("dtype",): schema.STORED,
    ("output", "dtype"): schema.STORED,
    ("merge", "density", 1, "value", "curve"): ("linear", "cosine", "step"),
    ("merge", "density", 0, "role"): (*ROLES, *GROUPS),
}


@pytest.mark.parametrize("path", VALUES, ids=lambda path: ".".join(map(str, path)))
def test_words_among_a_few(path: Path) -> None:
    found = []
    for word in VALUES[path]:
        for typo in set(typos(word)) - set(VALUES[path]):
            if sum(edits(typo, known) == 1 for known in VALUES[path]) > 3:
                continue  # `z` is as near to each of `q`, `k`, `v` and `o`; the hint lists three
            if parse_dtype(typo) is not None and "dtype" in path:
                continue  # torch has more than one word for some types
            data = copy.deepcopy(NATIVE)
            place: Any = data
            for part in path[:-1]:
                place = place[part]
            place[path[-1]] = typo  # also where the recipe says nothing
            found.append(refused(data, word, typo))
    assert [wrong for wrong in found if wrong] == []
