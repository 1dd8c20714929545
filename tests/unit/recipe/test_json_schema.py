"""The schemas that editors read: small enough, every reference leads somewhere, and right about recipes."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import pytest
from ruamel.yaml import YAML

from cuvee.cli.commands.init import TEMPLATES
from cuvee.recipe.json_schema import mergekit_schema, native_schema

jsonschema = pytest.importorskip("jsonschema")
SCHEMAS = {"own": native_schema(), "mergekit": mergekit_schema()}


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if "$ref" in value else []
        return own + [r for inner in value.values() for r in references(inner)]
    return [r for inner in value for r in references(inner)] if isinstance(value, list) else []


@pytest.mark.parametrize("language", SCHEMAS)
def test_the_schema_is_sound_and_small(language: str) -> None:
    schema = SCHEMAS[language]
    jsonschema.Draft202012Validator.check_schema(schema)
    assert set(references(schema)) == {f"#/$defs/{name}" for name in schema["$defs"]}
    assert len(json.dumps(schema)) < 500_000


def errors(language: str, recipe: str) -> list[Any]:
    data = YAML(typ="safe").load(recipe)
    return list(jsonschema.Draft202012Validator(SCHEMAS[language]).iter_errors(data))


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_fit(template: str) -> None:
    text = (resources.files("cuvee.cli") / "templates" / f"{template}.yaml").read_text(encoding="utf-8")
    assert errors("mergekit" if template == "mergekit" else "own", text) == []


OWN = "version: 1\nbase: ./b\nexperts: {a: {source: ./a, weight: 0.5}}\nmerge: {method: ties, density: %s}\n"


@pytest.mark.parametrize(
    "value", ["0.3", "[0.1, 0.9]", "{curve: cosine, points: [0.1, 0.9]}", "[{role: mlp, value: 1}]"]
)
def test_settings_fit(value: str) -> None:
    assert errors("own", OWN % value) == []


@pytest.mark.parametrize("text", [OWN % "1.5", OWN % "lots", (OWN % "0.3").replace("density", "densty"),
                                  (OWN % "0.3").replace("weight", "wieght")])  # fmt: skip
def test_mistakes_do_not(text: str) -> None:
    assert errors("own", text)


def test_mergekit_settings_fit() -> None:
    good = "merge_method: ties\nbase_model: b\nmodels: [{model: a, parameters: {weight: [0, 1], density: 0.5}}]\n"
    assert errors("mergekit", good) == []
    assert errors("mergekit", good.replace("weight", "wieght"))
