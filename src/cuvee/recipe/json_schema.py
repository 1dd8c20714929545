"""JSON Schemas of both recipe languages: structure from the models, parameters from the methods' signatures."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from cuvee.methods.contract import Spelling
from cuvee.methods.parameters import Parameter
from cuvee.methods.registry import get, names, parameters_for, stage, stages
from cuvee.recipe.layouts import LAYOUTS
from cuvee.recipe.mergekit_schema import RECIPE
from cuvee.recipe.schema import NATIVE
from cuvee.recipe.shape import json_schema

DRAFT = "https://json-schema.org/draft/2020-12/schema"


def native_schema() -> dict[str, Any]:
    """The schema of `version: 1` recipes; parameters are known for each method and stage."""
    schema = json_schema(NATIVE)
    properties, shared = schema["properties"], _Shared(schema.setdefault("$defs", {}))
    per_expert = {n: p for m in names() for n, p in parameters_for(get(m)).items() if p.per_expert}
    properties["merge"] = {
        "oneOf": [*(_method(name, shared) for name in names()), *map(_layout, LAYOUTS), _chain(shared)]
    }
    shared.definitions["source"] = _source(per_expert, shared)
    source = {"$ref": "#/$defs/source"}
    properties["base"] = source
    for key in ("experts", "sources"):
        properties[key] = {"type": "object", "additionalProperties": source}
    return {"$schema": DRAFT, "title": "Cuvée recipe", **{k: v for k, v in schema.items() if k != "title"}}


def mergekit_schema() -> dict[str, Any]:
    """The schema of MergeKit's files with the parameters each method of it knows."""
    schema = json_schema(RECIPE)
    shared = _Shared(schema.setdefault("$defs", {}))
    known = [m for m in names() if "mergekit" in get(m).dialects]
    schema["properties"]["merge_method"] = {"enum": known}
    found: dict[str, Any] = {}
    for method in known:
        for spelling in get(method).dialects["mergekit"].parameters:
            found.setdefault(spelling.name, shared.ref(_spelling(spelling)))
    shared.definitions["parameters"] = {"type": "object", "properties": found, "additionalProperties": False}
    parameters = {"$ref": "#/$defs/parameters"}
    for part in (schema, *schema.get("$defs", {}).values()):
        if "parameters" in part.get("properties", {}):
            part["properties"]["parameters"] = parameters
    return {"$schema": DRAFT, "title": "MergeKit recipe", **{k: v for k, v in schema.items() if k != "title"}}


@dataclass(frozen=True, slots=True)
class _Shared:
    """Forms of values that many parameters have, each written once under `$defs`: editors read the whole schema."""

    definitions: dict[str, Any]
    names: dict[str, str] = field(default_factory=dict)

    def ref(self, form: dict[str, Any]) -> dict[str, Any]:
        """A reference to the form."""
        text = json.dumps(form, sort_keys=True)
        if text not in self.names:
            self.names[text] = f"value{len(self.names) + 1}"
            self.definitions[self.names[text]] = form
        return {"$ref": f"#/$defs/{self.names[text]}"}


def _method(name: str, shared: _Shared) -> dict[str, Any]:
    method = get(name)
    parameters = parameters_for(method)
    per_expert = [n for n, p in parameters.items() if p.required and not p.per_expert]
    return {
        "type": "object",
        "description": method.summary,
        "properties": {"method": {"const": name}, **{n: _setting(p, shared) for n, p in parameters.items()}},
        "required": ["method", *per_expert],
        "additionalProperties": False,
    }


def _layout(name: str) -> dict[str, Any]:
    layout = LAYOUTS[name]
    values = {
        n: {"description": h}
        if n in layout.free
        else {"type": "string" if isinstance(d, str) else "integer", "description": h}
        for n, (d, h) in layout.parameters.items()
    }
    return {
        "type": "object",
        "description": layout.summary,
        "properties": {"method": {"const": name}, **values},
        "required": ["method", *(n for n, (d, _) in layout.parameters.items() if d is None)],
        "additionalProperties": False,
    }


def _chain(shared: _Shared) -> dict[str, Any]:
    entries = [
        {
            "type": "object",
            "properties": {
                name: {
                    "type": "object",
                    "properties": {p.name: _setting(p, shared) for p in stage(name).parameters},
                    "additionalProperties": False,
                }
            },
            "required": [name],
            "additionalProperties": False,
        }
        for name in stages()
    ]
    return {"type": "array", "minItems": 1, "items": {"anyOf": [{"enum": list(stages())}, *entries]}}


def _source(per_expert: dict[str, Parameter], shared: _Shared) -> dict[str, Any]:
    own = {n: _setting(p, shared) for n, p in per_expert.items()}
    fields = {
        "source": {"type": ["string", "object"]},
        "recipe": {"type": ["string", "object"]},
        "arithmetic": {"type": "string"},
        "path": {"type": "string"},
        "revision": {"type": "string"},
        "adapter": {"type": ["string", "object"]},
        "adapters": {"type": "array"},
        "package": {"type": "string"},
        "task": {"type": "string"},
        "tasks": {"type": "object", "additionalProperties": {"type": "number"}},
        "base": {"type": "string"},
    }
    return {
        "anyOf": [
            {"type": "string"},
            {"type": "object", "properties": {**fields, **own}, "additionalProperties": False},
        ]
    }


def _setting(parameter: Parameter, shared: _Shared) -> dict[str, Any]:
    """A scalar, a curve, a mapping of patterns, or a list of rules."""
    scalar = shared.ref(_scalar(parameter))
    points = {"type": "array", "items": {"anyOf": [scalar, _pair(scalar)]}, "minItems": 1}
    curve = {
        "type": "object",
        "properties": {"curve": {"enum": ["linear", "cosine", "step"]}, "points": points},
        "required": ["points"],
        "additionalProperties": False,
    }
    rule = {
        "type": "object",
        "properties": {"name": {}, "role": {}, "layers": {}, "module": {}, "block": {}, "value": {}},
        "required": ["value"],
        "additionalProperties": False,
    }
    blocks = {
        "type": "object",
        "properties": {"blocks": {"anyOf": [points, curve, {"type": "string"}]}, "base": scalar},
        "required": ["blocks", "base"],
        "additionalProperties": False,
    }
    patterns = {"type": "object", "additionalProperties": {"anyOf": [scalar, points, blocks]}}
    forms = [scalar, points, curve, blocks, {"type": "array", "items": rule}, patterns]
    return {"description": parameter.help, **shared.ref({"anyOf": forms})}


def _pair(value: dict[str, Any]) -> dict[str, Any]:
    """A point of a curve with its depth."""
    depth = {"type": "number", "minimum": 0, "maximum": 1}
    return {"type": "array", "prefixItems": [depth, value], "minItems": 2, "maxItems": 2}


def _scalar(parameter: Parameter) -> dict[str, Any]:
    if parameter.choices:
        return {"enum": list(parameter.choices)}
    if parameter.listed:
        return {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "number"}, "minItems": 1}]}
    kind = {"float": "number", "int": "integer", "bool": "boolean", "str": "string"}[parameter.type]
    out: dict[str, Any] = {"type": [kind, "null"] if parameter.optional else kind}
    bounds = parameter.range
    if bounds is not None:
        if bounds.low != float("-inf"):
            out["exclusiveMinimum" if bounds.open_low else "minimum"] = bounds.low
        if bounds.high != float("inf"):
            out["exclusiveMaximum" if bounds.open_high else "maximum"] = bounds.high
    return out


def _spelling(spelling: Spelling) -> dict[str, Any]:
    kind = {"float": "number", "int": "integer", "bool": "boolean"}[spelling.type]
    scalar = {"type": kind}
    condition = {
        "type": "object",
        "properties": {"filter": {"type": ["string", "null"]}, "value": {}},
        "required": ["value"],
        "additionalProperties": False,
    }
    return {
        "anyOf": [
            scalar,
            {"type": "array", "items": scalar},
            condition,
            {"type": "array", "items": condition},
        ]
    }
