"""A one-line merge → the text of the recipe it stands for."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from cuvee.core.names import printable
from cuvee.errors import UsageError
from cuvee.recipe.document import parse_documents


def quick_text(
    method: str,
    models: list[str],
    base: str | None,
    parameters: list[str],
    output: Mapping[str, Any] | None = None,
) -> str:
    """YAML of a recipe with these models; `name=value` parameters, a list being one value for each model.

    `output` is the recipe's section of that name; entries that are None are left out.
    """
    names = _names(models)
    shared: dict[str, Any] = {"method": method}
    experts: dict[str, Any] = dict(zip(names, models, strict=True))
    for item in parameters:
        name, equals, text = item.partition("=")
        if not equals or not name:
            raise UsageError("CV-U005", f"`-p {printable(item)}` is not of the form `name=value`")
        documents = parse_documents(text)
        value = documents[0].data if documents else None
        if not isinstance(value, list):
            shared[name] = value
            continue
        if len(value) != len(models):
            raise UsageError(
                "CV-U005", f"`{printable(name)}` has {len(value)} values for {len(models)} models"
            )
        for expert, one in zip(names, value, strict=True):
            entry = experts[expert]
            experts[expert] = {**(entry if isinstance(entry, dict) else {"source": entry}), name: one}
    content: dict[str, Any] = {"version": 1}
    if base is not None:
        content["base"] = base
    content |= {"experts": experts, "merge": shared}
    written = {key: value for key, value in (output or {}).items() if value is not None}
    return _yaml({**content, "output": written} if written else content)


def _names(models: list[str]) -> list[str]:
    words = [PurePath(m.split("+")[0].strip()).name.split("@")[0] for m in models]
    taken = {"", "base", *(f"expert_{i}" for i in range(1, len(words) + 1))}
    return [w if words.count(w) == 1 and w not in taken else f"expert_{i}" for i, w in enumerate(words, 1)]


def _yaml(content: dict[str, Any]) -> str:
    from ruamel.yaml import YAML

    writer = YAML()
    writer.default_flow_style = False
    stream = io.StringIO()
    writer.dump(content, stream)
    return stream.getvalue()
