"""pydantic's findings → diagnostics with position, caret and suggestion; all of a document's at once."""

from __future__ import annotations

import copy
import typing
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError

from cuvee.core.names import did_you_mean, printable
from cuvee.errors import Diagnostic
from cuvee.recipe.document import Document, Path, problem

M = TypeVar("M", bound=BaseModel)

WORDS = {
    "string_type": "must be a text",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "greater_than_equal": "must be at least {ge}",
    "too_short": "needs at least {min_length} entry",
    "list_type": "must be a list",
    "dict_type": "must be a mapping of keys to values",
    "mapping_type": "must be a mapping of keys to values",
    "model_type": "must be a mapping of keys to values",
    "model_attributes_type": "must be a mapping of keys to values",
}


class Strict(BaseModel):
    """Base of every schema model: unknown keys are errors, nothing is coerced."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, populate_by_name=True, defer_build=True
    )


def refuse(message: str, hint: str | None = None) -> PydanticCustomError:
    """An error for a validator to raise: `message` is the end of a sentence that starts with the key."""
    return PydanticCustomError("recipe", "{message}", {"message": message, "hint": hint})


def validate(model: type[M], document: Document, found: list[Diagnostic]) -> M | None:
    """The validated model, or None with every mistake appended to `found`."""
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        items = _told(error.errors(include_url=False))
    found.extend(_diagnostics(model, document, items))
    wrong = [_real_path(document.data, item) for item in items]
    if any(item["type"] == "missing" for item in items) or not all(
        p and isinstance(p[-1], str) for p in wrong
    ):
        return None  # without an entry of a list the places of the later ones would be wrong
    try:  # what is wrong in one place must not hide what is wrong in another
        return model.model_validate(_without(document.data, wrong))
    except ValidationError:
        return None


def _told(items: list[Any]) -> list[Any]:
    """The findings less those of the text branch of `text or mapping` where a mapping was written."""
    return [
        item
        for item in items
        if not (
            item["type"] == "string_type" and item["loc"][-1:] == ("str",) and isinstance(item["input"], dict)
        )
    ] or items


def _diagnostics(model: type[BaseModel], document: Document, items: list[Any]) -> list[Diagnostic]:
    """One for each finding; a key is not said to be missing where a misspelt one stands for it."""
    made = [(item, _diagnostic(model, document, item)) for item in items]
    meant = {(item["loc"][:-1], d.hint) for item, d in made if item["type"] == "extra_forbidden"}
    return [
        d
        for item, d in made
        if not (
            item["type"] == "missing" and (item["loc"][:-1], f"did you mean `{item['loc'][-1]}`?") in meant
        )
    ]


def _without(data: Any, paths: list[Path]) -> Any:
    """A copy of the data less what stands at these paths."""
    out = copy.deepcopy(data)
    for *parents, last in set(paths):
        place = out
        for part in parents:
            if not _holds(place, part):
                break
            place = place[part]
        else:
            if _holds(place, last):
                del place[last]
    return out


def _holds(place: Any, part: str | int) -> bool:
    if isinstance(place, dict):
        return part in place
    return isinstance(place, list) and isinstance(part, int) and part < len(place)


def _diagnostic(model: type[BaseModel], document: Document, item: Any) -> Diagnostic:
    path = _real_path(document.data, item)
    name = f"`{printable(str(path[-1]))}`" if path else "the recipe"
    kind = item["type"]
    if kind == "extra_forbidden":
        hint = _meant(str(path[-1]), model, path[:-1])
        return problem(document, "CV-R004", path, f"unknown key {name}", key=True, hint=hint)
    if kind == "missing":
        return problem(document, "CV-R005", path[:-1], f"the key {name} is missing", key=True)
    if kind == "recipe":
        context = item["ctx"]
        return problem(document, "CV-R006", path, f"{name} {context['message']}", hint=context["hint"])
    if kind == "literal_error":
        choices = _literals(model, path)
        message = f"{name} must be one of {item['ctx']['expected']}, got {shown(item['input'])}"
        return problem(document, "CV-R010", path, message, hint=did_you_mean(str(item["input"]), choices))
    words = WORDS.get(kind) or item["msg"][:1].lower() + item["msg"][1:]
    words = words.format(**item.get("ctx", {})) if kind in WORDS else words
    return problem(document, "CV-R010", path, f"{name} {words}, got {shown(item['input'])}")


def shown(value: Any) -> str:
    """A value of a recipe for a message: short, printable, collections by their kind."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list) else f"`{printable(str(value), 60)}`"


def _real_path(data: Any, item: Any) -> Path:
    """The place of a finding less pydantic's own words (union branches, validators); a missing key is kept."""
    path: list[str | int] = []
    for part in item["loc"]:
        if _holds(data, part):
            path.append(part)
            data = data[part]
    return (*path, item["loc"][-1]) if item["type"] == "missing" else tuple(path)


def _model_at(annotation: Any, path: Path) -> type[BaseModel] | None:
    """The schema model that describes the mapping at `path`, or None."""
    for part in path:
        annotation = _inside(annotation, part)
    return next(iter(_models_in(annotation)), None)


def _inside(annotation: Any, part: str | int) -> Any:
    """The annotation of what stands at one key or index of a value with this annotation, or None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = next((f for n, f in annotation.model_fields.items() if (f.alias or n) == part), None)
        return field.annotation if field else None
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) in (dict, list):
        return arguments[-1]
    return next((found for a in arguments if (found := _inside(a, part)) is not None), None)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for part in typing.get_args(annotation) for m in _models_in(part)]


def _meant(key: str, model: type[BaseModel], path: Path) -> str | None:
    """The hint for an unknown key of the mapping at `path`: a key of its own that is close, else one further in."""
    owner = _model_at(model, path)
    if owner is None:
        return None
    own = [f.alias or n for n, f in owner.model_fields.items()]
    inner = {
        name: field.alias or outer
        for outer, field in owner.model_fields.items()
        for part in _models_in(field.annotation)
        for name in part.model_fields
    }
    elsewhere = f"`{key}` belongs under `{inner[key]}`" if key in inner else None
    return did_you_mean(key, own) or elsewhere or did_you_mean(key, inner)


def _literals(model: type[BaseModel], path: Path) -> list[str]:
    owner = _model_at(model, path[:-1]) if path else None
    if owner is None:
        return []
    field = next((f for n, f in owner.model_fields.items() if (f.alias or n) == path[-1]), None)
    return _strings_in(field.annotation) if field else []


def _strings_in(annotation: Any) -> list[str]:
    if isinstance(annotation, str):
        return [annotation]
    return [s for part in typing.get_args(annotation) for s in _strings_in(part)]
